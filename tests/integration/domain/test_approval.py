"""Approvals: of the revision that was read, of the player that is then built, and what an earlier one still covers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from domain.db import database_now
from domain.errors import DomainError, InvalidRequest, TransitionNotAllowed
from domain.mail.compose import Composer, Links
from domain.mail.outbox import deliver
from domain.models import BuildKind, OutboxMail, State, Study, User
from domain.requests.build_claim import BuildClaim
from domain.requests.rollbacks import approvals_of, begin_rollback
from domain.studies.edit import edit
from domain.studies.workflow import SHIPPED_FILE, transition, use_workflow
from tests.support.mail import FakeTransport
from tests.support.site import Site, transition_as_read

LEASE = timedelta(minutes=2)
GOOD, EVIL, NEWER = "a" * 40, "e" * 40, "b" * 40
STRANGERS = "https://github.com/stranger/player"
TRUSTED = "https://github.com/lookit/player"
COMPOSE = Composer("lookit@example.org", Links(*("https://x.test/",) * 3))
DEPLOYMENT, PREVIEW = BuildKind.DEPLOYMENT, BuildKind.PREVIEW


def change(site: Site, user: int | None = None, **changes: Any) -> list[str]:
    with site.sessions.begin() as session:
        study, by = session.get_one(Study, site.study_id), session.get_one(User, user or site.study_admin)
        return edit(session, study, by, changes)


def name_player(site: Site, url: str | None, sha: str | None) -> None:
    change(site, player_repo_url=url, last_known_player_sha=sha)


def approve(site: Site, revision: int | None, *trusted: str | None) -> None:
    with site.sessions.begin() as session:
        study, by = session.get_one(Study, site.study_id), session.get_one(User, site.site_admin)
        is_trusted = (lambda url: url in trusted) if trusted else (lambda url: url in (None, TRUSTED))
        transition(session, study, "approve", by, revision=revision, is_trusted=is_trusted)


def move(site: Site, trigger: str, user: int | None = None) -> None:
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        transition_as_read(session, study, trigger, session.get_one(User, user or site.superuser))


def claimed(site: Site, kind: BuildKind) -> BuildClaim:
    request = site.ledger.request(site.study_id, site.study_admin, kind)
    return site.ledger.claim(request, f"run of {request}", LEASE)


def build(site: Site, kind: BuildKind, repository: str, head: str = NEWER) -> BuildClaim:
    """Build what the claim says: the commit that it names, or the head of the branch."""
    claim = claimed(site, kind)
    site.ledger.note_commit(claim, repository=repository, sha=claim.player_sha or head, reason="it was asked for")
    site.ledger.finish(claim, {})
    return claim


@pytest.fixture
def under_review(site: Site) -> Site:
    site.set_state(State.CREATED)
    name_player(site, TRUSTED, GOOD)
    move(site, "submit")
    return site


# -- revisions ---------------------------------------------------------------------------------------------------------


def test_each_change_of_reviewed_content_raises_the_revision_and_the_log_says_which(site: Site) -> None:
    site.set_state(State.CREATED)
    assert site.study().revision == 1
    change(site, purpose="Counting")
    change(site, purpose="Counting")  # nothing changes
    change(site, is_discoverable=True)  # not reviewed
    change(site, name="Pears", contact="Rita")
    assert site.study().revision == 3
    assert [(log.action, log.revision) for log in site.logs()] == [("edit", 2), ("edit", 2), ("edit", 3)]


@pytest.mark.parametrize("trigger", ["submit", "resubmit", "reject", "archive"])
def test_a_revision_goes_with_an_approval_alone(site: Site, trigger: str) -> None:
    with pytest.raises(InvalidRequest, match="goes with the trigger 'approve' alone"), site.sessions.begin() as session:
        transition(session, session.get_one(Study, site.study_id), trigger, session.get_one(User, 1), revision=1)


def test_an_approval_names_the_revision_that_was_read(under_review: Site) -> None:
    with pytest.raises(InvalidRequest, match=r"is at revision 2: read it .* --revision 2"):
        approve(under_review, None)
    assert under_review.study().state == State.SUBMITTED
    approve(under_review, 2)
    study, log = under_review.study(), under_review.logs()[-1]
    assert (study.state, study.approved_revision) == (State.APPROVED, 2)
    assert (study.approved_repo_url, study.approved_sha) == (TRUSTED, GOOD)
    assert (log.action, log.revision, log.extra["revision"], log.extra["sha"]) == ("approve", 2, 2, GOOD)
    assert log.extra["approved"].startswith(f"approved commit {GOOD} of lookit/player")


def test_a_stale_approval_is_refused_with_what_has_changed_since(under_review: Site) -> None:
    name_player(under_review, STRANGERS, EVIL)
    change(under_review, name="Pears", purpose="x" * 500)
    with pytest.raises(TransitionNotAllowed) as refusal:
        approve(under_review, 2)
    said = str(refusal.value)
    assert "is at revision 4, not 2 any more" in said
    assert f'study_metadata.player_repo_url: "{TRUSTED}" → "{STRANGERS}"' in said
    assert f'study_metadata.last_known_player_sha: "{GOOD}" → "{EVIL}"' in said
    assert 'name: "Apples and oranges" → "Pears"' in said
    assert "--revision 4" in said
    assert len(said) < 1500
    study = under_review.study()
    assert (study.state, study.approved_revision) == (State.SUBMITTED, None)


def test_changed_and_changed_back_is_another_revision_that_says_so(under_review: Site) -> None:
    change(under_review, purpose="x")
    change(under_review, purpose="")
    with pytest.raises(TransitionNotAllowed, match="nothing that differs now"):
        approve(under_review, 2)


@pytest.mark.parametrize("revision", [3, 99])
def test_a_revision_that_is_not_there_yet_cannot_be_approved(under_review: Site, revision: int) -> None:
    with pytest.raises(TransitionNotAllowed, match=f"has no revision {revision}"):
        approve(under_review, revision)


def test_an_edit_and_an_approval_at_once_never_approve_what_was_not_read(under_review: Site) -> None:
    site, together = under_review, threading.Barrier(2)

    def attempt(act: Any) -> str:
        together.wait(timeout=30)
        try:
            act()
        except DomainError as error:
            return type(error).__name__
        return "done"

    for _ in range(8):
        read = site.study().revision
        text = f"what changes after revision {read}"
        acts = [lambda read=read: approve(site, read), lambda text=text: change(site, purpose=text)]
        with ThreadPoolExecutor(2) as threads:
            approved, edited = threads.map(attempt, acts)
        assert edited == "done"
        study = site.study()
        if approved == "done":  # the approval came first, so the edit has sent the study back
            assert (study.state, study.approved_revision) == (State.REJECTED, None)
            move(site, "resubmit")
        else:
            assert (approved, study.state) == ("TransitionNotAllowed", State.SUBMITTED)


def test_an_edit_during_the_review_tells_the_site_admins_once_for_all_changes_of_a_while(under_review: Site) -> None:
    site = under_review
    before = len(site.mails())
    change(site, purpose="one")
    change(site, purpose="two")
    change(site, is_discoverable=True)
    (mail,) = site.mails()[before:]
    assert (mail.recipient.email, mail.template, mail.context["revision"]) == (
        "site_admin@example.org",
        "study_edited",
        2,
    )
    assert mail.next_attempt_at - mail.created_at > timedelta(minutes=9)
    with site.sessions.begin() as session:
        session.execute(update(OutboxMail).values(next_attempt_at=database_now(timedelta(seconds=-1))))
    transport = FakeTransport()
    deliver(site.sessions, transport, COMPOSE)
    (sent,) = [message for message in transport.sent if "changed during the review" in str(message["Subject"])]
    body = sent.get_body(("plain",))
    assert body is not None
    assert "since revision 2" in body.get_content()
    change(site, purpose="three")
    assert [mail.context["revision"] for mail in site.mails() if mail.template == "study_edited"] == [2, 4]


def test_the_mail_of_an_edit_is_withdrawn_when_the_review_is_over(under_review: Site) -> None:
    change(under_review, purpose="one")
    move(under_review, "retract")
    with under_review.sessions.begin() as session:
        session.execute(update(OutboxMail).values(next_attempt_at=database_now(timedelta(seconds=-1))))
    deliver(under_review.sessions, FakeTransport(), COMPOSE)
    assert [mail.status for mail in under_review.mails() if mail.template == "study_edited"] == ["withdrawn"]


# -- what was approved is what is deployed -----------------------------------------------------------------------------


def test_a_deployment_builds_the_approved_player_whatever_the_content_names_since(under_review: Site) -> None:
    approve(under_review, 2)
    with under_review.sessions.begin() as session:  # past the domain, as another program might
        session.get_one(Study, under_review.study_id).study_metadata = {
            "player_repo_url": STRANGERS,
            "last_known_player_sha": EVIL,
        }
    request = under_review.ledger.request(under_review.study_id, under_review.study_admin, DEPLOYMENT)
    assert under_review.ledger.player_repo_url(request) == TRUSTED
    claim = under_review.ledger.claim(request, "run", LEASE)
    assert (claim.player_repo_url, claim.player_sha) == (TRUSTED, GOOD)
    under_review.ledger.finish(claim, {})
    preview = claimed(under_review, PREVIEW)
    assert (preview.player_repo_url, preview.player_sha) == (STRANGERS, EVIL)


@pytest.mark.parametrize("sha", [None, "main", "1234567"])
def test_without_a_full_sha_of_a_trusted_repository_the_head_is_approved_and_the_log_says_so(
    site: Site, sha: str | None
) -> None:
    site.set_state(State.SUBMITTED)
    name_player(site, TRUSTED, sha)
    approve(site, site.study().revision)
    assert site.logs()[-1].extra["approved"] == "approved HEAD of lookit/player, which may change"
    assert site.study().approved_sha is None


def test_the_first_deployment_of_an_approved_head_pins_the_commit_for_all_that_follow(site: Site) -> None:
    site.set_state(State.SUBMITTED)
    approve(site, 1)
    assert build(site, DEPLOYMENT, "lookit/player", head=NEWER).player_sha is None
    study = site.study()
    assert (study.approved_sha, study.study_metadata["last_known_player_sha"], study.revision) == (NEWER, NEWER, 1)
    assert claimed(site, DEPLOYMENT).player_sha == NEWER


def test_a_moving_branch_of_a_stranger_cannot_be_approved_until_a_preview_has_pinned_a_commit(site: Site) -> None:
    site.set_state(State.CREATED)
    name_player(site, STRANGERS, None)
    move(site, "submit")
    for sha, remedy in ((None, "Request a preview"), ("main", "Remove it .* and request a preview")):
        name_player(site, STRANGERS, sha)
        with pytest.raises(TransitionNotAllowed, match=f"which the operator does not trust.*{remedy}"):
            approve(site, site.study().revision)
    name_player(site, STRANGERS, None)
    read = site.study().revision
    build(site, PREVIEW, "stranger/player", head=EVIL)
    study, log = site.study(), site.logs()[-1]
    assert (study.study_metadata["last_known_player_sha"], study.revision) == (EVIL, read + 1)
    assert (log.action, log.revision, log.extra["pinned"]) == ("preview", read + 1, EVIL)
    with pytest.raises(TransitionNotAllowed, match=f'last_known_player_sha: nothing → "{EVIL}"'):
        approve(site, read)
    approve(site, read + 1)
    assert site.study().approved_sha == EVIL


def test_a_strangers_commit_that_no_build_has_seen_cannot_be_approved(site: Site) -> None:
    site.set_state(State.SUBMITTED)
    name_player(site, STRANGERS, EVIL)
    with pytest.raises(TransitionNotAllowed, match="no build has shown that it has commit"):
        approve(site, site.study().revision)
    build(site, PREVIEW, "another/player")  # the same SHA of another repository is no evidence
    with pytest.raises(TransitionNotAllowed, match="no build has shown that it has commit"):
        approve(site, site.study().revision)
    build(site, PREVIEW, "Stranger/Player")
    approve(site, site.study().revision)


def test_a_rejection_forgets_the_approval_by_a_reviewer_and_by_an_edit(under_review: Site) -> None:
    approve(under_review, 2)
    move(under_review, "reject")
    assert under_review.study().approved_revision is None
    move(under_review, "resubmit")
    approve(under_review, 2)
    change(under_review, purpose="another")
    study = under_review.study()
    assert (study.state, study.approved_revision, study.approved_sha, study.revision) == ("rejected", None, None, 3)


# -- rollbacks ---------------------------------------------------------------------------------------------------------


def put_back(site: Site, restores: int, user: int | None = None, comment: str = "") -> BuildClaim:
    return begin_rollback(
        site.sessions,
        site.study_id,
        user or site.study_admin,
        restores,
        "rollback in process 1",
        LEASE,
        origin="a test",
        comment=comment,
    )


@pytest.fixture
def moved_on(site: Site) -> tuple[Site, int, int]:
    """A study whose first player was rejected after its deployment; another one was approved and deployed since."""
    site.set_state(State.SUBMITTED)
    name_player(site, STRANGERS, EVIL)
    build(site, PREVIEW, "stranger/player")
    move(site, "approve")
    first = build(site, DEPLOYMENT, "stranger/player")
    move(site, "reject")
    name_player(site, TRUSTED, GOOD)
    move(site, "resubmit")
    move(site, "approve")
    second = build(site, DEPLOYMENT, "lookit/player")
    return site, first.request_id, second.request_id


def test_what_was_rejected_since_cannot_be_put_back_by_a_researcher(moved_on: tuple[Site, int, int]) -> None:
    site, first, second = moved_on
    for comment in ("", "please"):
        with pytest.raises(TransitionNotAllowed, match="may not be put back: the study was rejected on"):
            put_back(site, first, comment=comment)
    assert site.study().state == State.ACTIVE
    reasons = approvals_of(site.sessions, site.study_id, [first, second])
    assert list(reasons) == [first]
    assert f"commit {EVIL[:12]} of stranger/player has not been approved since" in reasons[first]


REOPEN = """
- {trigger: reopen, source: [archived], dest: created, permission: studies.change_study_status}
- {trigger: redo, source: [active], dest: created, permission: studies.change_study_status}
"""


@pytest.mark.parametrize(
    ("ways", "left"),
    [
        (["send_back", "resubmit"], "rejected"),
        (["archive", "reopen", "submit"], "archived"),
        (["redo", "submit"], "created"),
    ],
)
def test_an_approval_ends_by_whatever_way_a_study_leaves_its_states(
    site: Site, tmp_path: Path, ways: list[str], left: str
) -> None:
    """Another workflow may name its transitions as it likes: which player may be put back goes by the states."""
    file = tmp_path / "workflow.yaml"
    file.write_text(SHIPPED_FILE.read_text().replace("trigger: reject", "trigger: send_back") + REOPEN)
    use_workflow(file)
    try:
        site.set_state(State.SUBMITTED)
        name_player(site, TRUSTED, GOOD)
        build(site, PREVIEW, "lookit/player")
        move(site, "approve")
        first = build(site, DEPLOYMENT, "lookit/player")
        move(site, ways[0])
        assert (site.study().state, site.study().approved_revision) == (left, None)
        for way in ways[1:]:
            move(site, way)
        name_player(site, TRUSTED, EVIL)
        move(site, "approve")
        build(site, DEPLOYMENT, "lookit/player")
        with pytest.raises(TransitionNotAllowed, match=f"may not be put back: the study was {left} on"):
            put_back(site, first.request_id)
    finally:
        use_workflow(SHIPPED_FILE)


def test_a_reviewer_may_override_with_a_comment_and_the_log_says_so(moved_on: tuple[Site, int, int]) -> None:
    site, first, _ = moved_on
    with pytest.raises(TransitionNotAllowed, match="say why with --comment"):
        put_back(site, first, site.superuser, comment="  ")
    claim = put_back(site, first, site.superuser, "The new one has no sound.")
    site.ledger.finish(claim, {})
    reason = site.logs()[-1].extra["sha_reason"]
    assert "Superuser put it back all the same: The new one has no sound." in reason


def test_what_was_approved_again_since_may_be_put_back(moved_on: tuple[Site, int, int]) -> None:
    site, first, second = moved_on
    move(site, "reject")
    name_player(site, STRANGERS, EVIL)
    move(site, "resubmit")
    move(site, "approve")
    assert list(approvals_of(site.sessions, site.study_id, [first, second])) == [second]
    site.ledger.finish(put_back(site, first), {})


def test_a_change_that_sends_the_study_back_ends_the_approval_of_what_was_deployed(site: Site) -> None:
    site.set_state(State.SUBMITTED)
    name_player(site, TRUSTED, GOOD)
    move(site, "approve")
    first = build(site, DEPLOYMENT, "lookit/player").request_id
    name_player(site, TRUSTED, NEWER)
    assert site.study().state == State.REJECTED
    move(site, "resubmit")
    move(site, "approve")
    build(site, DEPLOYMENT, "lookit/player")
    with pytest.raises(TransitionNotAllowed, match="may not be put back"):
        put_back(site, first)


def test_without_a_rejection_an_earlier_deployment_may_be_put_back(site: Site) -> None:
    site.set_state(State.SUBMITTED)
    move(site, "approve")
    first = build(site, DEPLOYMENT, "lookit/player").request_id
    build(site, DEPLOYMENT, "lookit/player")
    assert approvals_of(site.sessions, site.study_id, [first]) == {}
    site.ledger.finish(put_back(site, first), {})
