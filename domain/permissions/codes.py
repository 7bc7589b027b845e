"""What may be asked for: every permission, as `app.codename`. A test fails when one is undocumented."""

from __future__ import annotations

from enum import StrEnum


class Permission(StrEnum):
    """A permission. Held on a lab, a study permission is an *umbrella*: it holds for every study of that lab."""

    VIEW_STUDY = "studies.view_study"
    CHANGE_STUDY = "studies.change_study"
    CHANGE_STUDY_STATUS = "studies.change_study_status"
    MANAGE_STUDY_RESEARCHERS = "studies.manage_study_researchers"
    VIEW_STUDY_RESPONSES = "studies.view_study_responses"
    VIEW_STUDY_PREVIEW_DATA = "studies.view_study_preview_data"
    CODE_STUDY_CONSENT = "studies.code_study_consent"
    CODE_STUDY_PREVIEW_CONSENT = "studies.code_study_preview_consent"
    CONTACT_STUDY_PARTICIPANTS = "studies.contact_study_participants"
    EDIT_STUDY_FEEDBACK = "studies.edit_study_feedback"
    CHANGE_STUDY_LAB = "studies.change_study_lab"
    DELETE_STUDY_PREVIEW_DATA = "studies.delete_study_preview_data"
    APPROVE_STUDY = "studies.approve_study"
    CREATE_LAB_STUDY = "labs.create_lab_study"
    MANAGE_LAB_RESEARCHERS = "labs.manage_lab_researchers"
    CHANGE_LAB = "labs.change_lab"
    APPROVE_LAB = "labs.approve_lab"
    VIEW_LAB_RESEARCHERS = "labs.view_lab_researchers"


STUDY_PERMISSIONS = frozenset(permission for permission in Permission if permission.startswith("studies."))
LAB_PERMISSIONS = frozenset(permission for permission in Permission if permission.startswith("labs."))
UMBRELLA_PERMISSIONS = STUDY_PERMISSIONS - {Permission.APPROVE_STUDY}
