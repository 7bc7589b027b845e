"""Change a study's content; what was reviewed cannot change behind the reviewers' back.

After an approval, a change of reviewed content sends the study back to `rejected`, with a comment that says why.
"""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from domain.db import database_now, storable
from domain.errors import InvalidRequest, StudyIsLocked
from domain.mail.audience import Audience, people
from domain.mail.outbox import enqueue
from domain.models import MailStatus, OutboxMail, State, Study, User
from domain.models.studies import LOCK_STATES, REVIEWED_FIELDS
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.studies.approval import APPROVED_STATES, has_changed, rescind
from domain.studies.log import hold, record
from domain.studies.workflow import Done, finish_transition
from domain.studies.workflow_table import Notice

EDITABLE = frozenset(REVIEWED_FIELDS) - {"lab_id"} | {"is_discoverable"}
SENT_BACK: Notice = {
    "audience": Audience.RESEARCHERS.value,
    "headline": "needs another review",
    "sentence": "Your study was changed after its approval, so it needs to be reviewed again.",
}
LONGEST_VALUE = 1_000_000
"""Characters of one field: the log keeps both sides of a change in full, for a reviewer must see all of it."""
FIELD_TYPES: dict[str, type] = {"study_metadata": dict, "structure": dict, "is_discoverable": bool}
"""The fields that do not hold text."""
_IN_WORDS: dict[type, str] = {str: "text", dict: "a JSON object", bool: "true or false"}
LONGEST_NAME = 255
STUDY_EDITED = "study_edited"
"""The template of the mail that tells reviewers of a change."""
REVIEWERS_WAIT = timedelta(minutes=10)
PLAYER_FIELDS = ("player_repo_url", "last_known_player_sha")


def edit(session: Session, study: Study, user: User, changes: dict[str, Any]) -> list[str]:
    """Apply changes by field name, in the caller's transaction; returns the fields that really changed.

    The keys `player_repo_url` and `last_known_player_sha` change the study's metadata; an empty value removes them.
    Raises InvalidRequest (unknown field, malformed value, blank name), StudyIsLocked during a build, PermissionDenied.
    """
    hold(session, study)
    require_permission(session, user, Permission.CHANGE_STUDY, study)
    refuse_during_build(study)
    _check_values(changes)
    wanted = _with_metadata(study, changes)
    if unknown := sorted(set(wanted) - EDITABLE):
        raise InvalidRequest(
            f"a study has no field {', '.join(unknown)} to edit; there are {', '.join(sorted(EDITABLE))}"
        )
    diff = {
        name: [getattr(study, name), value] for name, value in wanted.items() if _differ(getattr(study, name), value)
    }
    if not diff:
        return []
    for name, (_, value) in diff.items():
        setattr(study, name, value)
        flag_modified(study, name)  # for Python, 1 is true, and nothing would be written
    if _player(diff.get("study_metadata", [{}, {}])[0]) != _player(diff.get("study_metadata", [{}, {}])[1]):
        study.deployed_at = None  # what was deployed is another player than the one that will be reviewed
    record_change(session, study, user, diff)
    return sorted(diff)


def _player(metadata: dict[str, Any]) -> list[Any]:
    return [metadata.get(name) for name in PLAYER_FIELDS]


def refuse_during_build(study: Study) -> None:
    """Raise StudyIsLocked while a build works on what is to be changed."""
    if study.state in LOCK_STATES:
        raise StudyIsLocked(f"the study {study.name!r} is {study.state}: change it once its build has ended")


def record_change(session: Session, study: Study, user: User, diff: dict[str, list[Any]]) -> None:
    """Log what changed, as `field: [before, after]`; reviewed content raises the revision.

    After an approval, reviewed content sends the study back; while it is reviewed, the reviewers are told.
    """
    before = study.state
    reviewed = [name for name in diff if name in REVIEWED_FIELDS or name == "lab"]
    if reviewed:
        read = study.revision
        has_changed(study)
        if before == State.SUBMITTED:
            tell_reviewers(session, study, user, read)
    if reviewed and before in APPROVED_STATES:
        _send_back(session, study, user, before, diff, reviewed)
    else:
        record(
            session,
            study,
            action="edit",
            user_id=user.id,
            state_before=before,
            state_after=before,
            extra={"diff": diff},
        )


def tell_reviewers(session: Session, study: Study, user: User | None, read: int) -> None:
    """Mail the site's reviewers that a study has changed since it was submitted; one mail for all changes of a while.

    The mail waits for `REVIEWERS_WAIT`. What changes meanwhile needs no other one: it tells of the revision that was
    submitted, and sends the reviewer to look at what stands.
    """
    is_waiting = select(OutboxMail.id).where(
        OutboxMail.study_id == study.id,
        OutboxMail.template == STUDY_EDITED,
        OutboxMail.status == MailStatus.WAITING,
        OutboxMail.attempts == 0,
    )
    if session.scalar(is_waiting.limit(1)) is not None:
        return
    session.flush()
    enqueue(
        session,
        event=f"study:{study.id}:edited_after_revision:{read}",
        template=STUDY_EDITED,
        context={
            "study": {"name": study.name, "uuid": str(study.uuid)},
            "revision": read,
            "edited_by": user.name if user else "the platform",
        },
        recipients=people(session, study, Audience.SITE_ADMINS),
        study=study,
        audiences=(Audience.SITE_ADMINS,),
        wait=REVIEWERS_WAIT,
    )


def _check_values(changes: dict[str, Any]) -> None:
    """Refuse what the database would, before it says so in its own words."""
    for field, value in changes.items():
        if field == "name":
            check_name(value)
        wanted = FIELD_TYPES.get(field, str)
        if (size := len(json.dumps(value))) > LONGEST_VALUE:
            raise InvalidRequest(f"the field {field} has {LONGEST_VALUE:,} characters at most, not {size:,}")
        may_be_empty = field in PLAYER_FIELDS and value is None
        if field in EDITABLE | set(PLAYER_FIELDS) and not may_be_empty and not isinstance(value, wanted):
            raise InvalidRequest(f"the field {field} holds {_IN_WORDS[wanted]}, not {value!r}")
        if reason := _cannot_be_stored(value):
            raise InvalidRequest(f"the field {field} cannot hold {reason}")


def check_name(name: str) -> None:
    """Raise InvalidRequest for a name that no study can have."""
    if not str(name or "").strip():
        raise InvalidRequest("a study's name cannot be blank")
    if len(str(name)) > LONGEST_NAME:
        raise InvalidRequest(f"a study's name has {LONGEST_NAME} characters at most, not {len(str(name))}")
    if reason := _cannot_be_stored(name):
        raise InvalidRequest(f"a study's name cannot hold {reason}")


def _cannot_be_stored(value: Any) -> str | None:
    """What neither of the databases can hold, in a text or anywhere within a JSON value."""
    match value:
        case str() if storable(value) != value:
            return "the character NUL, or half of a character"
        case float() if not math.isfinite(value):
            return f"{value}, which is no number in JSON"
        case dict():
            return next(filter(None, map(_cannot_be_stored, [*value.keys(), *value.values()])), None)
        case list():
            return next(filter(None, map(_cannot_be_stored, value)), None)
        case _:
            return None


def _differ(before: Any, after: Any) -> bool:
    """Whether two values differ as JSON: there 1 is not true, as in Python, and the order of keys means nothing."""
    return json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True)


def _with_metadata(study: Study, changes: dict[str, Any]) -> dict[str, Any]:
    """Fold the player's two keys into one new value of the metadata."""
    rest = {name: value for name, value in changes.items() if name not in PLAYER_FIELDS}
    player = {name: value for name, value in changes.items() if name in PLAYER_FIELDS}
    if player:
        merged = {**study.study_metadata, **rest.get("study_metadata", {}), **player}
        rest["study_metadata"] = {name: value for name, value in merged.items() if value or name not in PLAYER_FIELDS}
    return rest


def _send_back(
    session: Session, study: Study, user: User, before: str, diff: dict[str, Any], reviewed: list[str]
) -> None:
    comment = f"Reviewed content changed after the approval: {', '.join(sorted(reviewed))}. Please submit it again."
    study.state = State.REJECTED.value
    rescind(study)
    session.flush()
    session.execute(update(Study).where(Study.id == study.id).values(state_changed_at=database_now()))
    session.refresh(study)
    done = Done("reject", before, study.state, comment, {"diff": diff}, SENT_BACK)
    finish_transition(session, study, user, done)
