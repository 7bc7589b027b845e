"""Responses, rulings and videos for tests, in a study of a small site."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from sqlalchemy import insert, select

from domain.models import ConsentRuling, Response, Study, User, Video
from domain.models.accounts import Role, RolePermission, RoleScope, StudyGrant
from domain.permissions.codes import Permission
from domain.videos.object_names import VideoKey
from tests.support.site import Site

RECORDED_AT = datetime(2026, 3, 1, 10, tzinfo=UTC)
RECORDED_MS = int(RECORDED_AT.timestamp() * 1000)


@dataclass(frozen=True)
class Footage:
    """Adds rows to the site's study."""

    site: Site

    def response(self, *rulings: str, is_preview: bool = False, study_id: int | None = None) -> int:
        """A response with these rulings, oldest first."""
        with self.site.sessions.begin() as session:
            response = Response(study_id=study_id or self.site.study_id, is_preview=is_preview)
            session.add(response)
            session.flush()
            session.add_all(ConsentRuling(response_id=response.id, ruling=ruling) for ruling in rulings)
            return response.id

    def rule(self, response_id: int, ruling: str) -> None:
        with self.site.sessions.begin() as session:
            session.add(ConsentRuling(response_id=response_id, ruling=ruling))

    def key(self, response_id: int, frame_id: str = "1-frame", *, is_consent: bool = False) -> str:
        """A name for a video of the response, as the recorder would give it."""
        with self.site.sessions.begin() as session:
            response = session.get_one(Response, response_id)
            study = session.get_one(Study, response.study_id)
        return VideoKey(
            study_uuid=study.uuid,
            frame_id=frame_id,
            response_uuid=response.uuid,
            unix_ms=RECORDED_MS,
            digits=str(uuid4().int)[:9],
            has_consent_prefix=is_consent,
        ).object_key

    def video(
        self,
        response_id: int,
        frame_id: str = "1-frame",
        *,
        is_consent: bool = False,
        is_gone: bool = False,
        key: str | None = None,
        study_id: int | None = None,
        size_bytes: int | None = 10,
        etag: str | None = "e",
    ) -> str:
        """A video of the response; returns its object key."""
        key = key or self.key(response_id, frame_id, is_consent=is_consent)
        with self.site.sessions.begin() as session:
            session.add(
                Video(
                    study_id=study_id or session.get_one(Response, response_id).study_id,
                    response_id=response_id,
                    object_key=key,
                    frame_id=frame_id,
                    recorded_at=RECORDED_AT,
                    size_bytes=size_bytes,
                    etag=etag,
                    is_consent_footage=is_consent,
                    gone_at=RECORDED_AT if is_gone else None,
                )
            )
        return key

    def many(self, responses: int, videos_each: int) -> None:
        """Accepted responses with videos, fast."""
        with self.site.sessions.begin() as session:
            study = session.get_one(Study, self.site.study_id)
            session.execute(insert(Response), [{"study_id": study.id, "is_preview": False} for _ in range(responses)])
            rows = session.execute(select(Response.id, Response.uuid).where(Response.study_id == study.id)).all()
            session.execute(insert(ConsentRuling), [{"response_id": row.id, "ruling": "accepted"} for row in rows])
            session.execute(
                insert(Video),
                [
                    {
                        "study_id": study.id,
                        "response_id": row.id,
                        "object_key": f"videoStream_{study.uuid}_1-frame_{row.uuid}_{RECORDED_MS}_{number}.mp4",
                        "frame_id": "1-frame",
                        "recorded_at": RECORDED_AT,
                        "size_bytes": 10,
                        "etag": "e",
                        "is_consent_footage": False,
                    }
                    for row in rows
                    for number in range(videos_each)
                ],
            )

    def videos(self) -> dict[str, Video]:
        """All rows by their object's key."""
        with self.site.sessions.begin() as session:
            return {video.object_key: video for video in session.scalars(select(Video))}

    def person_with(self, *permissions: Permission) -> int:
        """Someone who holds exactly these permissions, on the study."""
        with self.site.sessions.begin() as session:
            name = f"p{uuid4().hex}"
            role, user = Role(scope=RoleScope.STUDY, name=name), User(email=f"{name}@example.org", name="Some Person")
            session.add_all([role, user])
            session.flush()
            session.add_all(RolePermission(role_id=role.id, code=code.value) for code in permissions)
            session.add(StudyGrant(user_id=user.id, study_id=self.site.study_id, role_id=role.id))
            return user.id

    def take_away_from(self, user_id: int) -> None:
        """Nothing on the study is the person's any more."""
        with self.site.sessions.begin() as session:
            for grant in session.scalars(select(StudyGrant).where(StudyGrant.user_id == user_id)):
                session.delete(grant)
