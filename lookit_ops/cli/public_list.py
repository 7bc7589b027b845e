"""What commands do for families after a change of a study: its page, and the public list."""

from __future__ import annotations

from domain.models.studies import PageState
from lookit_ops.cli.show import console, errors, plain
from lookit_ops.maintenance.availability import bring_page_into_line
from lookit_ops.maintenance.public_list import refresh_public_list
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError


def keep_page(outside: Services, study_id: int) -> None:
    """Bring the page into line after a change; the change stands, so a storage that fails is a warning."""
    try:
        changed = bring_page_into_line(outside, study_id)
    except StorageError as error:
        errors.print(
            f"[bold yellow]Warning:[/] what families get could not be changed: {plain(error)};"
            " the sensor availability tries again, or run `lookit-ops study availability`",
            soft_wrap=True,
        )
        return
    if changed is not None:
        told = "get the study again" if changed is PageState.SERVED else "get a page that says it is not available"
        console.print(f"Families {told}.")


def keep_public_list(outside: Services) -> None:
    """After a change: it stands, whatever becomes of the list, so a storage that is away is a warning."""
    try:
        refresh_public_list(outside)
    except StorageError as error:
        errors.print(
            f"[bold yellow]Warning:[/] the public list could not be brought up to date: {plain(error)};"
            " the sensor public_list tries again, or run `lookit-ops study discoverable`",
            soft_wrap=True,
        )
