"""Hostile text in the structured places that it is put into: none of it ever becomes structure."""

from __future__ import annotations

import csv
import io
import re
from email import policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.parser import BytesParser
from uuid import UUID

import dagster as dg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import Environment
from markdown_it import MarkdownIt
from rich.console import Console
from sqlalchemy.orm.attributes import set_committed_value

from domain.errors import InvalidRequest
from domain.escaping import (
    csv_cell,
    deliverable_address,
    mail_phrase,
    mail_subject,
    markdown_block,
    markdown_code,
    markdown_text,
    one_line,
    visible,
)
from domain.mail.compose import Composer, Links
from domain.mail.outbox import MailRefused
from domain.models import OutboxMail, User
from lookit_ops.jobs.listing import listing
from lookit_ops.terminal import plain

COMPOSE = Composer("lookit@mail.example.org", Links(*("https://x.test/",) * 3))
HOSTILE = (
    '=?utf-8?q?Rita=0D=0AReply-To:_evil@evil.test=0D=0A=0D=0Abody?= "Quote", <evil@evil.test>, a;b:'
    "\r\nBcc: evil@evil.test\r\n;=cmd|' /C calc'!A0 ```\n~~~\n# heading\n<script>alert(1)</script> "
    "[link](javascript:1) ![x](//evil.test) [red]rich[/red] \x1b]0;title\x07 \u202efdp.exe\u2066 \u2028 \ud800 "
    "{{ 7 * 7 }} {% raw %} \U0001f9d2\u200d\U0001f680 \u05e9\u05dc\u05d5\u05dd | `code` ``"
)


def composed(name: str, study: str, email: str = "rita@example.org") -> EmailMessage:
    mail = OutboxMail(
        event="e",
        recipient_id=1,
        template="study_moved",
        context={
            "study": {"name": study, "uuid": "0"},
            "headline": "changes requested",
            "sentence": "Changes to your study are requested.",
            "state_before": "submitted",
            "state_after": "rejected",
            "moved_by": name,
            "comment": study,
        },
    )
    set_committed_value(mail, "id", 1)
    set_committed_value(mail, "uuid", UUID(int=1))
    set_committed_value(mail, "recipient", User(email=email, name=name))
    return COMPOSE(mail)


def received(message: EmailMessage) -> EmailMessage:
    parsed = BytesParser(policy=policy.default).parsebytes(message.as_bytes())
    assert isinstance(parsed, EmailMessage)
    return parsed


def display_name(raw: bytes) -> str:
    """Read the name in the To header without the parser that reads everything else."""
    value = "".join(BytesParser(policy=policy.compat32).parsebytes(raw)["To"].splitlines())
    name = value.rpartition("<")[0].strip()
    return re.sub(r"\\(.)", r"\1", name[1:-1]) if name.startswith('"') else str(make_header(decode_header(name)))


HEADERS = ["Subject", "From", "To", "Message-ID", "Date", "Auto-Submitted", "MIME-Version", "Content-Type"]

letters = st.characters(exclude_categories=("Cs",))
parts = st.sampled_from(
    [
        *("=?utf-8?q?a=0D=0AReply-To:_x@y.test?=", "=?utf-8?b?", "?=", "=?", '"', "\\", ",", "<x@y.test>", ";", ":"),
        *("\r\n", "\n", "\u202e", "\u05d0", "\U0001f9d2", "\x00", "(comment)", "@", " ", "a" * 40, "\u00e4" * 20),
    ]
)
names = st.lists(st.one_of(st.text(letters, max_size=20), parts), max_size=30).map(lambda found: "".join(found)[:200])


@given(names, names)
@example("Doe, Jane, " * 12, "=?utf-8?q?x=0D=0A=0D=0Abody?=")
@example("Rita <x@y.test>", HOSTILE.replace("\ud800", ""))
def test_a_name_in_a_mails_header_is_read_as_that_name_and_one_address(name: str, study: str) -> None:
    message = composed(name, study)
    raw = message.as_bytes()
    head = raw.partition(b"\n\n")[0]
    assert head.isascii()
    assert all(len(line) <= 78 or not line.startswith(b" =?") for line in head.split(b"\n"))
    parsed = received(message)
    (to,) = parsed["To"].addresses
    assert to.addr_spec == "rita@example.org"
    # By the rules of RFC 2047, and by Python's own parser, which may leave blanks between encoded words.
    assert display_name(raw) == one_line(name)
    assert to.display_name.replace(" ", "") == one_line(name).replace(" ", "")
    assert (
        parsed["Subject"] == one_line(f"Your study {study}: changes requested") or one_line(study) in parsed["Subject"]
    )
    assert sorted(set(parsed.keys())) == sorted(HEADERS)
    assert parsed["Reply-To"] is parsed["Bcc"] is None


@given(st.text(max_size=300))
def test_a_subject_is_read_as_it_was_written(text: str) -> None:
    raw = f"Subject: {mail_subject(text)}\n\n".encode("ascii")
    assert BytesParser(policy=policy.default).parsebytes(raw)["Subject"] == one_line(text)


@given(names)
def test_a_phrase_holds_no_more_than_printable_ascii(name: str) -> None:
    assert all(" " <= letter <= "~" for letter in mail_phrase(name).replace("\n ", ""))


@pytest.mark.parametrize(
    ("email", "address"),
    [
        ("rosa@universit\u00e4t.example", "rosa@xn--universitt-y5a.example"),
        ("rosa@\u4f8b\u5b50.example", "rosa@xn--fsqu00a.example"),
        ("rosa+lab@example.org", "rosa+lab@example.org"),
        ("o'brien@example.org", "o'brien@example.org"),
        ("rosa@localhost", "rosa@localhost"),
    ],
)
def test_an_international_domain_is_written_as_name_servers_know_it(email: str, address: str) -> None:
    assert deliverable_address(email) == address
    (to,) = received(composed("Rosa", "Apples", email))["To"].addresses
    assert to.addr_spec == address


@pytest.mark.parametrize(
    "email",
    [
        *("j\u00f6rg@x.example", "rosa", "@example.org", "rosa@", "a b@example.org", "a@b@c", "rosa@ex ample.org"),
        *("rosa@example.org\r\nBcc: x@y.test", "rosa@example.org,x@y.test", "rosa@-\u00e4-.example", "<x@y.test>", ""),
        *("rosa@" + "\u00e4" * 70 + ".example", '"a b"@example.org', "rosa@example..org", "x@\u202e.example"),
    ],
)
def test_an_address_that_cannot_be_delivered_to_is_refused_at_once(email: str) -> None:
    with pytest.raises(InvalidRequest, match="no mail can be sent to"):
        deliverable_address(email)
    with pytest.raises(MailRefused, match="no mail can be sent to"):
        composed("Rosa", "Apples", email)


@given(st.text(max_size=200))
@example(HOSTILE)
def test_text_in_markdown_is_shown_and_nothing_else(text: str) -> None:
    reader = MarkdownIt("gfm-like", {"linkify": False})
    for written, kinds in (
        (markdown_text(f"x {text} x"), {"text", "softbreak", "text_special", "entity"}),
        (markdown_code(f"x {text} x"), {"code_inline"}),
    ):
        tokens = reader.parse(f"1. {written}")
        assert [token.type for token in tokens if token.level == 2 and token.nesting == 1] == ["paragraph_open"]
        (inline,) = [token for token in tokens if token.type == "inline"]
        assert {child.type for child in inline.children or []} <= kinds
    (block,) = reader.parse(markdown_block(text))
    assert block.type == "fence"
    assert block.content == visible(text) + "\n" or "\n" in text or "\r" in text


def test_one_hostile_string_through_every_sink() -> None:
    # Mail, headers and both bodies.
    parsed = received(composed(HOSTILE, HOSTILE))
    assert sorted(set(parsed.keys())) == sorted(HEADERS)
    assert len(parsed["To"].addresses) == 1
    html = parsed.get_body(("html",))
    assert html is not None
    assert "<script>" not in html.get_content()
    assert Environment(autoescape=True).from_string("{{ text }}").render(text=HOSTILE).count("<") == 0
    # CSV, read with each separator that a spreadsheet may take.
    text = io.StringIO()
    csv.writer(text).writerow([csv_cell(HOSTILE)])
    for separator in ",;\t|":
        for row in csv.reader(io.StringIO(text.getvalue()), delimiter=separator):
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
    # Markdown of a run's page.
    for written in (markdown_text(HOSTILE), markdown_code(HOSTILE), listing([markdown_code(HOSTILE)]).value):
        shown = MarkdownIt("gfm-like", {"linkify": False}).render(written or "")
        assert not re.search("<(script|a|img|h1)", shown)
    shown = MarkdownIt().render(markdown_block(HOSTILE))
    assert shown.startswith("<pre><code")
    assert shown.count("</code></pre>") == 1
    assert shown.endswith("</code></pre>\n")
    # A terminal, with rich's markup and without.
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=1000).print(plain(HOSTILE))
    assert "[red]rich" in re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())
    for said in (re.sub("\x1b\\[[0-9;]*m", "", out.getvalue()), visible(HOSTILE)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\ud800-\udfff]", said)


@pytest.mark.parametrize(
    "control", [chr(code) for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
)
def test_no_bidirectional_control_reaches_a_terminal(control: str) -> None:
    assert control not in visible(f"abc{control}def")
    assert control not in plain(f"abc{control}def")
    assert f"\\u{ord(control):04x}" in visible(control)


def test_the_list_on_a_runs_page_is_markdown() -> None:
    assert isinstance(listing(["a"]), dg.MarkdownMetadataValue)
