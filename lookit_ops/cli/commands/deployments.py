"""`lookit-ops build deployments`, `rollback` and `prune`: what is live in the bucket, what can be, and what goes."""

from __future__ import annotations

from typing import Annotated

import typer

from domain.db import LARGEST_ID
from domain.lookup import find_study, find_user
from domain.models import BuildKind
from domain.requests.rollbacks import approvals_of
from lookit_ops.cli.options import Acting, Json, StudyName, services
from lookit_ops.cli.public_list import keep_page, keep_public_list
from lookit_ops.cli.show import as_json, coloured, console, counted, errors, plain, table, when
from lookit_ops.deployments.manifest import KEPT, folder_of, history
from lookit_ops.deployments.rollback import restorable
from lookit_ops.maintenance.prune_deployments import LONGEST_HOURS, prune_deployments
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.storage.errors import StorageError


def deployments(study: StudyName, json: Json = False) -> None:
    """Show which deployment of a study is live, and which can be put back."""
    outside = services()
    with outside.reading.begin() as session:
        found = find_study(session, study)
        name, folder, study_id = found.name, folder_of(BuildKind.DEPLOYMENT, found.uuid), found.id
    live = history(outside.bucket, folder)[:1]
    shown = [(deployment, deployment in live) for deployment in (*live, *restorable(outside.bucket, folder))]
    ids = [deployment.manifest.request_id for deployment, _ in shown]
    reasons = approvals_of(outside.reading, study_id, [int(number) for number in ids if number.isdecimal()])
    refused = {str(number): reason for number, reason in reasons.items()}
    if json:
        as_json(
            [
                {
                    "request_id": deployment.manifest.request_id,
                    "is_live": is_live,
                    "repository": deployment.manifest.facts.get("repository"),
                    "player_sha": deployment.manifest.facts.get("sha"),
                    "may_be_restored": not is_live and deployment.manifest.request_id not in refused,
                    "why_not": None if is_live else refused.get(deployment.manifest.request_id),
                    "live_since": deployment.live_since,
                    "superseded_at": deployment.superseded_at,
                    "files": len(deployment.manifest.files),
                    "bytes": sum(file.size_bytes for file in deployment.manifest.files),
                }
                for deployment, is_live in shown
            ]
        )
        return
    rows = [
        (
            plain(deployment.manifest.request_id),
            "[green]live[/]" if is_live else _may_be_restored(refused.get(deployment.manifest.request_id)),
            plain(deployment.manifest.facts.get("repository", "")),
            plain(deployment.manifest.facts.get("sha", "")[:12]),
            when(deployment.live_since),
            when(deployment.superseded_at),
            f"{len(deployment.manifest.files):,}",
        )
        for deployment, is_live in shown
    ]
    columns = ("request", "now", "repository", "commit", "live since (UTC)", "until", "files")
    table(f"{counted(rows, 'deployment')} of {plain(name)}", columns, rows)


def _may_be_restored(why_not: str | None) -> str:
    return "can be restored" if why_not is None else f"[red]not approved[/]: {plain(why_not)}"


def rollback(
    study: StudyName,
    acting: Acting,
    to: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST_ID, help="The build request to go back to; without it: the build before."),
    ] = None,
    comment: Annotated[
        str, typer.Option(help="Why, where its approval no longer stands: for users who may approve the study.")
    ] = "",
) -> None:
    """Put an earlier deployment of a study back, at once, with all its files."""
    from lookit_ops.runs.report import report_builds  # Dagster takes a second to import
    from lookit_ops.runs.rollback import roll_back

    outside = services()
    with outside.sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
    done = roll_back(outside, found.id, user.id, to, origin="through the command line", comment=comment)
    prepare_dagster_home(outside.settings)
    report_builds(outside, [done.request_id])
    keep_page(outside, found.id)  # of a study that is approved and not active, families get nothing
    keep_public_list(outside)
    console.print(
        f"{plain(found.name)} shows families what build request {done.restores_id} had built; it is"
        f" {coloured(done.state)}, as before. The rollback is request {done.request_id}.",
        soft_wrap=True,
    )


def prune(
    older_than_hours: Annotated[
        float,
        typer.Option(
            min=1, max=LONGEST_HOURS, help="Hours that a file stays after the last deployment that needed it."
        ),
    ] = 24.0,
    keep: Annotated[
        int, typer.Option(min=1, max=LARGEST_ID, help="Builds of a study that stay, with the live one.")
    ] = KEPT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
) -> None:
    """Remove from the bucket what no kept deployment needs; the job `prune_deployments` does it at night."""
    done = prune_deployments(services(), older_than_hours=older_than_hours, keep=keep, dry_run=dry_run)
    for file in done.removed:
        console.print(f"{plain(file.key)} ({file.size_bytes:,} bytes)", soft_wrap=True, highlight=False)
    for folder, reason in done.left_alone.items():
        errors.print(f"{plain(folder)} was left alone: {plain(reason)}", soft_wrap=True, highlight=False)
    would = "would be removed" if dry_run else "removed"
    console.print(f"{len(done.removed):,} files with {done.freed_bytes:,} bytes {would}.")
    if done.failed:
        raise StorageError(done.trouble)
