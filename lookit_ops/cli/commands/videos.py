"""`lookit-ops videos`: ask for archives of videos, get links, look at the requests, cancel them, list the bucket."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from domain.db import LARGEST_ID
from domain.errors import InvalidRequest
from domain.lookup import find_study, find_user
from domain.models import ArchiveKind, ArchiveRequest
from domain.requests.failure import last_error
from domain.videos.consent_marks import mark_consent_frame
from lookit_ops.archives.catalogue import PLAUSIBLE_SHARE, refresh_catalogue
from lookit_ops.cli.options import Acting, Json, StudyName, services
from lookit_ops.cli.requests import Last, OnlyStatus, cancel_request, newest, place_of, places_in_queue
from lookit_ops.cli.show import as_json, coloured, console, counted, plain, table, when
from lookit_ops.mail_delivery import download_for

app = typer.Typer(
    help="Videos: zip them, get a link, list or cancel requests, catalogue the bucket.", no_args_is_help=True
)

IN_JSON = (
    *("id", "kind", "name_contains", "status", "attempt", "requested_at", "next_attempt_at", "finished_at", "run_id"),
    *("archive_key", "archive_bytes", "video_count", "missing_count", "excluded_count"),
    *("error_code", "error", "failed_attempts"),
)
"""The columns of a request that scripts get."""

RequestId = Annotated[int, typer.Argument(min=1, max=LARGEST_ID, help="Id of the archive request.")]


@app.command("zip")
def zip_videos(
    study: StudyName,
    acting: Acting,
    kind: Annotated[
        ArchiveKind, typer.Option(help="Consent footage, or all videos of responses whose consent is accepted.")
    ] = ArchiveKind.CONSENT,
    name_contains: Annotated[str, typer.Option(help="Only videos whose object name contains this.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Make it here and now, and print the link.")] = False,
    json: Json = False,
) -> None:
    """Ask for a zip of a study's videos; a run makes it when it is its turn, or this command at once with --wait."""
    outside = services()
    with outside.sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
    origin = "through the command line"
    request_id = outside.archive_ledger.request(found.id, user.id, kind, name_contains, origin=origin)
    if not wait:
        if json:
            as_json({"request_id": request_id})
            return
        place = outside.archive_queue.places().get(request_id)
        where = f"is queued, at place {place}" if place else "has been taken already"
        console.print(
            f"Archive request {request_id}: {kind.value} videos of {plain(found.name)} {where}.", soft_wrap=True
        )
        return
    from lookit_ops.inline_run import run_archive

    run_archive(outside, request_id, None if json else console)
    link(request_id, acting, json=json)


@app.command()
def link(request_id: RequestId, acting: Acting, json: Json = False) -> None:
    """Make a new link to an archive that is there already; the study's log records it."""
    outside = services()
    with outside.sessions.begin() as session:
        user = find_user(session, acting)
    offer = outside.archive_links.link(request_id, user.id, origin="through the command line")
    download = download_for(outside, offer)
    if download is None:
        raise InvalidRequest(
            f"the archive of request {request_id} is no longer in {outside.archives.name}; ask for it again with"
            f" `lookit-ops videos zip {offer.study_uuid} --kind {offer.kind.value}`"
        )
    if json:
        as_json(
            {"request_id": request_id, "url": download.url, "bytes": offer.archive_bytes, "minutes": download.minutes}
        )
        return
    console.print(
        f"{plain(offer.file_name)}, {offer.archive_bytes / 1e6:,.1f} MB, for the next {download.minutes} minutes and"
        " for anyone who has this link:",
        soft_wrap=True,
    )
    print(download.url)  # noqa: T201 - rich would wrap it


@app.command("list")
def list_archives(
    json: Json = False,
    status: OnlyStatus = "",
    last: Last = 20,
) -> None:
    """List archive requests, newest first, with their place in the queue."""
    outside = services()
    places = places_in_queue(outside, ArchiveRequest)
    found = newest(outside, ArchiveRequest, status, last)
    if json:
        as_json(
            [
                {
                    **{name: getattr(row, name) for name in IN_JSON},
                    "study": study,
                    "requested_by": email,
                    "place_in_queue": places.get(row.id),
                }
                for row, study, email in found
            ]
        )
        return
    rows = [
        (
            str(row.id),
            plain(name),
            plain(row.kind + (f", {row.name_contains}" if row.name_contains else "")),
            coloured(row.status) + place_of(row, places.get(row.id)),
            plain(email),
            when(row.requested_at),
            plain(last_error(row) or _size(row) or row.error_code or ""),
        )
        for row, name, email in found
    ]
    table(
        counted(rows, "archive request"),
        ("id", "study", "videos", "status", "asked for by", "at (UTC)", "what is in it, or what went wrong"),
        rows,
    )


@app.command()
def mark_consent(
    study: StudyName,
    frame: Annotated[str, typer.Argument(help="The frame's id, as in the names of its videos.")],
    acting: Acting,
) -> None:
    """Mark all videos of a study's frame as consent footage, where their names do not say so; later ones follow."""
    with services().sessions.begin() as session:
        found, user = find_study(session, study), find_user(session, acting)
        count = mark_consent_frame(session, found, user, frame)
    console.print(f"{count} videos of {plain(found.name)} were marked as consent footage.", soft_wrap=True)


@app.command()
def cancel(request_id: RequestId, acting: Acting) -> None:
    """Cancel an archive request, waiting or running."""
    outside = services()
    cancel_request(outside, outside.archive_ledger, "Archive request", request_id, acting)


@app.command()
def catalogue(
    study: Annotated[str, typer.Option(help="UUID or name: only the videos of this study.")] = "",
    plausible_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the rows that may be marked as gone; 1 believes everything.")
    ] = PLAUSIBLE_SHARE,
    json: Json = False,
) -> None:
    """Bring the table of videos up to date from the buckets, and say what has no row and what is gone."""
    outside = services()
    with outside.sessions.begin() as session:
        found = find_study(session, study) if study else None
    report = refresh_catalogue(outside, found, plausible_share=plausible_share)
    if json:
        as_json(asdict(report))
        return
    console.print(
        f"{report.listed} objects in {plain(outside.videos.name)}: {report.added} videos are new, {report.changed}"
        f" changed, {report.returned} came back, {report.moved} are in another bucket than before, {report.gone.count}"
        " are gone.",
        soft_wrap=True,
    )
    rows = [
        ("gone", report.gone),
        ("study has no consent footage", report.unmarked),
        *((finding.value, found) for finding, found in report.without_row.items()),
    ]
    shown = [(what, str(found.count), plain("\n".join(found.examples))) for what, found in rows if found.count]
    shown += [("its bucket is not read", str(count), plain(bucket)) for bucket, count in report.not_read.items()]
    if shown:
        table("What to look at", ("why", "how many", "for example"), shown)


def _size(row: ArchiveRequest) -> str:
    if row.archive_bytes is None:
        return ""
    missing = f", {row.missing_count} missing" if row.missing_count else ""
    videos = f"{row.video_count} video{'' if row.video_count == 1 else 's'}"
    return f"{videos}, {row.archive_bytes / 1e6:,.1f} MB{missing}"
