"""`lookit-ops workflow`: pictures of the workflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import select

from domain.errors import InvalidRequest
from domain.find import find_study
from domain.models import State, StudyLog
from domain.studies.diagram import Format, draw
from lookit_ops.cli.options import platform
from lookit_ops.cli.show import console

app = typer.Typer(help="The workflow of studies.", no_args_is_help=True)
FORMATS: dict[str, Format] = {".png": "png", ".svg": "svg"}


@app.callback()
def workflow() -> None:
    """The workflow of studies."""


@app.command()
def diagram(
    study: Annotated[str, typer.Argument(metavar="[STUDY]", help="UUID or name of a study to mark its state.")] = "",
    roi: Annotated[bool, typer.Option("--roi", help="Only where the study came from, is, and can go.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .png or .svg.")] = Path("workflow.png"),
) -> None:
    """Draw the workflow, or one study's place in it."""
    form = FORMATS.get(output.suffix.lower())
    if form is None:
        raise InvalidRequest(f"{output} is neither .png nor .svg; name the file accordingly")
    if roi and not study:
        raise InvalidRequest("--roi draws the region of one study: name the study")
    state = came_from = None
    if study:
        with platform().sessions.begin() as session:
            found = find_study(session, study)
            state = State(found.state_before_build or found.state)
            query = (
                select(StudyLog.state_before)
                .where(StudyLog.study_id == found.id, StudyLog.state_after == state, StudyLog.state_before != state)
                .order_by(StudyLog.id.desc())
            )
            before = session.scalar(query.limit(1))
            came_from = State(before) if before else None
    picture = draw(form, state=state, came_from=came_from, region_of_interest=roi)
    try:
        output.write_bytes(picture)
    except OSError as error:
        raise InvalidRequest(f"{output} cannot be written: {error.strerror}") from error
    console.print(f"{output} written, {len(picture):,} bytes.")
