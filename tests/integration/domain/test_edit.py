"""Changing a study's content on both databases: what is logged, what sends it back to review, what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from domain.db import database_now
from domain.errors import DomainError, InvalidRequest, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.models import BuildKind, State, Study, User
from domain.models.studies import LOCK_STATES
from domain.studies.edit import edit
from tests.support.site import Site, transition_as_read

SHA = "a" * 40
BEFORE_APPROVAL = [State.CREATED, State.SUBMITTED, State.REJECTED, State.RETRACTED, State.ARCHIVED]
AFTER_APPROVAL = [State.APPROVED, State.ACTIVE, State.PAUSED, State.DEACTIVATED]


def change(site: Site, changes: dict[str, Any], user_id: int | None = None) -> list[str]:
    with site.sessions.begin() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, user_id or site.designer)
        return edit(session, study, user, changes)


def refused(site: Site, kind: type[DomainError], changes: dict[str, Any], user_id: int | None = None) -> str:
    """What the refusal says; nothing may have changed."""
    before = site.study()
    with pytest.raises(kind) as refusal:
        change(site, changes, user_id)
    after = site.study()
    assert {name: getattr(after, name) for name in ("name", "purpose", "study_metadata", "state")} == {
        name: getattr(before, name) for name in ("name", "purpose", "study_metadata", "state")
    }
    assert (site.logs(), site.mails()) == ([], [])
    return str(refusal.value)


@pytest.mark.parametrize("state", BEFORE_APPROVAL)
def test_before_an_approval_an_edit_leaves_the_state_and_logs_what_changed(site: Site, state: State) -> None:
    site.set_state(state)
    assert change(site, {"purpose": "Counting", "name": "Apples", "contact": ""}) == ["name", "purpose"]
    study = site.study()
    assert (study.name, study.purpose, study.state) == ("Apples", "Counting", state)
    (log,) = site.logs()
    assert (log.action, log.user_id, log.state_before, log.state_after) == ("edit", site.designer, state, state)
    assert log.extra == {"diff": {"name": ["Apples and oranges", "Apples"], "purpose": ["", "Counting"]}}
    assert [mail.template for mail in site.mails()] == (["study_edited"] if state is State.SUBMITTED else [])


@pytest.mark.parametrize("state", AFTER_APPROVAL)
def test_reviewed_content_that_changes_after_an_approval_sends_the_study_back(site: Site, state: State) -> None:
    site.set_state(state)
    changed_at = site.study().state_changed_at
    assert change(site, {"structure": {"frames": {}}, "is_discoverable": True}) == ["is_discoverable", "structure"]
    study = site.study()
    assert (study.state, study.structure, study.is_discoverable) == ("rejected", {"frames": {}}, True)
    assert study.state_changed_at > changed_at
    (log,) = site.logs()
    assert (log.action, log.user_id, log.state_before, log.state_after) == ("reject", site.designer, state, "rejected")
    assert "changed after the approval: structure." in log.extra["comment"]
    assert log.extra["diff"] == {"structure": [{}, {"frames": {}}], "is_discoverable": [False, True]}
    (mail,) = site.mails()
    assert (mail.recipient.email, mail.template) == ("study_admin@example.org", "study_moved")
    assert (mail.context["state_before"], mail.context["comment"]) == (state, log.extra["comment"])


@pytest.mark.parametrize(
    "field", ["name", "purpose", "duration", "contact", "image", "generator", "exit_url", "compensation"]
)
def test_each_reviewed_text_sends_an_approved_study_back(site: Site, field: str) -> None:
    change(site, {field: "something else"})
    assert site.study().state == "rejected"


@pytest.mark.parametrize("changes", [{"last_known_player_sha": SHA}, {"study_metadata": {"languages": ["en"]}}])
def test_changed_metadata_sends_an_approved_study_back(site: Site, changes: dict[str, Any]) -> None:
    assert change(site, changes) == ["study_metadata"]
    assert site.study().state == "rejected"


def test_being_discoverable_is_no_reviewed_content(site: Site) -> None:
    assert change(site, {"is_discoverable": True}) == ["is_discoverable"]
    assert site.study().state == "approved"
    assert [log.action for log in site.logs()] == ["edit"]
    assert site.mails() == []


def test_a_change_that_changes_nothing_leaves_no_log(site: Site) -> None:
    assert change(site, {"name": "Apples and oranges", "player_repo_url": "", "is_discoverable": False}) == []
    assert change(site, {}) == []
    assert (site.study().state, site.logs(), site.mails()) == ("approved", [], [])


def test_the_players_keys_change_the_metadata_and_leave_the_rest_of_it(site: Site) -> None:
    site.set_state(State.CREATED)
    site.set_metadata(languages=["en"], last_known_player_sha=SHA)
    change(site, {"player_repo_url": "https://github.com/someone/player"})
    assert site.study().study_metadata == {
        "languages": ["en"],
        "last_known_player_sha": SHA,
        "player_repo_url": "https://github.com/someone/player",
    }


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_sha_or_repository_is_removed(site: Site, nothing: str | None) -> None:
    site.set_state(State.CREATED)
    site.set_metadata(languages=[], last_known_player_sha=SHA, player_repo_url="https://github.com/someone/player")
    change(site, {"last_known_player_sha": nothing})
    assert site.study().study_metadata == {"languages": [], "player_repo_url": "https://github.com/someone/player"}
    change(site, {"player_repo_url": nothing})
    assert site.study().study_metadata == {"languages": []}


@pytest.mark.parametrize("lock", LOCK_STATES)
def test_a_study_that_is_being_built_cannot_be_changed(site: Site, lock: State) -> None:
    with site.sessions.begin() as session:
        study = session.get_one(Study, site.study_id)
        study.state, study.state_before_build = lock.value, "approved"
    assert f"is {lock}" in refused(site, StudyIsLocked, {"purpose": "another"})


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite's transactions keep each other out
def test_a_lock_that_the_session_has_not_seen_yet_counts(site: Site) -> None:
    with site.sessions() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.designer)
        with site.sessions.begin() as other:
            locked = other.get_one(Study, site.study_id)
            locked.state, locked.state_before_build = "previewing", "approved"
        with pytest.raises(StudyIsLocked):
            edit(session, study, user, {"purpose": "another"})


def test_who_may_not_change_the_study_changes_nothing(site: Site) -> None:
    assert "studies.change_study" in refused(site, PermissionDenied, {"purpose": "mine"}, site.lab_member)
    assert "inactive" in refused(site, PermissionDenied, {"purpose": "mine"}, site.inactive)


@pytest.mark.parametrize("field", ["state", "uuid", "deployed_at", "lab_id", "fencing_token", "colour"])
def test_only_content_can_be_changed(site: Site, field: str) -> None:
    message = refused(site, InvalidRequest, {field: "x", "purpose": "another"})
    assert f"no field {field} to edit" in message
    assert "is_discoverable" in message
    assert "purpose" in message


@pytest.mark.parametrize("name", ["", "   ", "\n", None])
def test_a_study_keeps_a_name(site: Site, name: str | None) -> None:
    assert "cannot be blank" in refused(site, InvalidRequest, {"name": name})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "x" * 256}, "255"),
        ({"purpose": 7}, "purpose"),
        ({"purpose": None}, "purpose"),
        ({"purpose": "nul \x00"}, "purpose"),
        ({"structure": ["frames"]}, "structure"),
        ({"structure": "{}"}, "structure"),
        ({"study_metadata": "{}"}, "study_metadata"),
        ({"study_metadata": "{}", "last_known_player_sha": SHA}, "study_metadata"),
        ({"is_discoverable": "yes"}, "is_discoverable"),
    ],
)
def test_a_malformed_value_is_refused_by_its_field(site: Site, changes: dict[str, Any], message: str) -> None:
    assert message in refused(site, InvalidRequest, changes)


def test_an_edit_belongs_to_its_transaction(site: Site) -> None:
    with site.sessions() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.designer)
        edit(session, study, user, {"purpose": "another"})
        assert study.state_changed_at <= (session.scalar(database_now().select()) or study.state_changed_at)
        session.rollback()
    assert (site.study().state, site.study().purpose, site.logs(), site.mails()) == ("approved", "", [], [])


@pytest.mark.parametrize("change", [{"last_known_player_sha": "b" * 40}, {"player_repo_url": "https://github.com/a/b"}])
def test_another_player_has_to_be_deployed_before_the_study_can_be_activated(
    site: Site, change: dict[str, str]
) -> None:
    site.set_metadata(last_known_player_sha="a" * 40)
    claim = site.ledger.claim(
        site.ledger.request(site.study_id, site.study_admin, BuildKind.DEPLOYMENT), "a run", timedelta(minutes=1)
    )
    site.ledger.finish(claim, {})
    with site.sessions.begin() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.superuser)
        edit(session, study, user, {"purpose": "Words alone need no deployment"})
        assert study.deployed_at is not None
        edit(session, study, user, change)
        for trigger in ("resubmit", "approve"):
            transition_as_read(session, study, trigger, user)
        with pytest.raises(TransitionNotAllowed, match="never been deployed with its present player"):
            transition_as_read(session, study, "activate", user)
