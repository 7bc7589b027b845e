"""Mails as people read them: every template renders, nothing a study or person is called can break out of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from importlib import resources
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from sqlalchemy.orm.attributes import set_committed_value

from domain.mail.compose import Composer, Download, Links
from domain.mail.outbox import MailDelayed
from domain.models import OutboxMail, User

STUDY = "00000000-0000-4000-8000-000000000001"
SHA = "0123456789abcdef0123456789abcdef01234567"
LINK = f"https://bucket.test/{'s' * 2000}?a=1&b=2"
UNTIL = datetime(2026, 3, 1, 11, 42, 59, tzinfo=timezone(timedelta(hours=1)))
COMPOSE = Composer(
    "lookit@mail.example.org",
    Links(platform="https://platform.test/", studies="https://studies.test/", previews="https://previews.test/"),
    downloads=lambda mail: Download(LINK, timedelta(minutes=30), UNTIL),
)
BUILD = {
    "outcome": "succeeded",
    "kind": "preview",
    "request_id": 7,
    "run_id": "run-1",
    "attempt": 1,
    "origin": "",
    "repository": "lookit/ember-lookit-frameplayer",
    "sha": SHA,
    "sha_reason": "The study names no SHA, so the newest commit of master was built.",
    "study": {"name": "Apples & oranges", "uuid": STUDY},
    "requested_by": "Rita Researcher",
    "state_after": "approved",
    "deployed": True,
}
MOVE = {
    "study": {"name": "Apples & oranges", "uuid": STUDY},
    "headline": "changes requested",
    "sentence": "Changes to your study are requested.",
    "state_before": "submitted",
    "state_after": "rejected",
    "moved_by": "Sam Siteadmin",
    "comment": "Please shorten it.\nAnd add a picture.",
}
ARCHIVE = {
    "outcome": "succeeded",
    "kind": "consent",
    "name_contains": "",
    "request_id": 9,
    "attempt": 1,
    "study": {"name": "Apples & oranges", "uuid": STUDY},
}
READY = {
    **ARCHIVE,
    "archive_key": "a.zip",
    "archive_bytes": 1_234_567_890,
    "video_count": 12,
    "missing_count": 0,
    "missing": [],
    "without_permission": 0,
    "without_consent": 0,
    "was_there": False,
    "archive": {"request_id": 9, "key": "a.zip", "requester_id": 1},
}
LACKING = {
    "kind": "all",
    "name_contains": "my-frame",
    "video_count": 1,
    "missing_count": 3,
    "missing": [{"object_key": "videoStream_1.mp4", "reason": "not in the bucket"}] * 2,
    "without_permission": 4,
    "without_consent": 5,
}
EDITED = {"study": {"name": "Apples & oranges", "uuid": STUDY}, "revision": 3, "edited_by": "Rita Researcher"}
MAILS: dict[str, tuple[str, dict[str, Any]]] = {
    "a study was changed during its review": ("study_edited", EDITED),
    "a preview is ready": ("build_succeeded", BUILD),
    "a study is deployed": ("build_succeeded", {**BUILD, "kind": "deployment", "state_after": "active"}),
    "a deployment failed": (
        "build_failed",
        {**BUILD, "kind": "deployment", "step": "build", "error": "ember build ended with status 1:\nno such module"},
    ),
    "a first preview failed early": (
        "build_failed",
        {**BUILD, "repository": None, "sha": None, "sha_reason": None, "deployed": False, "step": "x", "error": "y"},
    ),
    "a study is rolled back": (
        "build_succeeded",
        {**BUILD, "kind": "rollback", "restores": 5, "sha_reason": "This is what build request 5 had built."},
    ),
    "a rollback failed": (
        "build_failed",
        {**BUILD, "kind": "rollback", "restores": 5, "step": "rollback", "error": "the bucket is away"},
    ),
    "a preview was cancelled": ("build_cancelled", {**BUILD, "cancelled_by": "Sam Siteadmin"}),
    "a waiting preview was replaced": ("build_replaced", {**BUILD, "attempt": 0, "replaced_by": "Dora Designer"}),
    "a preview to be tried again was replaced": ("build_replaced", {**BUILD, "replaced_by": "Dora Designer"}),
    "an archive is ready": ("archive_ready", READY),
    "an archive is ready but lacks some": ("archive_ready", {**READY, **LACKING}),
    "an archive failed": (
        "archive_failed",
        {**ARCHIVE, "name_contains": "my-frame", "step": "stream", "error": "tried 5 times;\nthe last time: reset"},
    ),
    "an archive cannot be given out any more": (
        "archive_withdrawn",
        {**ARCHIVE, "name_contains": "my-frame", "reason": "2 are gone", "again": "lookit-ops videos zip 'x'"},
    ),
    "an archive was cancelled": ("archive_cancelled", {**ARCHIVE, "kind": "all", "cancelled_by": "Sam Siteadmin"}),
    "changes are requested": ("study_moved", MOVE),
    "a study moved without a comment": ("study_moved", {**MOVE, "comment": ""}),
}
every_mail = pytest.mark.parametrize(("template", "context"), list(MAILS.values()), ids=list(MAILS))


def mail(template: str, context: dict[str, Any], name: str = "Rita Researcher") -> OutboxMail:
    mail = OutboxMail(event="study_log:1", recipient_id=1, template=template, context=context)
    mail.uuid, mail.created_at = UUID(int=1), datetime(2026, 3, 1, 10, tzinfo=UTC)
    set_committed_value(mail, "recipient", User(email="rita@example.org", name=name))
    return mail


def received(message: EmailMessage) -> EmailMessage:
    """The message as the recipient's program parses it from the bytes on the wire."""
    return BytesParser(policy=policy.default).parsebytes(message.as_bytes(policy=policy.SMTP))


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body is not None
    return body.get_content().replace("\r\n", "\n")


def renamed(context: dict[str, Any], name: str) -> dict[str, Any]:
    return {**context, "study": {**context["study"], "name": name}}


def test_there_is_a_mail_here_for_each_template() -> None:
    files = [file.name for file in resources.files("domain.mail").joinpath("templates").iterdir()]
    templates = {name.split(".")[0] for name in files if not name.startswith("layout")}
    assert {template for template, _ in MAILS.values()} == templates
    assert sorted(files) == sorted(
        ["layout.html.j2", *(f"{name}.{form}.j2" for name in templates for form in ("txt", "html"))]
    )


@every_mail
def test_each_mail_has_headers_text_and_html(template: str, context: dict[str, Any]) -> None:
    message = received(COMPOSE(mail(template, context)))
    assert message["From"] == "Lookit <lookit@mail.example.org>"
    assert message["To"] == "Rita Researcher <rita@example.org>"
    assert message["Message-ID"] == "<outbox-00000000-0000-0000-0000-000000000001@mail.example.org>"
    # The mail has waited since March: "30 minutes from the moment when this mail was sent" counts from its date.
    assert timedelta() <= datetime.now(UTC) - message["Date"].datetime < timedelta(minutes=1)
    assert message["Auto-Submitted"] == "auto-generated"
    assert "Apples & oranges" in message["Subject"]
    text, html = part(message, "plain"), part(message, "html")
    assert text.startswith("Hello Rita Researcher,\n\n")
    assert "Apples & oranges" in text
    assert "<p>Hello Rita Researcher,</p>" in html
    assert "Apples &amp; oranges" in html
    for body in (text, html):
        assert f"https://platform.test/exp/studies/{STUDY}/" in body
        assert "None" not in body


@every_mail
def test_the_text_has_no_gaps_where_nothing_is_to_say(template: str, context: dict[str, Any]) -> None:
    text = part(COMPOSE(mail(template, context)), "plain")
    assert "\n\n\n" not in text
    assert not re.search(r"[ \t]+$", text, re.MULTILINE)
    assert text == text.strip() + "\n"


@pytest.mark.parametrize(
    ("what", "subject", "sentences"),
    [
        (
            "a preview is ready",
            "Preview of Apples & oranges is ready",
            [f"https://previews.test/studies/{STUDY}/", SHA, "names no SHA", "Rita Researcher", "lookit/ember"],
        ),
        (
            "a study is deployed",
            "Apples & oranges is deployed",
            [f"https://studies.test/studies/{STUDY}/", SHA, "names no SHA", "now active"],
        ),
        (
            "a deployment failed",
            "Deployment of Apples & oranges failed",
            ["build", "no such module", "still there", SHA, "names no SHA", "approved"],
        ),
        ("a first preview failed early", "Preview of Apples & oranges failed", ["approved", "Rita Researcher"]),
        ("a preview was cancelled", "Preview of Apples & oranges was cancelled", ["by Sam Siteadmin", "approved"]),
        (
            "an archive is ready",
            "Consent videos of Apples & oranges are ready",
            [
                "consent videos",
                "12 videos, 1.2 GB",
                "30 minutes",
                "until 2026-03-01 10:42 UTC",
                "MANIFEST.csv in the archive lists every video.",
            ],
        ),
        (
            "an archive is ready but lacks some",
            "Videos of Apples & oranges are ready",
            [
                "my-frame",
                "1 video, 1.2 GB",
                "3 videos are missing",
                "videoStream_1.mp4",
                "not in the bucket",
                "and 1 more",
                "4 for which you lack the permission",
                "5 without an accepted consent",
                "and what is missing.",
            ],
        ),
        (
            "an archive failed",
            "Archive of consent videos of Apples & oranges failed",
            ["stream", "the last time: reset", "my-frame", "archive request 9", "untouched"],
        ),
        (
            "an archive cannot be given out any more",
            "Archive of consent videos of Apples & oranges: please ask again",
            ["consent videos", "my-frame", "2 are gone", "lookit-ops videos zip"],
        ),
        ("an archive was cancelled", "Archive of videos of Apples & oranges was cancelled", ["by Sam Siteadmin"]),
        (
            "changes are requested",
            "Apples & oranges: changes requested",
            ["Changes to your study are requested.", "submitted", "rejected", "Sam Siteadmin", "Please shorten it."],
        ),
        ("a study moved without a comment", "Apples & oranges: changes requested", ["rejected"]),
    ],
)
def test_each_mail_says_what_its_reader_wants_to_know(what: str, subject: str, sentences: list[str]) -> None:
    message = COMPOSE(mail(*MAILS[what]))
    assert message["Subject"] == subject
    for kind in ("plain", "html"):
        for sentence in sentences:
            assert sentence in part(message, kind)


def test_the_link_to_an_archive_is_made_when_the_mail_is_composed_and_arrives_whole() -> None:
    message = received(COMPOSE(mail("archive_ready", READY)))
    assert f"\n\n  {LINK}\n\n" in part(message, "plain")
    assert f'<a href="{LINK.replace("&", "&amp;")}">' in part(message, "html")
    asked = []

    def link(of: OutboxMail) -> Download:
        asked.append(of)
        return Download("https://bucket.test/new", timedelta(minutes=5), UNTIL)

    offer = mail("archive_ready", READY)
    again = Composer(COMPOSE.sender, COMPOSE.links, downloads=link)(offer)
    assert asked == [offer]
    assert "https://bucket.test/new" in part(again, "plain")
    assert "5 minutes" in part(again, "plain")


@pytest.mark.parametrize("what", ["an archive failed", "an archive was cancelled", "a preview is ready"])
def test_no_link_is_made_for_a_mail_that_offers_no_archive(what: str) -> None:
    def never(of: OutboxMail) -> Download:
        raise AssertionError(of)

    assert LINK not in part(Composer(COMPOSE.sender, COMPOSE.links, downloads=never)(mail(*MAILS[what])), "plain")


def test_a_worker_that_cannot_make_links_leaves_the_mail_to_another() -> None:
    with pytest.raises(MailDelayed, match="cannot make links"):
        Composer(COMPOSE.sender, COMPOSE.links)(mail("archive_ready", READY))


def test_what_is_missing_is_not_spoken_of_where_nothing_is() -> None:
    text = part(COMPOSE(mail("archive_ready", READY)), "plain")
    assert "missing" not in text
    assert "Not in it" not in text


def test_only_who_had_a_deployment_hears_that_it_is_untouched() -> None:
    assert "still there" not in part(COMPOSE(mail(*MAILS["a first preview failed early"])), "plain")
    cancelled = MAILS["a preview was cancelled"][1]
    assert "untouched" in part(COMPOSE(mail("build_cancelled", cancelled)), "plain")
    assert "untouched" not in part(COMPOSE(mail("build_cancelled", {**cancelled, "deployed": False})), "plain")


def test_an_error_of_several_lines_and_a_comment_stand_apart() -> None:
    failed = part(COMPOSE(mail(*MAILS["a deployment failed"])), "plain")
    assert "\n\n  ember build ended with status 1:\n  no such module\n\n" in failed
    moved = part(COMPOSE(mail(*MAILS["changes are requested"])), "plain")
    assert "\n\n  Please shorten it.\n  And add a picture.\n\n" in moved


@every_mail
def test_html_escapes_what_people_typed(template: str, context: dict[str, Any]) -> None:
    evil = "<script>alert('x')</script>"
    typed = {
        name: evil
        for name in (
            *("error", "comment", "requested_by", "moved_by", "cancelled_by", "sha_reason", "repository"),
            *("name_contains", "step", "reason", "again"),
        )
        if name in context
    }
    message = COMPOSE(mail(template, renamed({**context, **typed}, evil), name=evil))
    html = part(message, "html")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert evil in part(message, "plain")


@every_mail
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\u2028", "\x0b", "\x85"])
def test_no_header_can_be_smuggled_in_by_a_name(template: str, context: dict[str, Any], line_break: str) -> None:
    evil = f"Apples{line_break}Bcc: everybody@example.org{line_break}{line_break}Hello"
    plain = COMPOSE(mail(template, context))
    message = received(COMPOSE(mail(template, renamed(context, evil), name=evil)))
    assert message.keys() == received(plain).keys()
    assert "Apples Bcc: everybody@example.org Hello" in message["Subject"]
    assert [address.addr_spec for address in message["To"].addresses] == ["rita@example.org"]
    assert message["To"].addresses[0].display_name == "Apples Bcc: everybody@example.org Hello"
    assert part(message, "plain").startswith("Hello Apples")


@given(study=st.text(min_size=1), person=st.text(min_size=1))
def test_whatever_a_study_and_a_person_are_called_the_mail_keeps_its_shape(study: str, person: str) -> None:
    study, person = (name.encode("utf-8", "ignore").decode() for name in (study, person))
    message = received(COMPOSE(mail("study_moved", renamed(MOVE, study), name=person)))
    assert sorted(message.keys()) == sorted(
        ["Subject", "From", "To", "Message-ID", "Date", "Auto-Submitted", "MIME-Version", "Content-Type"]
    )
    assert [address.addr_spec for address in message["To"].addresses] == ["rita@example.org"]
    assert [body.get_content_type() for body in message.iter_parts()] == ["text/plain", "text/html"]


@pytest.mark.parametrize("missing", ["headline", "sentence", "state_before", "state_after", "moved_by", "comment"])
def test_a_key_that_is_missing_is_an_error_and_no_gap(missing: str) -> None:
    with pytest.raises(UndefinedError, match=missing):
        COMPOSE(mail("study_moved", {name: value for name, value in MOVE.items() if name != missing}))


def test_links_keep_the_path_of_their_base() -> None:
    links = Links("https://host.test/lookit/", "https://host.test/families/", "https://host.test/previews/")
    assert links.study("u") == "https://host.test/lookit/exp/studies/u/"
    assert links.built("deployment", "u") == "https://host.test/families/studies/u/"
    assert links.built("preview", "u") == "https://host.test/previews/studies/u/"
