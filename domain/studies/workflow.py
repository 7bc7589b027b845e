"""The workflow: one shared `transitions` machine that every study goes through, made from the table in workflow.yaml.

`workflow_file.py` reads the table; another file may take its place (`use_workflow`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from sqlalchemy import update
from sqlalchemy.orm import Session
from transitions import EventData, Machine

from domain.db import database_now, storable
from domain.errors import DomainError, InvalidRequest, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.mail.audience import Audience, people
from domain.mail.outbox import enqueue
from domain.models import State, Study, User
from domain.models.studies import LOCK_STATES, WORKFLOW_STATES
from domain.permissions.checks import require_permission, users_with_permission
from domain.permissions.codes import Permission
from domain.studies.approval import APPROVED_STATES, IsTrusted, approve, only_the_default, rescind
from domain.studies.log import hold, record
from domain.studies.workflow_file import read_table
from domain.studies.workflow_table import APPROVE, Notice, Row

INITIAL_STATE = State.CREATED
SHIPPED_FILE = Path(__file__).with_name("workflow.yaml")
"""The workflow that ships with the project."""


@dataclass(slots=True)
class _Active:
    """The workflow of this process. One, since a deployment has one: its studies are rows of one database."""

    table: list[Row] | None = None


_active = _Active()


def active_table() -> list[Row]:
    """Return the table that this process goes by: that of the shipped file, until another one is named."""
    if _active.table is None:
        _active.table = read_table(SHIPPED_FILE)
    return _active.table


def use_workflow(file: Path) -> None:
    """Go by the table in this file from now on. Raises InvalidRequest, and then nothing has changed."""
    table = read_table(file)
    if table != _active.table:
        _active.table = table
        shared_machine.cache_clear()


@dataclass(slots=True)
class Passage:
    """One study on its way through one transition: the model that the shared machine moves."""

    session: Session
    study: Study
    user: User
    comment: str
    state: str
    revision: int | None = None
    is_trusted: IsTrusted = only_the_default
    state_before: str = field(init=False)
    row: Row | None = None

    def __post_init__(self) -> None:
        self.state_before = self.state


def refusal_of(session: Session, study: Study, user: User, row: Row) -> DomainError | None:
    """Why this user may not take this row with this study, permission first; None if they may. The only such place."""
    permission = Permission(row["permission"])
    try:
        require_permission(session, user, permission, study)
    except PermissionDenied as denied:
        return denied
    if not _stands_ready(study, row):
        return TransitionNotAllowed(
            f"the study {study.name!r} has never been deployed with its present player:"
            " request a deployment, which activates it"
        )
    return None


def _stands_ready(study: Study, row: Row) -> bool:
    """Whether the study itself allows it, whoever asks."""
    return not row.get("needs_deployment") or study.deployed_at is not None


def _condition(row: Row) -> Callable[[EventData], bool]:
    """The row's condition for the machine: it refuses by raising, so that the reason reaches people."""

    def may_be_taken(event: EventData) -> bool:
        passage = cast("Passage", event.model)
        if refusal := refusal_of(passage.session, passage.study, passage.user, row):
            raise refusal
        return True

    return may_be_taken


def machine_arguments(table: Sequence[Row] | None = None) -> dict[str, Any]:
    """Return a table, by default the active one, as `transitions` wants it; the machine that draws takes it, too."""

    def remember(row: Row) -> Any:
        def remember_row(event: EventData) -> None:
            cast("Passage", event.model).row = row

        return remember_row

    return {
        "states": [state.value for state in WORKFLOW_STATES],
        "initial": INITIAL_STATE.value,
        "auto_transitions": False,  # to_active() would step around the approval
        "send_event": True,
        "transitions": [
            {
                "trigger": row["trigger"],
                "source": row["source"],
                "dest": row["dest"],
                "conditions": _condition(row),
                "before": remember(row),
            }
            for row in (active_table() if table is None else table)
        ],
    }


@cache
def shared_machine() -> Machine:
    """The one machine for all studies: a machine per row would cost milliseconds and memory each."""
    return Machine(model=None, after_state_change=finalize_state_change, **machine_arguments())


def triggers_from(state: str) -> list[str]:
    """The triggers that the table knows from a state, whoever pulls them."""
    return shared_machine().get_triggers(state) if state in set(WORKFLOW_STATES) else []


@dataclass(frozen=True, slots=True)
class Choice:
    """A trigger, from where a study stands: whether this user may pull it now, and if not, why, and who could."""

    trigger: str
    dest: str | None
    """Where it leads; None if it does not start here."""
    allowed: bool
    reason: str
    who_could: tuple[str, ...]
    """E-mail addresses, where it is only the permission that is missing."""


def allowed_triggers(session: Session, study: Study, user: User) -> list[Choice]:
    """Every trigger of the table, in its order: what this user may do now, and for the rest why not and who could."""
    choices = {}
    for row in active_table():
        if row["trigger"] in choices and choices[row["trigger"]].dest is not None:
            continue
        choices[row["trigger"]] = _choice(session, study, user, row)
    return list(choices.values())


def _choice(session: Session, study: Study, user: User, row: Row) -> Choice:
    trigger = row["trigger"]
    if study.state in LOCK_STATES:
        reason = f"the study is {study.state}: wait until its build has ended"
        return Choice(trigger=trigger, dest=None, allowed=False, reason=reason, who_could=())
    if study.state not in row["source"]:
        sources = sorted(
            {state for other in active_table() if other["trigger"] == trigger for state in other["source"]}
        )
        reason = f"the study is {study.state}; {trigger} starts from {', '.join(sources)}"
        return Choice(trigger=trigger, dest=None, allowed=False, reason=reason, who_could=())
    refusal = refusal_of(session, study, user, row)
    could: tuple[str, ...] = ()
    if isinstance(refusal, PermissionDenied) and _stands_ready(study, row):
        could = tuple(other.email for other in users_with_permission(session, Permission(row["permission"]), study))
    return Choice(
        trigger=trigger,
        dest=row["dest"],
        allowed=refusal is None,
        reason=str(refusal) if refusal else "",
        who_could=could,
    )


def transition(
    session: Session,
    study: Study,
    trigger: str,
    user: User,
    comment: str = "",
    *,
    revision: int | None = None,
    is_trusted: IsTrusted = only_the_default,
) -> Study:
    """Move the study, in the caller's transaction: state, one log, and mails to those the table names.

    `approve` needs the `revision` that the reviewer has read; `is_trusted` says which repositories the operator trusts.
    Raises InvalidRequest (no such trigger), StudyIsLocked, TransitionNotAllowed or PermissionDenied; then nothing
    has changed.
    """
    machine = shared_machine()
    if trigger not in machine.events:
        raise InvalidRequest(f"there is no trigger {trigger!r}; there are {', '.join(machine.events)}")
    if revision is not None and trigger != APPROVE:
        raise InvalidRequest(f"a revision goes with the trigger {APPROVE!r} alone, not with {trigger!r}")
    hold(session, study)
    state = study.state
    if state in LOCK_STATES:
        raise StudyIsLocked(
            f"the study {study.name!r} is {state}: it can be moved again once its build has ended"
            f" (`lookit-ops build list` shows it)"
        )
    allowed = triggers_from(state or "")
    if trigger not in allowed:
        raise TransitionNotAllowed(
            f"the study {study.name!r} is {state}, from where there is no {trigger!r};"
            f" from here there is {', '.join(allowed) or 'no way on'}"
        )
    passage = Passage(
        session=session,
        study=study,
        user=user,
        comment=storable(comment),
        state=str(state),
        revision=revision,
        is_trusted=is_trusted,
    )
    machine.events[trigger].trigger(passage)
    return study


def finalize_state_change(event: EventData) -> None:
    """Write the new state, by compare-and-set, and finish the transition: all in the caller's transaction."""
    passage = cast("Passage", event.model)
    session, study = passage.session, passage.study
    extra: dict[str, Any] = {}
    if event.event.name == APPROVE:
        extra = approve(session, study, passage.revision, passage.is_trusted)
    elif passage.state not in APPROVED_STATES:
        rescind(study)
        session.flush()
    moved = (
        update(Study)
        .where(Study.id == study.id, Study.state == passage.state_before, Study.revision == study.revision)
        .values(state=passage.state, state_changed_at=database_now())
        .returning(Study.id)
    )
    if session.scalar(moved) is None:
        raise TransitionNotAllowed(
            f"the study {study.name!r} has just left the state {passage.state_before!r}: look at it again"
        )
    session.refresh(study)
    done = Done(event.event.name, passage.state_before, passage.state, passage.comment, extra)
    finish_transition(session, study, passage.user, replace(done, notice=(passage.row or {}).get("notice")))


@dataclass(frozen=True, slots=True)
class Done:
    """A transition whose state is written: what the log and the mails tell of it."""

    action: str
    state_before: str
    state_after: str
    comment: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    notice: Notice | None = None


def finish_transition(session: Session, study: Study, user: User, done: Done) -> None:
    """The one place for what must happen after each transition, pulled by a person or brought about by an edit.

    A deployment activates a study without one: see `finish` in `domain/requests/builds.py`.
    """
    log = record(
        session,
        study,
        action=done.action,
        user_id=user.id,
        state_before=done.state_before,
        state_after=done.state_after,
        extra=({"comment": done.comment} if done.comment else {}) | done.extra,
    )
    if done.notice is None:
        return
    enqueue(
        session,
        event=f"study_log:{log.id}",
        template="study_moved",
        context={
            "study": {"name": study.name, "uuid": str(study.uuid)},
            "headline": done.notice["headline"],
            "sentence": done.notice["sentence"],
            "state_before": done.state_before,
            "state_after": done.state_after,
            "moved_by": user.name,
            "comment": done.comment,
        },
        recipients=people(session, study, Audience(done.notice["audience"])),
        study=study,
        audiences=(Audience(done.notice["audience"]),),
    )
