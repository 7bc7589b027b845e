"""The life of a study under random acts, on both databases: people, edits, builds, dead workers, late workers.

Hypothesis plays the acts against the database and against a plain account of what must have happened. After each act
the two must agree, and the rules of the house must hold:

- each act that succeeds leaves exactly one log, a refused one none, and nothing else changed;
- a study is in a lock state if and only if exactly one build of it runs, and that is the one that was claimed;
- what stands after an approval was approved: since the newest approval there was neither a rejection nor a change of
  reviewed content, and the content is the one that was approved but for the player's commit that a build may pin;
- a preview ends where it began, a late worker changes nothing, an edit during a build is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from domain.errors import (
    DomainError,
    InvalidRequest,
    LeaseLost,
    PermissionDenied,
    StudyIsLocked,
    TransitionNotAllowed,
)
from domain.models import BuildKind, BuildRequest, Lab, RequestStatus, State, Study, User
from domain.permissions.roles import grant_on_lab, grant_on_study
from domain.requests.build_claim import BuildClaim
from domain.requests.builds import BuildLedger
from domain.requests.failure import Failure, Retry
from domain.studies.edit import edit
from domain.studies.labs import move_to_lab
from tests.support import budget
from tests.support.leases import end_for_dead_worker
from tests.support.site import Site, transition_as_read

MINUTE = timedelta(minutes=1)
ATTEMPTS = 3
STATUS, APPROVE = "studies.change_study_status", "studies.approve_study"
TRIGGERS = {
    # The table of the workflow, written out once more.
    "submit": ({"created"}, "submitted", STATUS),
    "resubmit": ({"rejected", "retracted"}, "submitted", STATUS),
    "retract": ({"submitted"}, "retracted", STATUS),
    "approve": ({"submitted"}, "approved", APPROVE),
    "reject": ({"submitted", "active", "paused", "deactivated", "approved"}, "rejected", APPROVE),
    "activate": ({"approved", "paused"}, "active", STATUS),
    "pause": ({"active"}, "paused", STATUS),
    "deactivate": ({"active", "paused"}, "deactivated", STATUS),
    "archive": ({state.value for state in State} - {"archived", "previewing", "deploying"}, "archived", STATUS),
}
ONWARD = {
    "created": "submit",
    "submitted": "approve",
    "rejected": "resubmit",
    "retracted": "resubmit",
    "active": "pause",
    "paused": "activate",
    "deactivated": "reject",
}
AFTER_APPROVAL = {"approved", "active", "paused", "deactivated"}
MAY_START_FROM = {"preview": TRIGGERS["archive"][0], "deployment": {"approved", "active", "paused"}}
LOCK = {"preview": "previewing", "deployment": "deploying"}
REVIEWED = (
    *("name", "purpose", "duration", "contact", "image", "structure", "generator", "exit_url", "compensation"),
    *("study_metadata", "lab_id"),
)
PEOPLE = ("study_admin", "designer", "site_admin", "superuser", "stranger", "inactive")
MOVES_STATUS, APPROVES = {"study_admin", "site_admin", "superuser"}, {"site_admin", "superuser"}
SHA = "0123456789abcdef0123456789abcdef01234567"

people = st.sampled_from(["study_admin", "superuser"]) | st.sampled_from(PEOPLE)
kinds = st.sampled_from(["preview", "deployment"])
changes = st.sampled_from(
    [
        {"purpose": "Counting"},
        {"purpose": "Comparing"},
        {"structure": {"frames": {"1": {}}}},
        {"last_known_player_sha": SHA},
        {"last_known_player_sha": ""},
        {"is_discoverable": True},
        {"is_discoverable": False},
        {"name": "Apples", "is_discoverable": True},
    ]
)
numbers = count(1)


@dataclass
class Asked:
    """A build request, as it must be."""

    kind: str
    who: str
    status: str = "queued"
    state_before: str = ""
    attempt: int = 0
    is_unwanted: bool = False
    """Whether somebody asked to cancel it while it ran."""


@dataclass
class Account:
    """What must have happened, in plain Python."""

    state: str = "created"
    lab: str = "first"
    designs: bool = True
    """Whether the designer holds a role on the study."""
    deployed: bool = False
    discoverable: bool = False
    content: dict[str, Any] = field(default_factory=dict)
    approved: dict[str, Any] | None = None
    """The reviewed content that the newest approval was about; None once it no longer stands."""
    requests: dict[int, Asked] = field(default_factory=dict)
    running: int | None = None
    logs: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def at(self) -> str:
        """The state in the database: a lock state while a build runs."""
        return LOCK[self.requests[self.running].kind] if self.running else self.state

    def log(self, action: str, before: str, after: str) -> None:
        self.logs.append((action, before, after))

    def changes_content(self, who: str) -> bool:
        return who in ("study_admin", "superuser") or (who == "designer" and self.designs)

    def may_ask(self, who: str, kind: str) -> bool:
        return self.changes_content(who) and (kind == "preview" or who != "designer")

    def change(self, reviewed: bool) -> None:
        """The study's content changed: one log, and after an approval the way back."""
        if reviewed and self.state in AFTER_APPROVAL:
            self.log("reject", self.state, "rejected")
            self.state = "rejected"
        else:
            self.log("edit", self.state, self.state)
        if reviewed:
            self.approved = None

    def end(self, status: str, after: str) -> None:
        """The running build ends: one log, the lock is gone."""
        assert self.running is not None
        asked = self.requests[self.running]
        asked.status, self.running, self.state = status, None, after
        self.log(asked.kind, asked.state_before, after)


class LifeOfAStudy(RuleBasedStateMachine):
    """One study from its beginning; a new one for each example, in labs and among people that stay."""

    def __init__(self, site: Site, labs: dict[str, int]) -> None:
        super().__init__()
        study_id = site.another_study(f"Study {next(numbers)}")
        self.site, self.labs, self.must = replace(site, study_id=study_id), labs, Account()
        self.claims: list[BuildClaim] = []
        self.retrying = BuildLedger(site.sessions, Retry(ATTEMPTS, timedelta(seconds=-1)))
        self.give_the_designer_a_role()
        self.must.content = self.reviewed_content()

    # -- acting --------------------------------------------------------------------------------------------------------

    def give_the_designer_a_role(self) -> None:
        with self.site.sessions.begin() as session:
            study = session.get_one(Study, self.site.study_id)
            grant_on_study(session, session.get_one(User, self.site.designer), study, "design")

    def id_of(self, who: str) -> int:
        return int(getattr(self.site, who))

    def act(self, who: str, how: Callable[..., Any]) -> type[DomainError] | None:
        """Let somebody do something with the study in a transaction; the kind of the refusal, if there is one."""

        def in_a_transaction() -> None:
            with self.site.sessions.begin() as session:
                how(session, session.get_one(Study, self.site.study_id), session.get_one(User, self.id_of(who)))

        return refusal_of(in_a_transaction)

    def reviewed_content(self) -> dict[str, Any]:
        study = self.site.study()
        return {name: getattr(study, name) for name in REVIEWED}

    def move(self, trigger: str, who: str, comment: str = "") -> None:
        must = self.must
        sources, dest, permission = TRIGGERS[trigger]
        holders = APPROVES if permission == APPROVE else MOVES_STATUS
        wanted: type[DomainError] | None = None
        if must.running:
            wanted = StudyIsLocked
        elif must.state not in sources:
            wanted = TransitionNotAllowed
        elif who not in holders:
            wanted = PermissionDenied
        elif trigger == "activate" and not must.deployed:
            wanted = TransitionNotAllowed
        found = self.act(who, lambda session, study, user: transition_as_read(session, study, trigger, user, comment))
        assert found is wanted, (trigger, who, must.at)
        if found is None:
            must.log(trigger, must.state, dest)
            must.state = dest
            if trigger == "approve":
                must.approved = dict(must.content)
            elif trigger == "reject":
                must.approved = None

    # -- people --------------------------------------------------------------------------------------------------------

    @initialize(trigger=st.sampled_from(["approve", "", "submit", "approve"]))
    def begin(self, trigger: str) -> None:
        """Most of what can go wrong begins with an approval: it is not left to chance alone."""
        if trigger:
            self.move("submit", "study_admin")
        if trigger == "approve":
            self.move("approve", "site_admin")

    @rule(trigger=st.sampled_from(list(TRIGGERS)), who=people)
    def anybody_pulls_any_trigger(self, trigger: str, who: str) -> None:
        is_early = len(self.must.logs) < 20  # an archived study has no more to tell
        self.move("approve" if trigger == "archive" and is_early else trigger, who, "a comment")

    @rule()
    def the_study_moves_on(self) -> None:
        """On the way that most studies take; by chance alone one would hardly get far."""
        must = self.must
        if must.running:
            self.finish(self.claims[-1], holds=True)
        elif must.state in ONWARD:
            self.move(ONWARD[must.state], "superuser")
        else:
            self.a_build_begins("deployment")

    @rule(change=changes, who=people)
    def somebody_edits(self, change: dict[str, Any], who: str) -> None:
        must, wanted = self.must, None
        if not must.changes_content(who):
            wanted = PermissionDenied
        elif must.running:
            wanted = StudyIsLocked
        found = self.act(who, lambda session, study, user: edit(session, study, user, change))
        assert found is wanted, (change, who, must.at)
        if found is not None:
            return
        new = {name: value for name, value in change.items() if name in REVIEWED}
        if "last_known_player_sha" in change:
            new["study_metadata"] = {name: value for name, value in change.items() if value}
            if new["study_metadata"] != must.content["study_metadata"]:
                must.deployed = False
        reviewed = any(must.content[name] != value for name, value in new.items())
        if reviewed or change.get("is_discoverable", must.discoverable) != must.discoverable:
            must.content |= new
            must.discoverable = change.get("is_discoverable", must.discoverable)
            must.change(reviewed)

    @rule(lab=st.sampled_from(["first", "second"]), who=people)
    def somebody_moves_it_to_a_lab(self, lab: str, who: str) -> None:
        must, wanted = self.must, None
        if who not in ("study_admin", "superuser"):
            wanted = PermissionDenied
        elif must.running:
            wanted = StudyIsLocked
        elif lab == must.lab:
            wanted = InvalidRequest

        def move(session: Any, study: Study, user: User) -> None:
            move_to_lab(session, study, session.get_one(Lab, self.labs[lab]), user)

        assert self.act(who, move) is wanted, (lab, who, must.at)
        if wanted is None:
            must.lab, must.designs = lab, False
            must.content["lab_id"] = self.labs[lab]
            must.change(reviewed=True)

    @precondition(lambda self: not self.must.designs)
    @rule()
    def the_designer_comes_back(self) -> None:
        self.give_the_designer_a_role()
        self.must.designs = True

    @precondition(lambda self: self.must.logs or self.must.requests)
    @rule(by_the_orm=st.booleans())
    def somebody_tries_to_delete_it(self, by_the_orm: bool) -> None:
        def delete_it(session: Any, study: Study, _user: User) -> None:
            if by_the_orm:
                session.delete(study)
            else:
                session.execute(delete(Study).where(Study.id == study.id))

        with pytest.raises(IntegrityError):
            self.act("superuser", delete_it)

    # -- builds --------------------------------------------------------------------------------------------------------

    @rule(kind=kinds, who=people)
    def somebody_asks_for_a_build(self, kind: str, who: str) -> None:
        self.ask(kind, who)

    def ask(self, kind: str, who: str) -> list[int]:
        """Ask for a build; the id of the request, if it is not refused."""
        must, wanted = self.must, None
        if not must.may_ask(who, kind):
            wanted = PermissionDenied
        elif must.state not in MAY_START_FROM[kind]:
            wanted = TransitionNotAllowed
        made: list[int] = []
        ledger, study_id = self.site.ledger, self.site.study_id
        found = refusal_of(lambda: made.append(ledger.request(study_id, self.id_of(who), BuildKind(kind))))
        assert found is wanted, (kind, who, must.at)
        for request_id in made:
            self.replace_waiting(kind)
            must.requests[request_id] = Asked(kind, who)
        return made

    @precondition(lambda self: self.must.requests)
    @rule(data=st.data())
    def a_worker_claims(self, data: st.DataObject) -> None:
        """Any request, waiting or not: mostly one that waits."""
        requests = self.must.requests
        waiting = [request_id for request_id, asked in requests.items() if asked.status == "queued"]
        self.claim(data.draw(st.sampled_from(waiting or list(requests))))

    def claim(self, request_id: int) -> None:
        must = self.must
        asked = must.requests[request_id]
        wanted: type[DomainError] | None = None
        ends = False
        if not must.may_ask(asked.who, asked.kind):
            wanted, ends = PermissionDenied, True
        elif must.running or asked.status != "queued":
            wanted = StudyIsLocked
        elif must.state not in MAY_START_FROM[asked.kind]:
            wanted, ends = TransitionNotAllowed, True
        claims: list[BuildClaim] = []
        found = refusal_of(lambda: claims.append(self.site.ledger.claim(request_id, f"run-{request_id}", MINUTE)))
        assert found is wanted, (asked, must.at)
        if ends and asked.status == "queued":
            asked.status = "failed"
            if asked.attempt:  # it had been worked on, so people are told
                must.log(asked.kind, must.at, must.at)
        for claim in claims:
            self.begun(claim)

    @rule(kind=kinds)
    def a_build_begins(self, kind: str) -> None:
        for request_id in self.ask(kind, "study_admin"):
            self.claim(request_id)

    @rule(kind=kinds, who=people)
    def a_run_is_launched(self, kind: str, who: str) -> None:
        """Asked and claimed at once: either it works, or nothing has changed, and who waits goes on waiting."""
        must = self.must
        wanted: type[DomainError] | None = None
        if not must.may_ask(who, kind):
            wanted = PermissionDenied
        elif must.state not in MAY_START_FROM[kind]:
            wanted = TransitionNotAllowed
        elif must.running:
            wanted = StudyIsLocked
        launched: list[BuildClaim] = []
        given = (self.site.study_id, self.id_of(who), BuildKind(kind), f"run-{next(numbers)}", MINUTE)
        found = refusal_of(lambda: launched.append(self.site.ledger.launch(*given)))
        assert found is wanted, (kind, who, must.at)
        for claim in launched:
            self.replace_waiting(kind)
            must.requests[claim.request_id] = Asked(kind, who)
            self.begun(claim)

    def replace_waiting(self, kind: str) -> None:
        for asked in self.must.requests.values():
            if (asked.kind, asked.status) == (kind, "queued"):
                asked.status = "cancelled"
                if asked.attempt:
                    self.must.log(asked.kind, self.must.at, self.must.at)

    def begun(self, claim: BuildClaim) -> None:
        must, asked = self.must, self.must.requests[claim.request_id]
        assert (claim.state_before, claim.kind) == (must.state, asked.kind)
        assert all(claim.fencing_token > other.fencing_token for other in self.claims)
        asked.status, asked.state_before, must.running = "running", must.state, claim.request_id
        asked.attempt += 1
        self.claims.append(claim)

    def any_claim(self, data: st.DataObject) -> tuple[BuildClaim, bool]:
        """A claim that was ever made, mostly the newest; and whether it still holds."""
        claim = data.draw(st.just(self.claims[-1]) | st.sampled_from(self.claims))
        return claim, self.must.running is not None and claim == self.claims[-1]

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_worker_finishes(self, data: st.DataObject) -> None:
        claim, holds = self.any_claim(data)
        self.finish(claim, holds=holds)

    def finish(self, claim: BuildClaim, *, holds: bool) -> None:
        found = refusal_of(lambda: self.site.ledger.finish(claim, {"log": "built"}))
        assert found is (None if holds else LeaseLost), claim
        if holds:
            must = self.must
            is_deployment = must.requests[claim.request_id].kind == "deployment"
            pinned = self.site.request(claim.request_id).player_sha
            metadata = must.content["study_metadata"]
            if pinned and "last_known_player_sha" not in metadata:
                must.content["study_metadata"] = {**metadata, "last_known_player_sha": pinned}
            must.deployed = must.deployed or is_deployment
            must.end("succeeded", "active" if is_deployment else must.state)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_worker_fails(self, data: st.DataObject) -> None:
        claim, holds = self.any_claim(data)
        found = refusal_of(lambda: self.site.ledger.fail(claim, Failure("build", "player_build_failed", "no"), {}))
        assert found is (None if holds else LeaseLost), claim
        if holds:
            self.must.end("failed", self.must.state)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_worker_stops_as_wished(self, data: st.DataObject) -> None:
        claim, holds = self.any_claim(data)
        found = refusal_of(lambda: self.site.ledger.cancelled(claim, "Somebody", {}))
        assert found is (None if holds else LeaseLost), claim
        if holds:
            self.must.end("cancelled", self.must.state)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_worker_goes_on(self, data: st.DataObject) -> None:
        claim, holds = self.any_claim(data)
        ledger = self.site.ledger
        for go_on in (
            lambda: ledger.heartbeat(claim, MINUTE),
            lambda: ledger.note_commit(claim, repository="lookit/player", sha=SHA[::-1], reason="HEAD"),
        ):
            assert refusal_of(go_on) is (None if holds else LeaseLost), claim

    @precondition(lambda self: self.must.running)
    @rule()
    def a_worker_dies_and_its_build_is_ended_for_it(self) -> None:
        with self.site.sessions.begin() as session:
            is_it = BuildRequest.id == self.must.running
            session.execute(update(BuildRequest).where(is_it).values(lease_expires_at=BuildRequest.claimed_at))
        dead = [claim for claim in self.site.ledger.running(expired_only=True) if claim.study_id == self.site.study_id]
        assert dead == [replace(self.claims[-1], player_sha=dead[0].player_sha)]
        self.given_back(end_for_dead_worker(self.site.ledger, dead[0]))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def the_platform_fails(self, data: st.DataObject) -> None:
        claim, holds = self.any_claim(data)
        became: list[RequestStatus] = []
        give_back = partial(self.retrying.retry, claim, Failure("upload", "storage_error", "no answer"), {})
        assert refusal_of(lambda: became.append(give_back())) is (None if holds else LeaseLost), claim
        if holds:
            self.given_back(became[0], ATTEMPTS)

    def given_back(self, became: RequestStatus, attempts: int = 1) -> None:
        """The running build was given up: the study is free, and its request waits again, or has ended with a log."""
        must = self.must
        asked = must.requests[must.running or 0]
        twin = any(other.status == "queued" and other.kind == asked.kind for other in must.requests.values())
        wanted = "cancelled" if asked.is_unwanted or (twin and asked.attempt < attempts) else "failed"
        if not asked.is_unwanted and not twin and asked.attempt < attempts:
            wanted = "queued"
        assert became == wanted, asked
        if wanted == "queued":
            asked.status, must.running = "queued", None
        else:
            must.end(wanted, must.state)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_build_whose_lease_has_not_ended_is_not_ended_for_its_worker(self, data: st.DataObject) -> None:
        claim, _ = self.any_claim(data)
        assert refusal_of(lambda: end_for_dead_worker(self.site.ledger, claim)) is LeaseLost

    @precondition(lambda self: self.must.requests)
    @rule(who=people, data=st.data())
    def somebody_cancels(self, who: str, data: st.DataObject) -> None:
        must = self.must
        request_id = data.draw(st.sampled_from(list(must.requests)[::-1]))
        asked = must.requests[request_id]
        wanted: type[DomainError] | None = None
        if asked.who != who and not must.changes_content(who):
            wanted = PermissionDenied
        elif asked.status not in ("queued", "running"):
            wanted = InvalidRequest
        assert refusal_of(lambda: self.site.ledger.cancel(request_id, self.id_of(who))) is wanted, (asked, who)
        if wanted is None and asked.status == "running":
            asked.is_unwanted = True
        if wanted is None and asked.status == "queued":
            asked.status = "cancelled"
            must.log(asked.kind, must.at, must.at)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def no_log_is_lost_and_none_too_many(self) -> None:
        logs = self.site.logs()
        assert [(log.action, log.state_before, log.state_after) for log in logs] == self.must.logs
        of_builds = [log.build_request_id for log in logs if log.build_request_id is not None]
        assert len(of_builds) == len(set(of_builds))

    @invariant()
    def state_and_content_are_as_they_must_be(self) -> None:
        study, must = self.site.study(), self.must
        assert study.state == must.at
        assert study.state_before_build == (must.state if must.running else None)
        assert (study.is_discoverable, study.deployed_at is not None) == (must.discoverable, must.deployed)
        assert self.reviewed_content() == must.content

    @invariant()
    def it_is_locked_if_and_only_if_exactly_one_build_runs(self) -> None:
        with self.site.sessions.begin() as session:
            requests = list(session.scalars(select(BuildRequest).where(BuildRequest.study_id == self.site.study_id)))
            study = session.get_one(Study, self.site.study_id)
        assert {request.id: request.status for request in requests} == {
            request_id: asked.status for request_id, asked in self.must.requests.items()
        }
        running = [request for request in requests if request.status == "running"]
        assert (study.state in LOCK.values()) == (len(running) == 1)
        assert len(running) <= 1
        for request in running:
            assert study.state == LOCK[request.kind]
            assert (request.fencing_token, request.state_before) == (study.fencing_token, study.state_before_build)

    @invariant()
    def what_stands_after_an_approval_was_approved(self) -> None:
        """From the logs and the content alone, whatever the account above says."""
        approved = False
        for log in self.site.logs():
            if log.action == "approve":
                approved = True
            elif log.action == "reject" or set(log.extra.get("diff", {})) & {*REVIEWED, "lab"}:
                approved = False
            assert approved or log.state_after not in AFTER_APPROVAL, log
        study = self.site.study()
        if (study.state_before_build or study.state) in AFTER_APPROVAL:
            assert approved
            assert self.must.approved is not None
            assert without_pin(self.reviewed_content(), self.must.approved) == self.must.approved


def without_pin(content: dict[str, Any], approved: dict[str, Any]) -> dict[str, Any]:
    """The content without the commit that a build may have pinned where none was named."""
    metadata = dict(content["study_metadata"])
    if "last_known_player_sha" not in approved["study_metadata"]:
        metadata.pop("last_known_player_sha", None)
    return {**content, "study_metadata": metadata}


def refusal_of(act: Callable[[], Any]) -> type[DomainError] | None:
    try:
        act()
    except DomainError as refusal:
        return type(refusal)
    return None


@budget.budgeted
def test_a_study_keeps_its_rules_whatever_people_and_workers_do(site: Site) -> None:
    with site.sessions.begin() as session:
        first, second = session.get_one(Lab, site.lab_id), Lab(name="Infant Lab")
        session.add(second)
        session.flush()
        for lab in (first, second):
            grant_on_lab(session, session.get_one(User, site.study_admin), lab, "guest")
        labs = {"first": first.id, "second": second.id}
    is_sqlite = site.sessions.kw["bind"].dialect.name == "sqlite"
    run_state_machine_as_test(
        lambda: LifeOfAStudy(site, labs),
        settings=settings(
            max_examples=budget.examples(100 if is_sqlite else 36),
            stateful_step_count=50,
            derandomize=True,
            deadline=None,  # what takes long is the database, and the machine may be busy …
            suppress_health_check=[HealthCheck.too_slow],  # … also while the acts are drawn; their number is bounded
            phases=[Phase.generate, Phase.shrink],
        ),
    )
