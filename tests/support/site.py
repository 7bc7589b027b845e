"""A small site for tests: a lab, people in several roles, and studies to work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from domain.db import Sessions
from domain.models import BuildRequest, Lab, OutboxMail, RequestStatus, State, Study, StudyLog, User
from domain.permissions.roles import grant_on_lab, grant_on_site, grant_on_study
from domain.requests.builds import BuildLedger
from domain.requests.failure import Retry
from domain.studies.workflow import transition


@dataclass(frozen=True)
class Site:
    """The ids of everyone and everything, and short ways to look at rows."""

    sessions: Sessions
    lab_id: int
    study_id: int
    superuser: int
    site_admin: int
    study_admin: int
    designer: int
    lab_member: int
    stranger: int
    inactive: int

    @property
    def ledger(self) -> BuildLedger:
        """The ledger that tries nothing twice."""
        return BuildLedger(self.sessions, Retry(attempts=1))

    def study(self, study_id: int | None = None) -> Study:
        with self.sessions.begin() as session:
            return session.get_one(Study, study_id or self.study_id)

    def user(self, user_id: int) -> User:
        with self.sessions.begin() as session:
            return session.get_one(User, user_id)

    def request(self, request_id: int) -> BuildRequest:
        with self.sessions.begin() as session:
            return session.get_one(BuildRequest, request_id)

    def logs(self, study_id: int | None = None) -> list[StudyLog]:
        with self.sessions.begin() as session:
            return list(
                session.scalars(
                    select(StudyLog).where(StudyLog.study_id == (study_id or self.study_id)).order_by(StudyLog.id)
                )
            )

    def mails(self) -> list[OutboxMail]:
        with self.sessions.begin() as session:
            mails = list(session.scalars(select(OutboxMail).order_by(OutboxMail.id)))
            for mail in mails:
                _ = mail.recipient
            return mails

    def set_state(self, state: State, study_id: int | None = None) -> None:
        with self.sessions.begin() as session:
            session.get_one(Study, study_id or self.study_id).state = state.value

    def set_metadata(self, **values: Any) -> None:
        with self.sessions.begin() as session:
            session.get_one(Study, self.study_id).study_metadata = values

    def end_leases(self) -> None:
        """Let the leases of all running builds have ended, as time would."""
        running = update(BuildRequest).where(BuildRequest.status == RequestStatus.RUNNING)
        with self.sessions.begin() as session:
            session.execute(running.values(lease_expires_at=BuildRequest.claimed_at))

    def another_study(self, name: str, state: State = State.CREATED) -> int:
        with self.sessions.begin() as session:
            study = Study(name=name, lab_id=self.lab_id, creator_id=self.study_admin, state=state.value)
            session.add(study)
            session.flush()
            grant_on_study(session, session.get_one(User, self.study_admin), study, "admin")
            return study.id


def transition_as_read(session: Session, study: Study, trigger: str, user: User, comment: str = "") -> Study:
    """Move a study; an approval is of the revision that stands, by a site whose operator trusts every repository."""
    revision = study.revision if trigger == "approve" else None
    return transition(session, study, trigger, user, comment, revision=revision, is_trusted=lambda _: True)


def populate(sessions: Sessions, state: State = State.APPROVED) -> Site:
    """Fill an empty database. The study stands in `state`."""
    with sessions.begin() as session:
        lab = Lab(name="Early Childhood Lab")
        people = {
            name: User(email=f"{name}@example.org", name=name.replace("_", " ").title())
            for name in ("superuser", "site_admin", "study_admin", "designer", "lab_member", "stranger", "inactive")
        }
        people["superuser"].is_superuser = True
        people["inactive"].is_active = False
        people["inactive"].is_superuser = True
        session.add_all([lab, *people.values()])
        session.flush()
        study = Study(name="Apples and oranges", lab_id=lab.id, creator_id=people["study_admin"].id, state=state.value)
        session.add(study)
        session.flush()
        grant_on_site(session, people["site_admin"], "site_admin")
        grant_on_study(session, people["study_admin"], study, "admin")
        grant_on_study(session, people["designer"], study, "design")
        grant_on_lab(session, people["lab_member"], lab, "member")
        return Site(
            sessions=sessions, lab_id=lab.id, study_id=study.id, **{name: user.id for name, user in people.items()}
        )
