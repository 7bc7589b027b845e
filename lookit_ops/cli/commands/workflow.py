"""`lookit-ops workflow`: look at the workflow, and check a file that is to take its place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domain.errors import InvalidRequest
from domain.lookup import find_study
from domain.studies.diagram import Format, draw, mermaid, path_of
from domain.studies.workflow import SHIPPED_FILE
from domain.studies.workflow_file import read_table
from lookit_ops.cli.options import services
from lookit_ops.cli.show import console, counted, plain, table

app = typer.Typer(help="The workflow of studies.", no_args_is_help=True)
FORMATS: dict[str, Format] = {".png": "png", ".svg": "svg"}
MERMAID = ".mmd"


@app.callback()
def workflow() -> None:
    """The workflow of studies."""


@app.command()
def diagram(
    study: Annotated[str, typer.Argument(metavar="[STUDY]", help="UUID or name of a study, to mark its path.")] = "",
    roi: Annotated[bool, typer.Option("--roi", help="Only where the study has been, is, and can go.")] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .png, .svg, or .mmd for Mermaid.")
    ] = Path("workflow.png"),
) -> None:
    """Draw the workflow, or one study's path through it."""
    form = FORMATS.get(output.suffix.lower())
    if form is None and output.suffix != MERMAID:
        raise InvalidRequest(f"{output} is neither .png, .svg nor {MERMAID}; name the file accordingly")
    if roi and not study:
        raise InvalidRequest("--roi draws the region of one study: name the study")
    if form is None and study:
        raise InvalidRequest("Mermaid draws the whole workflow only: leave the study out, or write .png or .svg")
    path = None
    outside = services()
    if study:
        with outside.reading.begin() as session:
            path = path_of(session, find_study(session, study))
    picture = draw(form, path, region_of_interest=roi) if form else f"{mermaid()}\n".encode()
    try:
        output.write_bytes(picture)
    except OSError as error:
        raise InvalidRequest(f"{output} cannot be written: {error.strerror}") from error
    console.print(f"{plain(output)} written, {len(picture):,} bytes.")


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="YAML file; without it: the file that the settings name.")
    ] = None,
) -> None:
    """Check a file with a workflow, and show its transitions."""
    chosen = file or services().settings.workflow_file or SHIPPED_FILE
    rows = read_table(chosen)
    shown = [(row["trigger"], ", ".join(row["source"]), row["dest"], row["permission"]) for row in rows]
    table("The workflow", ("trigger", "from", "to", "permission"), [tuple(map(plain, row)) for row in shown])
    console.print(f"{plain(chosen)} is fine: {counted(rows, 'transition')}.", soft_wrap=True)
