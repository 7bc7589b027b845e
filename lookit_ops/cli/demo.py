"""`lookit-ops demo`: the demonstration."""

from __future__ import annotations

from typing import Annotated

import typer

from lookit_ops.cli.show import console
from lookit_ops.demo.example import PORT
from lookit_ops.demo.story import tell


def demo(
    repository_port: Annotated[int, typer.Option(help="Port for the example repository, in a new home.")] = PORT,
) -> None:
    """Show the main road on made-up data: preview, review, deployment."""
    tell(console, repository_port)
