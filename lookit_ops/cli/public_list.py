"""What commands do for the public list after a change of a study."""

from __future__ import annotations

from lookit_ops.cli.show import errors, plain
from lookit_ops.platform import Platform
from lookit_ops.public_list import refresh_public_list
from lookit_ops.storage.experiments import StorageError


def keep_public_list(outside: Platform) -> None:
    """After a change: it stands, whatever becomes of the list, so a storage that is away is a warning."""
    try:
        refresh_public_list(outside)
    except StorageError as error:
        errors.print(
            f"[bold yellow]Warning:[/] the public list could not be brought up to date: {plain(error)};"
            " the sensor public_list tries again, or run `lookit-ops study discoverable`",
            soft_wrap=True,
        )
