"""The demonstration: a preview, a review, a deployment and a zip of videos, through the ledgers and Dagster's jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from dagster import DagsterInstance
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from domain.errors import InvalidRequest
from domain.mail.outbox import Delivery
from domain.models import ArchiveKind, ArchiveRequest, BuildKind, BuildRequest, OutboxMail, Study, StudyLog
from domain.requests.failure import last_error
from domain.studies.edit import edit
from domain.studies.workflow import transition
from lookit_ops.archives.catalogue import refresh_catalogue
from lookit_ops.demo.example import example_commits, example_port, example_server, keep_example_settings
from lookit_ops.demo.footage import film
from lookit_ops.demo.people import RESEARCHER, Cast, new_study, populate
from lookit_ops.deployments.manifest import folder_of
from lookit_ops.inline_run import progress, run_archive
from lookit_ops.mail_delivery import LINK_VALID_FOR, deliver_mails, download_for
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.services import Services
from lookit_ops.settings import load_settings
from lookit_ops.terminal import plain

FIRST = "the first build installs its tools and takes some minutes …"


@dataclass(frozen=True, slots=True)
class Zipped:
    """The archive of the demonstration's videos."""

    request_id: int
    file: Path
    videos: int
    size_bytes: int
    link: str


@dataclass(frozen=True, slots=True)
class Act:
    """What one build of the demonstration did."""

    kind: BuildKind
    version: str
    sha: str
    state_before: str
    state_after: str
    files: int
    size_bytes: int
    folder: str
    """In the bucket, as people name it."""


def tell(console: Console, port: int) -> None:
    """Run the demonstration. Raises InvalidRequest where the settings are not a playground's, or a build fails."""
    keep_example_settings(load_settings().home_folder, port)
    settings = load_settings()
    if settings.environment != "development":
        raise InvalidRequest(f"the demonstration makes people up: not in {settings.environment} (LOOKIT_ENVIRONMENT)")
    if settings.s3_videos or settings.gcs_archives:
        raise InvalidRequest(
            "the demonstration makes videos up, and zips them in folders: not with LOOKIT_VIDEOS_BUCKET or"
            " LOOKIT_ARCHIVES_BUCKET; give it an empty home, as in LOOKIT_HOME=/tmp/lookit-demo lookit-ops demo"
        )
    port_of_these = example_port(settings)
    if port_of_these is None:
        raise InvalidRequest(
            f"these settings fetch players from {settings.github_web_url}; the demonstration brings its own: give it an"
            " empty home, as in LOOKIT_HOME=/tmp/lookit-demo lookit-ops demo"
        )
    services = Services(settings)
    services.upgrade_database()
    first, second = example_commits()
    with services.sessions.begin() as session:
        cast = populate(session)
        study = new_study(session, first.sha)
    prepare_dagster_home(settings)
    console.print(f"The study [bold]{plain(study.name)}[/], made by {plain(cast.researcher.name)}.\n")
    with example_server(port_of_these), DagsterInstance.get() as instance:
        preview = _build(console, services, instance, cast, study.id, BuildKind.PREVIEW, "version 1.0")
        _review(console, services, cast, study.id, second.sha)
        deployment = _build(console, services, instance, cast, study.id, BuildKind.DEPLOYMENT, "version 2.0")
    zipped = _zip_videos(console, services, cast, study)
    mails = deliver_mails(services)
    _show(console, services, study.id, study.uuid, [preview, deployment], mails)
    _show_archive(console, services, zipped)


def _build(
    console: Console,
    services: Services,
    instance: DagsterInstance,
    cast: Cast,
    study_id: int,
    kind: BuildKind,
    version: str,
) -> Act:
    from lookit_ops.definitions import defs

    request_id = services.ledger.request(study_id, cast.researcher.id, kind, origin="the demonstration")
    with progress(console, f"{kind.value} of {version}", FIRST):
        run = defs.resolve_job_def("build_experiment").execute_in_process(
            run_config={
                "ops": {"claim": {"config": {"request_id": request_id}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=instance,
            raise_on_error=False,
        )
    with services.sessions.begin() as session:
        request = session.get_one(BuildRequest, request_id)
        study = session.get_one(Study, study_id)
        log = session.scalars(select(StudyLog).where(StudyLog.build_request_id == request_id)).one_or_none()
    if not run.success or log is None:
        raise InvalidRequest(
            f"the {kind} failed: {last_error(request)}\n`lookit-ops study log {study.uuid} --full` tells more"
        )
    console.print(f"  {kind.value} of {version} built from commit {str(request.player_sha)[:12]} [green]✓[/]")
    facts = log.extra["facts"]
    return Act(
        kind=kind,
        version=version,
        sha=request.player_sha or "",
        state_before=log.state_before,
        state_after=log.state_after,
        files=facts["files"],
        size_bytes=facts["bytes"],
        folder=f"{services.bucket.name}/{folder_of(kind, study.uuid)}",
    )


def _review(console: Console, services: Services, cast: Cast, study_id: int, sha: str) -> None:
    """The researcher moves on to the next commit and submits; the site's admin approves."""
    with services.sessions.begin() as session:
        study = session.get_one(Study, study_id)
        edit(session, study, cast.researcher, {"last_known_player_sha": sha})
        transition(session, study, "submit", cast.researcher)
        transition(session, study, "approve", cast.admin, revision=study.revision, is_trusted=services.trust.trusts_url)
    console.print(f"  {cast.researcher.name} chose version 2.0 and submitted, {cast.admin.name} approved [green]✓[/]")


def _zip_videos(console: Console, services: Services, cast: Cast, study: Study) -> Zipped:
    """Families take part, the catalogue finds their videos, and the researcher asks for all that consent lets out."""
    filmed = film(services, study, cast.researcher)
    report = refresh_catalogue(services, study)
    console.print(
        f"  {filmed.families} families took part, {filmed.accepted} consents accepted; the catalogue found"
        f" {report.added} videos, {filmed.size_bytes / 1e6:,.1f} MB [green]✓[/]"
    )
    request_id = services.archive_ledger.request(
        study.id, cast.researcher.id, ArchiveKind.ALL, origin="the demonstration"
    )
    run_archive(services, request_id, console)
    offer = services.archive_links.link(request_id, cast.researcher.id, origin="the demonstration")
    download = download_for(services, offer)
    if download is None:
        raise InvalidRequest(f"the archive of request {request_id} is not in {services.archives.name}")
    with services.sessions.begin() as session:
        request = session.get_one(ArchiveRequest, request_id)
    console.print(f"  a zip of {request.video_count} videos was made and mailed [green]✓[/]")
    file = services.settings.local_archives / offer.archive_key
    return Zipped(request_id, file, request.video_count or 0, offer.archive_bytes, download.url)


def _show_archive(console: Console, services: Services, zipped: Zipped) -> None:
    size = f"{zipped.videos} videos, {zipped.size_bytes / 1e6:,.1f} MB"
    minutes = int(LINK_VALID_FOR.total_seconds() // 60)
    console.print(f"  archive     {zipped.file} ({size})", soft_wrap=True, highlight=False)
    console.print(f"\nIts link, for {minutes} minutes, while `make dev` or `lookit-ops serve` runs:", highlight=False)
    console.print(f"  {zipped.link}", soft_wrap=True, highlight=False)
    console.print(f"A new one: .venv/bin/lookit-ops videos link {zipped.request_id} --as {RESEARCHER}", highlight=False)


def _show(console: Console, services: Services, study_id: int, uuid: UUID, acts: list[Act], mails: Delivery) -> None:
    with services.sessions.begin() as session:
        logs = list(session.scalars(select(StudyLog).where(StudyLog.study_id == study_id).order_by(StudyLog.id)))
        told = dict(
            session.execute(
                select(OutboxMail.template, func.count(OutboxMail.id))
                .where(OutboxMail.study_id == study_id)
                .group_by(OutboxMail.template)
            )
            .tuples()
            .all()
        )
    shown = Table("build", "player", "commit", "state", "files", "size", title="\nWhat was built", title_justify="left")
    for act in acts:
        shown.add_row(
            act.kind.value,
            act.version,
            act.sha[:12],
            f"{act.state_before} → {act.state_after}",
            str(act.files),
            f"{act.size_bytes / 1000:,.0f} kB",
        )
    console.print(shown)
    console.print(
        "\nThe study's log: " + ", ".join(f"{log.action} ({log.state_before} → {log.state_after})" for log in logs)
    )
    console.print("Its mails: " + ", ".join(f"{count} × {template}" for template, count in sorted(told.items())))
    if mails.failed or mails.delayed:
        console.print(f"[red]{mails.failed} mails failed, {mails.delayed} are delayed: `lookit-ops mail list`[/]")
    console.print("\nWhere to look:", highlight=False)
    for act in acts:
        console.print(f"  {act.kind.value:<11} {act.folder}/index.html", soft_wrap=True, highlight=False)
    console.print(f"  mails       {services.settings.mails}", soft_wrap=True, highlight=False)
    console.print(f"  log         .venv/bin/lookit-ops study log {uuid}", soft_wrap=True, highlight=False)
    console.print("  all of it   make dev, then http://127.0.0.1:3000 for Dagster's UI on this data", highlight=False)
