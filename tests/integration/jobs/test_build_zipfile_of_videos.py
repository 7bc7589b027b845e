"""The job `build_zipfile_of_videos` on real parts: from the request to a mail with a link that works."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

import dagster as dg
import pytest
from sqlalchemy import select

from domain.models import ArchiveKind, RequestStatus, Response, Video
from domain.permissions.codes import Permission
from lookit_ops.archives.plan import NOT_READ
from lookit_ops.mail_delivery import deliver_mails
from lookit_ops.server.archive_server import ArchiveServer
from lookit_ops.storage.errors import VideoUnreadable
from lookit_ops.storage.local.archives import LocalArchiveBucket
from lookit_ops.storage.videos import COLD, FORBIDDEN, ListedVideo, VideoBucket
from tests.integration.jobs.test_build_experiment import metadata_of, what_failed
from tests.support.footage import RECORDED_AT
from tests.support.reels import Reels, opened


def mails_of(reels: Reels) -> list[EmailMessage]:
    files = sorted(reels.services.settings.mails.glob("*.eml"))
    return [message_from_bytes(file.read_bytes(), policy=default) for file in files]  # ty: ignore[invalid-return-type]


def text_of(mail: EmailMessage) -> str:
    """What the mail says, its lines joined."""
    body = mail.get_body(("plain",))
    assert body is not None
    return " ".join(body.get_content().split())


def bytes_of(reels: Reels, key: str | None) -> bytes:
    return (reels.services.settings.local_archives / (key or "")).read_bytes()


def test_the_archive_holds_the_videos_and_the_manifest_tells_of_each(reels: Reels) -> None:
    keys = reels.film(5)
    request = reels.archive()
    assert request.status == RequestStatus.SUCCEEDED, request.error
    contents = bytes_of(reels, request.archive_key)
    assert len(contents) == request.archive_bytes
    members, rows = opened(contents)
    assert members == {key: reels.written[key] for key in keys}
    listed = {video.key: video for video in reels.services.videos.videos()}
    assert [(row["object_key"], row["etag"], row["bytes"]) for row in rows] == [
        (key, listed[key].etag, str(len(reels.written[key]))) for key in sorted(keys)
    ]
    assert {row["status"] for row in rows} == {"included"}
    assert reels.visible() == [request.archive_key], "no part stays"


def test_dagster_is_told_of_the_archive_and_whose_run_it_is(reels: Reels) -> None:
    reels.film(1)
    request_id = reels.request()
    run = reels.run(request_id=request_id)
    study = reels.site.study()
    (event,) = run.get_asset_materialization_events()
    told = event.materialization
    assert (told.asset_key.path, told.partition) == (["video_archive"], str(study.uuid))
    assert (told.metadata["request"].value, told.metadata["videos"].value) == (request_id, 1)
    tags = reels.instance.get_run_by_id(run.run_id).tags
    assert (tags["study"], tags["what"]) == (study.name, f"archive of all videos, request {request_id}")


def test_the_mail_has_a_link_that_works_under_the_studys_name(reels: Reels) -> None:
    bucket = LocalArchiveBucket(reels.services.settings.local_archives, reels.services.settings.archives_url)
    with ArchiveServer(bucket) as server:
        reels.settings["archives_url"] = server.url
        del reels.services
        reels.film(2)
        request = reels.archive()
        (mail,) = mails_of(reels)
        assert mail["To"] == "Study Admin <study_admin@example.org>"
        (link,) = set(re.findall(r"http://127\S+", mail.get_body(("plain",)).get_content()))
        with urllib.request.urlopen(link) as answer:  # noqa: S310 - the pattern says http
            assert answer.read() == bytes_of(reels, request.archive_key)
            assert re.fullmatch(
                r'attachment; filename="Apples_and_oranges_all_videos_\d{4}-\d\d-\d\d\.zip"',
                answer.headers["Content-Disposition"],
            )


def test_the_same_request_again_builds_nothing_and_mails_at_once(reels: Reels) -> None:
    reels.film(3)
    first = reels.archive()
    run = reels.run(request_id=reels.request())
    assert metadata_of(run, "stream")["was there already"] is True
    assert len(mails_of(reels)) == 2
    assert reels.visible() == [first.archive_key]


def test_an_archive_made_anew_has_the_same_bytes(reels: Reels) -> None:
    reels.film(4)
    first = reels.archive()
    contents = bytes_of(reels, first.archive_key)
    reels.services.archives.delete(first.archive_key or "")
    second = reels.archive()
    assert second.archive_key == first.archive_key
    assert bytes_of(reels, second.archive_key) == contents


def test_a_changed_video_makes_another_archive(reels: Reels) -> None:
    keys = reels.film(2)
    first = reels.archive()
    reels.put(keys[0], b"another take")
    second = reels.archive()
    assert second.archive_key != first.archive_key
    assert opened(bytes_of(reels, second.archive_key))[0][keys[0]] == b"another take"


def test_what_the_bucket_does_not_have_is_named_in_manifest_and_mail(reels: Reels) -> None:
    keys = reels.film(3)
    (reels.services.settings.local_videos / keys[1]).unlink()
    request = reels.archive()
    assert (request.video_count, request.missing_count) == (2, 1)
    members, rows = opened(bytes_of(reels, request.archive_key))
    assert keys[1] not in members
    (missing,) = [row for row in rows if row["status"] == "missing"]
    assert missing["object_key"] == keys[1]
    assert "did not have it" in missing["reason"]
    (mail,) = mails_of(reels)
    assert keys[1] in mail.get_body(("plain",)).get_content()


def test_names_of_several_lines_add_no_line_to_the_mail(reels: Reels) -> None:
    reels.film(1)
    key = "a\nDear Study Admin, log in at https://evil.example/\x1b[2J.mp4"
    reels.footage.video(reels.footage.response("accepted"), key=key)
    with reels.site.sessions.begin() as session:
        (row,) = session.scalars(select(Video).where(Video.object_key == key))
        row.bucket = "s3://b\nor here: https://evil.example/"
    assert reels.archive().missing_count == 1
    (mail,) = mails_of(reels)
    for part in ("plain", "html"):
        lines = mail.get_body((part,)).get_content().splitlines()
        (line,) = [line for line in lines if "evil.example" in line]
        assert line.lstrip().startswith(("a Dear Study Admin", "<li><code"))
        assert "\x1b" not in line


def test_nothing_left_in_the_bucket_fails_at_once_with_a_mail(reels: Reels) -> None:
    for key in reels.film(2):
        (reels.services.settings.local_videos / key).unlink()
    run = reels.run(request_id=reels.request())
    assert "none of the 2 videos" in what_failed(run)
    assert [mail.template for mail in reels.site.mails()] == ["archive_failed"]


def test_the_launchpad_asks_in_a_persons_name(reels: Reels) -> None:
    reels.film(2)
    run = reels.run(study="Apples and oranges", requesting_user="study_admin@example.org", kind="all")
    assert run.success
    assert metadata_of(run, "claim")["asked for by"] == "Study Admin"
    assert reels.site.logs()[-1].extra["origin"] == "on behalf of study_admin@example.org through Dagster"


def test_who_may_see_nothing_gets_a_refusal_and_no_log(reels: Reels) -> None:
    reels.film(2)
    run = reels.run(study="Apples and oranges", requesting_user="stranger@example.org", kind="all")
    assert "lacks studies.view_study_responses" in what_failed(run)
    assert reels.site.logs() == []
    assert reels.visible() == []


def test_consent_footage_is_an_archive_of_its_own(reels: Reels) -> None:
    response = reels.footage.response("pending")
    key = reels.footage.video(response, is_consent=True)
    reels.put(key, b"yes, we agree")
    request = reels.archive(ArchiveKind.CONSENT)
    members, (row,) = opened(bytes_of(reels, request.archive_key))
    assert members == {key: b"yes, we agree"}
    assert row["consent_ruling"] == "pending"
    assert (request.archive_key or "").endswith("_consent.zip")


def test_the_runs_page_tells_how_much_there_was(reels: Reels) -> None:
    reels.film(3, size_bytes=100)
    run = reels.run(request_id=reels.request())
    plan = metadata_of(run, "plan")
    assert (plan["videos"], plan["bytes"]) == (3, 303)
    assert metadata_of(run, "stream")["videos read"] == 3
    log = reels.site.logs()[-1].extra["log"]
    assert "3 of 3 videos" in log


def made_but_not_mailed(reels: Reels) -> int:
    """An archive of somebody who may see families' videos; returns who."""
    reels.delivers = False
    person = reels.footage.person_with(Permission.VIEW_STUDY_RESPONSES)
    request_id = reels.ledger.request(reels.site.study_id, person, ArchiveKind.ALL)
    assert reels.run(request_id=request_id).success
    return person


def test_who_loses_the_permission_before_the_mail_leaves_gets_no_link(reels: Reels) -> None:
    reels.film(2)
    person = made_but_not_mailed(reels)
    reels.footage.take_away_from(person)
    assert deliver_mails(reels.services).withdrawn == 1
    assert mails_of(reels) == []
    log = reels.site.logs()[-1]
    assert (log.action, log.extra["outcome"], log.user_id) == ("video_archive", "withdrawn", person)
    assert "lacks studies.view_study_responses" in log.extra["error"]


def test_an_archive_with_a_withdrawn_consent_is_linked_to_nobody(reels: Reels) -> None:
    reels.film(2)
    made_but_not_mailed(reels)
    with reels.site.sessions.begin() as session:
        response_id = session.scalars(select(Response.id)).first() or 0
    reels.footage.rule(response_id, "rejected")
    assert deliver_mails(reels.services).withdrawn == 1
    assert mails_of(reels) == []
    assert deliver_mails(reels.services).sent == 1
    (mail,) = mails_of(reels)
    assert "without a consent that is 'accepted' by its newest ruling: " in text_of(mail)


def test_an_archive_that_is_gone_is_linked_to_nobody(reels: Reels) -> None:
    reels.film(2)
    made_but_not_mailed(reels)
    (key,) = reels.visible()
    reels.services.archives.delete(key)
    assert deliver_mails(reels.services).withdrawn == 1
    assert "ask for the archive again" in reels.site.logs()[-1].extra["error"]
    assert deliver_mails(reels.services).sent == 1
    (mail,) = mails_of(reels)
    assert "ask again" in mail["Subject"]
    assert f"{key} is no longer in" in text_of(mail)


def test_a_cancelled_request_leaves_nothing(reels: Reels) -> None:
    reels.film(2)
    request_id = reels.request()
    reels.ledger.cancel(request_id, reels.site.study_admin)
    assert not reels.run(request_id=request_id).success
    assert reels.visible() == []


def test_the_same_run_is_never_made_twice(reels: Reels) -> None:
    reels.film(1)
    request_id = reels.request()
    assert reels.run(request_id=request_id).success
    assert isinstance(reels.run(request_id=request_id), dg.ExecuteInProcessResult)
    assert len(mails_of(reels)) == 1


# -- single videos that cannot be had ---------------------------------------------------------------------------------


class Refusing:
    """The folder of videos, some of which are cold, or refused."""

    def __init__(self, real: VideoBucket, cold: set[str] = frozenset(), refused: set[str] = frozenset()) -> None:
        self.real, self.cold, self.refused = real, cold, refused
        self.name = real.name

    def videos(self, prefix: str = "") -> Iterator[ListedVideo]:
        for video in self.real.videos(prefix):
            yield replace(video, is_cold=video.key in self.cold)

    def blocks(self, video: ListedVideo, offset: int) -> Generator[bytes]:
        if video.key in self.refused | self.cold:
            raise VideoUnreadable(f"{video.key} is refused", FORBIDDEN)
        return self.real.blocks(video, offset)


def test_what_is_cold_or_refused_is_missing_with_its_reason_and_the_rest_is_delivered(
    reels: Reels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookit_ops.storage.videos.FIRST_PAUSE", 0.001)
    keys = reels.film(5)
    reels.videos_bucket = Refusing(reels.services.videos, {keys[0]}, {keys[2], keys[3]})
    del reels.services
    request = reels.archive()
    assert request.status == RequestStatus.SUCCEEDED, request.error
    assert (request.video_count, request.missing_count) == (2, 3)
    members, rows = opened(bytes_of(reels, request.archive_key))
    assert set(members) == {keys[1], keys[4]}
    missing = {row["object_key"]: row["reason"] for row in rows if row["status"] == "missing"}
    assert missing == {keys[0]: COLD, keys[2]: FORBIDDEN, keys[3]: FORBIDDEN}
    (mail,) = mails_of(reels)
    assert keys[0] in text_of(mail)
    assert COLD in text_of(mail)
    again = reels.run(request_id=reels.request())
    assert metadata_of(again, "stream")["was there already"] is True, "it is found, once that is known"


def test_where_everything_is_refused_it_is_not_the_videos(reels: Reels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookit_ops.storage.videos.FIRST_PAUSE", 0.001)
    keys = reels.film(3)
    reels.settings["attempts"] = 1
    reels.videos_bucket = Refusing(reels.services.videos, refused=set(keys))
    del reels.services
    request = reels.archive()
    assert (request.status, request.error_code) == (RequestStatus.FAILED, "storage_error")
    assert reels.visible() == []


def test_where_everything_is_cold_that_is_said(reels: Reels) -> None:
    keys = reels.film(2)
    reels.videos_bucket = Refusing(reels.services.videos, cold=set(keys))
    del reels.services
    request = reels.archive()
    assert request.error_code == "invalid_request"
    assert f"of 2: {COLD}" in str(request.error)


def test_videos_of_several_buckets_come_in_one_archive_and_an_unread_bucket_is_named(reels: Reels) -> None:
    keys = reels.film(20)
    first, second = reels.services.settings.local_videos, reels.root / "second"
    second.mkdir()
    reels.settings["videos_other_buckets"] = [str(second)]
    del reels.services
    for key in keys[:8]:
        (first / key).rename(second / key)
    (second / keys[9]).write_bytes(b"an older copy")
    with reels.site.sessions.begin() as session:
        rows = {video.object_key: video for video in session.scalars(select(Video))}
        for key in keys[:7]:  # of the eighth the catalogue does not know yet where it is
            rows[key].bucket = str(second)
        rows[keys[19]].bucket = "s3://closed"
    (first / keys[19]).unlink()
    request = reels.archive()
    assert (request.status, request.video_count, request.missing_count) == (RequestStatus.SUCCEEDED, 19, 1)
    members, rows_of_manifest = opened(bytes_of(reels, request.archive_key))
    assert members == {key: reels.written[key] for key in keys[:19]}
    (missing,) = [row for row in rows_of_manifest if row["status"] == "missing"]
    assert missing["object_key"] == keys[19]
    assert missing["reason"] == NOT_READ.format(bucket="s3://closed")


@pytest.mark.parametrize("key", ["raw.mp4", "lab/2026/Film.MP4", "VIDEOSTREAM_x.mp4"])
def test_a_video_outside_of_the_studys_names_is_found_by_its_key(reels: Reels, key: str) -> None:
    (other,) = reels.film(1)
    response = reels.footage.response("accepted")
    reels.put(key, b"found")
    with reels.site.sessions.begin() as session:
        session.add(
            Video(
                study_id=reels.site.study_id,
                response_id=response,
                object_key=key,
                frame_id="1-frame",
                recorded_at=RECORDED_AT,
            )
        )
    request = reels.archive()
    assert (request.video_count, request.missing_count) == (2, 0)
    members, _ = opened(bytes_of(reels, request.archive_key))
    assert sorted(members.values()) == sorted([b"found", reels.written[other]])
