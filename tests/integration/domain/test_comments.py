"""What people and programs say on the way, on both databases: it reaches log and mail, or is refused, never half."""

from __future__ import annotations

from datetime import timedelta

import pytest

from domain.models import BuildKind, State, Study, User
from domain.requests.build_claim import BuildClaim
from domain.requests.failure import Failure
from tests.support.site import Site, transition_as_read

STRANGE = {
    "markup": "<b>bold</b> & [red]rich[/] {{ jinja }}",
    "lines": "first\nsecond\r\nthird",
    "other scripts": "größer, 苹果, 🍎",
    "NUL": "before\x00after",
    "half a character": "\udce9",  # as Python reads a byte that is no UTF-8 on a command line
}


@pytest.mark.parametrize("text", list(STRANGE.values()), ids=list(STRANGE))
def test_a_comment_reaches_the_log_and_the_mail_alike(site: Site, text: str) -> None:
    site.set_state(State.SUBMITTED)
    with site.sessions.begin() as session:
        user = session.get_one(User, site.site_admin)
        transition_as_read(session, session.get_one(Study, site.study_id), "reject", user, comment=text)
    (log,) = site.logs()
    (mail,) = site.mails()
    assert site.study().state == "rejected"
    assert log.extra["comment"] == mail.context["comment"]
    assert is_kept(text, log.extra["comment"])


def is_kept(text: str, kept: str) -> bool:
    """Every character that can be stored and sent is as it was, every other has something in its place."""
    impossible = "\x00\udce9"
    as_it_was = [was for was in text if was not in impossible]
    return bool(kept.encode()) and len(kept) == len(text) and [new for new in kept if new in as_it_was] == as_it_was


def claim(site: Site) -> BuildClaim:
    request_id = site.ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT)
    return site.ledger.claim(request_id, "run-1", timedelta(minutes=1))


@pytest.mark.parametrize("text", list(STRANGE.values()), ids=list(STRANGE))
def test_a_build_ends_as_failed_whatever_its_message_holds(site: Site, text: str) -> None:
    claimed = claim(site)
    site.ledger.fail(claimed, Failure("build", "player_build_failed", text), {"build_output": text})
    assert site.study().state == "approved"
    request = site.request(claimed.request_id)
    assert (request.status, request.error_code) == ("failed", "player_build_failed")
    (log,) = site.logs()
    assert log.extra["error"] == log.extra["build_output"] == request.error == site.mails()[0].context["error"]
    assert is_kept(text, log.extra["error"])
