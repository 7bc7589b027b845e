"""`lookit-ops build`: ask for builds, look at the requests, cancel them."""

from __future__ import annotations

from typing import Annotated

import typer

from domain.builds.claims import player_repo_url
from domain.db import LARGEST_ID
from domain.find import find_study, find_user
from domain.models import BuildKind, BuildRequest
from lookit_ops.cli.options import Acting, Json, StudyName, platform
from lookit_ops.cli.requests import Last, OnlyStatus, cancel_request, newest
from lookit_ops.cli.show import as_json, coloured, console, counted, plain, table, when
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
    """Ask for a build; a run takes it when it is its turn, as long as `lookit-ops up` (or `dev`) runs somewhere."""
    outside = platform()
    with outside.sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
    outside.repository(player_repo_url(found))  # what the build would refuse is refused at once
    request_id = outside.ledger.request(found.id, user.id, kind, origin="through the command line")
    if json:
        as_json({"request_id": request_id})
    else:
        place = outside.build_queue.places().get(request_id)
        where = f"is queued, at place {place}" if place else "has been taken already"
        console.print(f"Build request {request_id}: {kind.value} of {plain(found.name)} {where}.", soft_wrap=True)


@app.command("list")
def list_builds(
    json: Json = False,
    status: OnlyStatus = "",
    last: Last = 20,
) -> None:
    """List build requests, newest first, with their place in the queue."""
    outside = platform()
    places = outside.build_queue.places()
    found = newest(outside, BuildRequest, status, last)
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
                    "attempt": row.attempt,
                    "next_attempt_at": row.next_attempt_at if row.id in places else None,
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
            coloured(row.status) + _place(row, places.get(row.id)),
            plain(email),
            when(row.requested_at),
            plain(row.error or (row.player_sha or "")[:12] or row.error_code or ""),
        )
        for row, name, email in found
    ]
    table(
        counted(rows, "build request"),
        ("id", "study", "kind", "status", "asked for by", "at (UTC)", "commit, or what went wrong"),
        rows,
    )


def _place(row: BuildRequest, place: int | None) -> str:
    """Where a request stands that waits."""
    if place is None:
        return ""
    return f" (place {place})" if not row.attempt else f" (place {place}, attempt {row.attempt + 1})"


@app.command()
def cancel(
    request_id: Annotated[int, typer.Argument(min=1, max=LARGEST_ID, help="Id of the build request.")], acting: Acting
) -> None:
    """Cancel a build request, waiting or running."""
    outside = platform()
    cancel_request(outside, outside.ledger, "Build request", request_id, acting)


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
        f" Given up, their workers being dead: {', '.join(map(str, done.expired)) or 'none'}"
        " (`build list` says whether they are tried again)."
    )
    if done.failed:
        raise StorageError(
            f"build requests {', '.join(map(str, done.failed))} cannot be ended now, the lines above say why; try again"
        )
