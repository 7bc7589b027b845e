"""`lookit-ops build`: ask for builds, look at the requests, cancel them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from domain.db import LARGEST_ID
from domain.lookup import find_study, find_user
from domain.models import BuildKind, BuildRequest
from domain.requests.build_claim import player_of
from domain.requests.failure import last_error
from lookit_ops.cli.options import Acting, Json, StudyName, services
from lookit_ops.cli.requests import Last, OnlyStatus, cancel_request, newest, place_of, places_in_queue
from lookit_ops.cli.show import as_json, coloured, console, counted, errors, plain, table, when
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from lookit_ops.runs.dead_runs import DeadWork

app = typer.Typer(
    help="Builds: request, list, cancel; put an earlier one back; end or remove what is left behind.",
    no_args_is_help=True,
)


@app.command()
def request(
    study: StudyName,
    acting: Acting,
    kind: Annotated[BuildKind, typer.Option(help="A preview, or a deployment for families.")] = BuildKind.PREVIEW,
    json: Json = False,
) -> None:
    """Ask for a build; a run takes it when it is its turn, as long as `lookit-ops up` (or `dev`) runs somewhere."""
    outside = services()
    with outside.sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
    outside.trust.repository(player_of(found, kind).repository_url)  # what the build would refuse is refused at once
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
    outside = services()
    places = places_in_queue(outside, BuildRequest)
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
                    "failed_attempts": row.failed_attempts,
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
            coloured(row.status) + place_of(row, places.get(row.id)),
            plain(email),
            when(row.requested_at),
            plain(last_error(row) or (row.player_sha or "")[:12] or row.error_code or ""),
        )
        for row, name, email in found
    ]
    table(
        counted(rows, "build request"),
        ("id", "study", "kind", "status", "asked for by", "at (UTC)", "commit, or what went wrong"),
        rows,
    )


@app.command()
def cancel(
    request_id: Annotated[int, typer.Argument(min=1, max=LARGEST_ID, help="Id of the build request.")], acting: Acting
) -> None:
    """Cancel a build request, waiting or running."""
    outside = services()
    cancel_request(outside, outside.ledger, "Build request", request_id, acting)


@app.command()
def reconcile() -> None:
    """End what dead workers have left open, builds and archives, as the sensor `leases` does every ten seconds."""
    from lookit_ops.runs.dead_runs import NOTHING, end_dead_work

    outside = services()
    _ = outside.engine  # before a home for Dagster is made: a database that is not there is named
    instance = _dagster(outside)
    done = end_dead_work(outside, instance)
    dead_runs = _told_to_dagster(instance, outside, done) if instance else 0
    told = [*done.told(), *([f"dead runs: {dead_runs}"] if dead_runs else [])]
    console.print("\n".join(plain(line[:1].upper() + line[1:]) + "." for line in told or [NOTHING]), soft_wrap=True)
    if done.failed:
        raise StorageError(
            f"requests {', '.join(map(str, done.failed))} cannot be ended now, the lines above say why; try again"
        )


def _dagster(outside: Services) -> DagsterInstance | None:
    """Dagster's storage; None, with a word to the operator, if it cannot be opened."""
    from dagster import DagsterInstance

    prepare_dagster_home(outside.settings)
    try:
        return DagsterInstance.get()
    except Exception as error:  # whatever its storage, or somebody's own dagster.yaml, raises
        _say_that_dagster_is_away(outside, error)
        return None


def _told_to_dagster(instance: DagsterInstance, outside: Services, done: DeadWork) -> int:
    """How many runs were dead. The requests have their end whatever Dagster says."""
    from lookit_ops.runs.dead_runs import tell_dagster

    try:
        with instance:
            return tell_dagster(instance, outside, done)
    except Exception as error:
        _say_that_dagster_is_away(outside, error)
        return 0


def _say_that_dagster_is_away(outside: Services, error: Exception) -> None:
    why = outside.redact(str(error).strip().partition("\n")[0])
    errors.print(f"Dagster cannot be told: {plain(why)}", soft_wrap=True, highlight=False)
