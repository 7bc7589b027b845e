"""`lookit-ops build`: ask for builds, look at the requests, cancel them."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy import select

from domain.builds.ledger import player_repo_url
from domain.errors import InvalidRequest
from domain.find import find_study, find_user
from domain.models import BuildKind, BuildRequest, RequestStatus, Study, User
from lookit_ops.cli.options import LARGEST_ID, MOST_ROWS, Acting, Json, StudyName, platform
from lookit_ops.cli.show import as_json, coloured, console, plain, table, when
from lookit_ops.dagster_home import prepare_dagster_home
from lookit_ops.reconcile import reconcile_builds
from lookit_ops.storage.experiments import StorageError

app = typer.Typer(help="Builds: request, list, cancel.", no_args_is_help=True)


@app.command()
def request(
    study: StudyName,
    acting: Acting,
    kind: Annotated[BuildKind, typer.Option(help="A preview, or a deployment for families.")] = BuildKind.PREVIEW,
    json: Json = False,
) -> None:
    """Ask for a build; the job `build_experiment` runs it, once somebody launches it with the request's id."""
    outside = platform()
    with outside.sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
    outside.repository(player_repo_url(found))  # what the build would refuse is refused at once
    request_id = outside.ledger.request(found.id, user.id, kind, origin="through the command line")
    if json:
        as_json({"request_id": request_id})
    else:
        console.print(f"Build request {request_id}: {kind.value} of {plain(found.name)} is queued.", soft_wrap=True)
        _say_how_to_run(request_id)


def _say_how_to_run(request_id: int) -> None:
    console.print(
        "Nothing runs queued requests by itself yet: launch the job build_experiment in Dagster with"
        f" `request_id: {request_id}`.",
        soft_wrap=True,
    )


@app.command("list")
def list_builds(
    json: Json = False,
    status: Annotated[str, typer.Option(help="Only requests with this status.")] = "",
    last: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="How many requests, the newest.")] = 20,
) -> None:
    """List build requests, newest first, with their place in the queue."""
    if status and status not in set(RequestStatus):
        raise InvalidRequest(f"there is no status {status!r}; there are {', '.join(RequestStatus)}")
    query = (
        select(BuildRequest, Study.name, User.email)
        .join(Study, Study.id == BuildRequest.study_id)
        .join(User, User.id == BuildRequest.requested_by_id)
        .order_by(BuildRequest.id.desc())
        .limit(last)
    )
    if status:
        query = query.where(BuildRequest.status == status)
    waiting = select(BuildRequest.id).where(BuildRequest.status == RequestStatus.QUEUED).order_by(BuildRequest.id)
    with platform().sessions.begin() as session:
        places = {request_id: place for place, request_id in enumerate(session.scalars(waiting), start=1)}
        found = [(row, name, email) for row, name, email in session.execute(query)]
    if json:
        as_json(
            [
                {
                    "id": row.id,
                    "study": name,
                    "kind": row.kind,
                    "restores_id": row.restores_id,
                    "status": row.status,
                    "place_in_queue": places.get(row.id),
                    "requested_by": email,
                    "requested_at": row.requested_at,
                    "finished_at": row.finished_at,
                    "run_id": row.run_id,
                    "player_sha": row.player_sha,
                    "error_code": row.error_code,
                    "error": row.error,
                }
                for row, name, email in found
            ]
        )
        return
    rows = [
        (
            str(row.id),
            plain(name),
            plain(row.kind) if row.restores_id is None else f"rollback to {row.restores_id}",
            coloured(row.status) + (f" (place {places[row.id]})" if row.id in places else ""),
            plain(email),
            when(row.requested_at),
            plain(row.error or (row.player_sha or "")[:12] or row.error_code or ""),
        )
        for row, name, email in found
    ]
    table(
        f"{len(rows)} build requests",
        ("id", "study", "kind", "status", "asked for by", "at (UTC)", "commit, or what went wrong"),
        rows,
    )
    if queued := [row.id for row, _name, _email in found if row.id in places]:
        _say_how_to_run(min(queued))


@app.command()
def cancel(
    request_id: Annotated[int, typer.Argument(min=1, max=LARGEST_ID, help="Id of the build request.")], acting: Acting
) -> None:
    """Cancel a build request, waiting or running."""
    outside = platform()
    with outside.sessions.begin() as session:
        user = find_user(session, acting)
    if outside.ledger.cancel(request_id, user.id) is RequestStatus.CANCELLED:
        console.print(f"Build request {request_id} is cancelled.")
    else:
        seconds = outside.settings.lease / 4
        console.print(f"Build request {request_id} is running; its worker stops within {seconds:.0f} seconds.")


@app.command()
def reconcile() -> None:
    """End the builds whose workers have died: forward if their index.html is live, back otherwise."""
    outside = platform()
    done = reconcile_builds(outside)
    if done.rolled_forward:
        from lookit_ops.assets.experiments import report_builds

        prepare_dagster_home(outside.settings)
        report_builds(outside, done.rolled_forward)
    console.print(
        f"Rolled forward: {', '.join(map(str, done.rolled_forward)) or 'none'}."
        f" Failed, their worker being dead: {', '.join(map(str, done.expired)) or 'none'}."
    )
    if done.failed:
        raise StorageError(
            f"build requests {', '.join(map(str, done.failed))} cannot be ended now, the lines above say why; try again"
        )
