"""Our side: role grants in the domain's own tables, asked through the domain's own functions."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from sqlalchemy import event, func, insert, select
from sqlalchemy.orm import Session

from benchmarks.permissions.population import Population, email_of, study_name
from benchmarks.permissions.questions import (
    PAGE_LENGTH,
    Answer,
    Check,
    Creation,
    Holders,
    Listing,
    Page,
    Question,
)
from benchmarks.permissions.side import Side
from domain.db import engine_for, sessions_for
from domain.migrations import upgrade
from domain.models import Lab, LabGrant, Role, RolePermission, SiteGrant, Study, StudyGrant, User
from domain.models.accounts import RoleScope
from domain.permissions.checks import has_permission, studies_with_permission, users_with_permission
from domain.studies.labs import create_study


class OurSide(Side):
    """The domain's permissions in the database of this URL."""

    def __init__(self, url: str) -> None:
        self._engine = engine_for(url)
        self._sessions = sessions_for(self._engine)
        self._session: Session = self._sessions()

    @property
    def tables(self) -> list[str]:
        """Grants, roles and what roles hold."""
        return [model.__tablename__ for model in (StudyGrant, LabGrant, SiteGrant, Role, RolePermission)]

    def load(self, population: Population) -> None:
        """Into the newest schema, whose built-in roles are there already."""
        upgrade(self._engine)
        grants = population.grants
        with self._sessions.begin() as session:
            session.execute(
                insert(User),
                [
                    {
                        "email": email_of(number),
                        "name": f"Researcher {number}",
                        "is_active": number not in population.inactive,
                        "is_superuser": number in population.superusers,
                    }
                    for number in population.everyone
                ],
            )
            session.execute(insert(Lab), [{"name": f"Lab {number}"} for number in range(1, population.labs + 1)])
            session.execute(
                insert(Study),
                [
                    {"name": study_name(number), "lab_id": lab, "creator_id": creator}
                    for number, (lab, creator) in enumerate(
                        zip(population.lab_of_study, population.creator_of_study, strict=True), 1
                    )
                ],
            )
            role = {(RoleScope(role.scope), role.name): role.id for role in session.scalars(select(Role))}
            session.execute(
                insert(StudyGrant),
                [
                    {"user_id": user, "study_id": study, "role_id": role[RoleScope.STUDY, name]}
                    for user, study, name in sorted(grants.on_studies)
                ],
            )
            session.execute(
                insert(LabGrant),
                [
                    {"user_id": user, "lab_id": lab, "role_id": role[RoleScope.LAB, name]}
                    for user, lab, name in sorted(grants.on_labs)
                ],
            )
            session.execute(
                insert(SiteGrant),
                [{"user_id": user, "role_id": role[RoleScope.SITE, name]} for user, name in sorted(grants.on_site)],
            )

    @contextmanager
    def request(self) -> Generator[None]:
        """A session, as for a request of the web application."""
        with self._sessions.begin() as self._session:
            yield

    def prepare(self, question: Question) -> Callable[[], object]:
        """As in a request: the rows that the question is about are in the session."""
        session = self._session
        match question:
            case Check(user, permission, study):
                who, what = session.get_one(User, user), session.get_one(Study, study)
                return lambda: has_permission(session, who, permission, what)
            case Listing(user, permission):
                who = session.get_one(User, user)
                return lambda: session.scalars(
                    studies_with_permission(session, who, permission).order_by(Study.id)
                ).all()
            case Page(user, permission):
                who = session.get_one(User, user)

                def page() -> tuple[int | None, list[Study]]:
                    visible = studies_with_permission(session, who, permission)
                    count = session.scalar(visible.with_only_columns(func.count(Study.id)))
                    return count, list(session.scalars(visible.order_by(Study.id.desc()).limit(PAGE_LENGTH)))

                return page
            case Holders(permission, study):
                what = session.get_one(Study, study)
                return lambda: users_with_permission(session, permission, what)
            case Creation(user, lab, name):
                who, where = session.get_one(User, user), session.get_one(Lab, lab)

                def create() -> Study:
                    with self._sessions.begin() as writing:
                        return create_study(writing, where, who, name)

                return create

    def plain(self, question: Question, result: object) -> Answer:
        """Ids instead of rows."""
        match result:
            case bool():
                return result
            case Study():
                return result.id
            case int() as count, list() as rows:
                return (count, *(row.id for row in rows))
            case list() as rows:
                return tuple(row.id for row in rows)
        raise TypeError(f"{question} was answered with {result!r}")

    @contextmanager
    def recording(self) -> Generator[list[str]]:
        """What goes through the engine."""
        statements: list[str] = []

        def record(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        event.listen(self._engine, "before_cursor_execute", record)
        try:
            yield statements
        finally:
            event.remove(self._engine, "before_cursor_execute", record)
