"""Studies and their labs: make a study in a lab, and move it to another."""

from __future__ import annotations

from sqlalchemy.orm import Session

from domain.errors import InvalidRequest
from domain.models import Lab, Study, StudyGrant, User
from domain.models.accounts import RoleScope
from domain.permissions.checks import require_permission
from domain.permissions.codes import Permission
from domain.permissions.held import record_grant
from domain.permissions.removal import drop_grants_of_outsiders
from domain.permissions.roles import role_named
from domain.studies.edit import check_name, record_change, refuse_during_build
from domain.studies.log import hold


def create_study(session: Session, lab: Lab, creator: User, name: str) -> Study:
    """A new study of the lab, whose creator is its admin. Raises PermissionDenied, InvalidRequest for a blank name."""
    require_permission(session, creator, Permission.CREATE_LAB_STUDY, lab)
    check_name(name)
    study = Study(name=name, lab_id=lab.id, creator_id=creator.id)
    session.add(study)
    session.flush()
    admin = role_named(session, RoleScope.STUDY, "admin")
    session.add(StudyGrant(user_id=creator.id, study_id=study.id, role_id=admin.id))
    session.flush()
    record_grant(session, creator, creator, admin, study, "grant")
    return study


def move_to_lab(session: Session, study: Study, lab: Lab, user: User) -> list[User]:
    """Move the study to another lab, in the caller's transaction; returns who lost their roles on it.

    Those who hold no role in the new lab lose theirs on the study. The lab is reviewed content: after an approval the
    study is sent back. Raises PermissionDenied, StudyIsLocked, or InvalidRequest if it is that lab's already.
    """
    hold(session, study)
    require_permission(session, user, Permission.CHANGE_STUDY_LAB, study)
    require_permission(session, user, Permission.CREATE_LAB_STUDY, lab)
    refuse_during_build(study)
    if study.lab_id == lab.id:
        raise InvalidRequest(f"the study {study.name!r} is in the lab {lab.name!r} already")
    old = session.get_one(Lab, study.lab_id)
    study.lab_id = lab.id
    session.flush()
    outsiders = drop_grants_of_outsiders(session, user, study)
    diff: dict[str, list[object]] = {"lab": [old.name, lab.name]}
    if outsiders:
        diff["roles lost"] = [", ".join(sorted(outsider.email for outsider in outsiders)), ""]
    record_change(session, study, user, diff)
    return outsiders
