"""The rows: accounts, studies, responses, requests and mails, as typed SQLAlchemy models."""

from domain.models.accounts import GrantRecord, Lab, LabGrant, Role, RolePermission, SiteGrant, StudyGrant, User
from domain.models.mails import MailStatus, OutboxMail
from domain.models.requests import (
    ArchiveContent,
    ArchiveKind,
    ArchiveRequest,
    BuildKind,
    BuildRequest,
    RequestStatus,
)
from domain.models.responses import ConsentRuling, Response, Video
from domain.models.studies import State, Study, StudyLog

__all__ = [
    "ArchiveContent",
    "ArchiveKind",
    "ArchiveRequest",
    "BuildKind",
    "BuildRequest",
    "ConsentRuling",
    "GrantRecord",
    "Lab",
    "LabGrant",
    "MailStatus",
    "OutboxMail",
    "RequestStatus",
    "Response",
    "Role",
    "RolePermission",
    "SiteGrant",
    "State",
    "Study",
    "StudyGrant",
    "StudyLog",
    "User",
    "Video",
]
