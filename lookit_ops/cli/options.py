"""What many commands share: the platform of the settings, and options that mean the same everywhere."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from lookit_ops.services import Services
from lookit_ops.settings import load_settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Acting = Annotated[
    str, typer.Option("--as", metavar="EMAIL", help="The account that acts; its permissions count, its name is logged.")
]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="UUID or name of the study.")]

MOST_ROWS = 1_000_000
"""The most rows that a list may be asked for."""

open_until_the_end = ExitStack()
"""What a command opened; `main` closes it."""


def services() -> Services:
    """The platform of the environment's settings; its connections are closed when the command ends."""
    outside = Services(load_settings())
    open_until_the_end.callback(outside.close)
    return outside
