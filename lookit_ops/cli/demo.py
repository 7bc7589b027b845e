"""`lookit-ops demo`: the demonstration."""

from __future__ import annotations

from typing import Annotated

import typer

from lookit_ops.cli.show import console
from lookit_ops.demo.example import PORT


def demo(
    repository_port: Annotated[int, typer.Option(help="Port for the example repository, in a new home.")] = PORT,
) -> None:
    """Show the main road on made-up data: preview, review, deployment."""
    from lookit_ops.demo.story import tell  # Dagster takes a second to import

    tell(console, repository_port)
