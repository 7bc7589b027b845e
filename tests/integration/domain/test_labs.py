"""Studies and their labs, on both databases: who makes a study, who moves it, and who loses their roles by that."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from domain.errors import DomainError, InvalidRequest, PermissionDenied, StudyIsLocked
from domain.models import BuildKind, GrantRecord, Lab, Role, State, Study, StudyGrant, User
from domain.models.studies import LOCK_STATES
from domain.permissions.checks import has_permission
from domain.permissions.codes import Permission
from domain.permissions.roles import grant_on_lab, grant_on_study
from domain.studies.labs import create_study, move_to_lab
from tests.support.site import Site

P = Permission
AFTER_APPROVAL = {State.APPROVED, State.ACTIVE, State.PAUSED, State.DEACTIVATED}


@dataclass(frozen=True)
class Labs:
    """The site with a second lab, in which its study admin is a guest and one person only a member."""

    site: Site
    new_lab: int
    newcomer: int

    def move(self, user_id: int | None = None, lab_id: int | None = None) -> list[str]:
        """Move the study; returns who lost their roles."""
        with self.site.sessions.begin() as session:
            study, user = session.get_one(Study, self.site.study_id), session.get_one(User, user_id or self.mover)
            outsiders = move_to_lab(session, study, session.get_one(Lab, lab_id or self.new_lab), user)
            return [outsider.email for outsider in outsiders]

    @property
    def mover(self) -> int:
        return self.site.study_admin

    def roles(self) -> set[tuple[str, str]]:
        """Who holds which role on the study."""
        with self.site.sessions.begin() as session:
            query = select(User.email, Role.name).join(StudyGrant, StudyGrant.user_id == User.id)
            query = query.join(Role, Role.id == StudyGrant.role_id).where(StudyGrant.study_id == self.site.study_id)
            return {(email.partition("@")[0], name) for email, name in session.execute(query)}

    def records(self) -> list[tuple[str, str, str]]:
        with self.site.sessions.begin() as session:
            query = select(User.email, GrantRecord.role_name, GrantRecord.action)
            query = query.join(User, User.id == GrantRecord.user_id).order_by(GrantRecord.id)
            return [(email.partition("@")[0], name, action) for email, name, action in session.execute(query)]

    def lab_of_study(self) -> int:
        return self.site.study().lab_id


@pytest.fixture
def labs(site: Site) -> Labs:
    with site.sessions.begin() as session:
        lab = Lab(name="Infant Lab")
        newcomer = User(email="newcomer@example.org", name="Newcomer")
        session.add_all([lab, newcomer])
        session.flush()
        grant_on_lab(session, newcomer, lab, "member")
        grant_on_lab(session, session.get_one(User, site.study_admin), lab, "guest")
        return Labs(site, lab.id, newcomer.id)


# -- making ------------------------------------------------------------------------------------------------------------


def make(site: Site, user_id: int, name: str = "A new study", lab_id: int | None = None) -> int:
    with site.sessions.begin() as session:
        lab = session.get_one(Lab, lab_id or site.lab_id)
        return create_study(session, lab, session.get_one(User, user_id), name).id


def studies(site: Site) -> int | None:
    with site.sessions.begin() as session:
        return session.scalar(select(func.count(Study.id)))


@pytest.mark.parametrize("who", ["lab_member", "superuser"])
def test_a_new_study_stands_at_the_beginning_and_its_creator_is_its_admin(site: Site, who: str) -> None:
    creator = getattr(site, who)
    made = make(site, creator)
    study = site.study(made)
    assert (study.name, study.state, study.lab_id, study.creator_id) == ("A new study", "created", site.lab_id, creator)
    assert (study.deployed_at, study.is_discoverable, study.study_metadata) == (None, False, {})
    with site.sessions.begin() as session:
        query = select(StudyGrant.user_id, Role.name).join(Role, Role.id == StudyGrant.role_id)
        assert session.execute(query.where(StudyGrant.study_id == made)).all() == [(creator, "admin")]
        user = session.get_one(User, creator)
        assert has_permission(session, user, P.MANAGE_STUDY_RESEARCHERS, session.get_one(Study, made))


def test_the_role_that_a_creator_gets_is_recorded_like_any_other(labs: Labs) -> None:
    made = make(labs.site, labs.site.lab_member)
    assert labs.records() == [("lab_member", "admin", "grant")]
    with labs.site.sessions.begin() as session:
        (record,) = session.scalars(select(GrantRecord))
        assert (record.acting_id, record.study_id) == (labs.site.lab_member, made)


@pytest.mark.parametrize("who", ["stranger", "designer", "site_admin", "study_admin", "inactive"])
def test_who_may_not_create_studies_in_the_lab_creates_none(site: Site, who: str) -> None:
    with pytest.raises(
        PermissionDenied, match=r"inactive|lacks labs\.create_lab_study on the lab 'Early Childhood Lab'"
    ):
        make(site, getattr(site, who))
    assert studies(site) == 1


def test_a_member_of_one_lab_creates_nothing_in_another(labs: Labs) -> None:
    with pytest.raises(PermissionDenied, match="on the lab 'Infant Lab'"):
        make(labs.site, labs.site.lab_member, lab_id=labs.new_lab)
    assert make(labs.site, labs.newcomer, lab_id=labs.new_lab)


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "cannot be blank"), (" \t\n", "cannot be blank"), ("x" * 256, "255 characters at most"), ("a\x00b", "NUL")],
)
def test_a_new_study_needs_a_name_that_can_be_stored(site: Site, name: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make(site, site.lab_member, name)
    assert studies(site) == 1


# -- moving ------------------------------------------------------------------------------------------------------------


def test_who_is_not_in_the_new_lab_loses_every_role_on_the_study_and_the_others_keep_theirs(labs: Labs) -> None:
    site = labs.site
    with site.sessions.begin() as session:
        study, designer = session.get_one(Study, site.study_id), session.get_one(User, site.designer)
        grant_on_study(session, designer, study, "analysis")
        grant_on_study(session, session.get_one(User, site.lab_member), study, "preview")
        grant_on_study(session, session.get_one(User, labs.newcomer), study, "researcher")
    assert labs.move() == ["designer@example.org", "lab_member@example.org"]
    assert labs.lab_of_study() == labs.new_lab
    assert labs.roles() == {("study_admin", "admin"), ("newcomer", "researcher")}
    assert sorted(labs.records()) == [
        ("designer", "analysis", "revoke"),
        ("designer", "design", "revoke"),
        ("lab_member", "preview", "revoke"),
    ]


def test_roles_on_other_studies_stay(labs: Labs) -> None:
    site = labs.site
    other = site.another_study("The neighbour")
    with site.sessions.begin() as session:
        grant_on_study(session, session.get_one(User, site.designer), session.get_one(Study, other), "design")
    labs.move()
    with site.sessions.begin() as session:
        held = session.scalars(select(StudyGrant.study_id).where(StudyGrant.user_id == site.designer))
        assert list(held) == [other]


def test_who_moves_the_study_away_from_themselves_loses_their_own_role(labs: Labs) -> None:
    site = labs.site
    assert labs.move(site.superuser) == ["designer@example.org"]
    with site.sessions.begin() as session:
        back = session.get_one(Lab, site.lab_id)
        grant_on_lab(session, session.get_one(User, site.superuser), back, "guest")
    assert labs.move(site.superuser, site.lab_id) == ["study_admin@example.org"]
    assert labs.roles() == set()


def test_the_umbrella_of_the_old_lab_ends_and_that_of_the_new_one_begins(labs: Labs) -> None:
    site = labs.site

    def sees(user_id: int) -> bool:
        with site.sessions.begin() as session:
            study, user = session.get_one(Study, site.study_id), session.get_one(User, user_id)
            return has_permission(session, user, P.VIEW_STUDY, study)

    assert (sees(site.lab_member), sees(labs.newcomer)) == (True, False)
    labs.move()
    assert (sees(site.lab_member), sees(labs.newcomer)) == (False, True)


@pytest.mark.parametrize("state", [state for state in State if state not in LOCK_STATES])
def test_a_move_is_one_log_and_after_an_approval_one_rejection(labs: Labs, state: State) -> None:
    site = labs.site
    site.set_state(state)
    labs.move()
    (log,) = site.logs()
    assert log.user_id == site.study_admin
    assert log.extra["diff"] == {
        "lab": ["Early Childhood Lab", "Infant Lab"],
        "roles lost": ["designer@example.org", ""],
    }
    if state in AFTER_APPROVAL:
        assert (log.action, log.state_before, log.state_after) == ("reject", state, "rejected")
        assert log.extra["comment"] == ("Reviewed content changed after the approval: lab. Please submit it again.")
        assert site.study().state == "rejected"
        (mail,) = site.mails()
        assert (mail.recipient.email, mail.template, mail.event) == (
            "study_admin@example.org",
            "study_moved",
            f"study_log:{log.id}",
        )
        assert mail.context["comment"] == log.extra["comment"]
    else:
        assert (log.action, log.state_before, log.state_after, site.study().state) == ("edit", state, state, state)
        assert [mail.template for mail in site.mails()] == (["study_edited"] if state == State.SUBMITTED else [])


def test_without_outsiders_the_log_names_the_labs_only(labs: Labs) -> None:
    with labs.site.sessions.begin() as session:
        designer = session.get_one(User, labs.site.designer)
        grant_on_lab(session, designer, session.get_one(Lab, labs.new_lab), "readonly")
    assert labs.move() == []
    assert labs.site.logs()[0].extra["diff"] == {"lab": ["Early Childhood Lab", "Infant Lab"]}
    assert labs.records() == []


def refused(labs: Labs, kind: type[DomainError], user_id: int | None = None, lab_id: int | None = None) -> str:
    """What the refusal says; nothing may have changed."""
    site = labs.site
    before = (site.study().state, labs.lab_of_study(), labs.roles(), len(site.logs()))
    with pytest.raises(kind) as refusal:
        labs.move(user_id, lab_id)
    assert (site.study().state, labs.lab_of_study(), labs.roles(), len(site.logs())) == before
    assert (labs.records(), site.mails()) == ([], [])
    return str(refusal.value)


def test_to_move_a_study_needs_its_permission_and_that_of_the_new_lab(labs: Labs) -> None:
    site = labs.site
    assert "designer@example.org lacks studies.change_study_lab" in refused(labs, PermissionDenied, site.designer)
    assert "newcomer@example.org lacks studies.change_study_lab" in refused(labs, PermissionDenied, labs.newcomer)
    assert "is inactive" in refused(labs, PermissionDenied, site.inactive)
    with site.sessions.begin() as session:
        third = Lab(name="Third Lab")
        session.add(third)
        session.flush()
        third_id = third.id
    message = refused(labs, PermissionDenied, site.study_admin, third_id)
    assert "study_admin@example.org lacks labs.create_lab_study on the lab 'Third Lab'" in message


@pytest.mark.parametrize("lock", LOCK_STATES)
def test_a_study_that_is_being_built_is_not_moved(labs: Labs, lock: State) -> None:
    with labs.site.sessions.begin() as session:
        study = session.get_one(Study, labs.site.study_id)
        study.state, study.state_before_build = lock.value, "approved"
    assert f"is {lock}" in refused(labs, StudyIsLocked)


def test_a_study_is_not_moved_to_where_it_is(labs: Labs) -> None:
    message = refused(labs, InvalidRequest, labs.site.superuser, labs.site.lab_id)
    assert message == "the study 'Apples and oranges' is in the lab 'Early Childhood Lab' already"


def test_a_build_that_an_outsider_has_asked_for_is_not_carried_out_after_the_move(labs: Labs) -> None:
    site = labs.site
    waiting = site.ledger.request(site.study_id, site.designer, BuildKind.PREVIEW)
    labs.move()
    with pytest.raises(PermissionDenied, match=r"designer@example\.org lacks studies\.change_study"):
        site.ledger.claim(waiting, "run-1", timedelta(minutes=1))
    assert (site.request(waiting).error_code, site.study().state) == ("permission_denied", "rejected")


def test_a_move_belongs_to_its_transaction(labs: Labs) -> None:
    site, before = labs.site, labs.roles()
    with site.sessions() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.study_admin)
        move_to_lab(session, study, session.get_one(Lab, labs.new_lab), user)
        session.rollback()
    assert (labs.lab_of_study(), labs.roles(), labs.records()) == (site.lab_id, before, [])
    assert (site.study().state, site.logs(), site.mails()) == ("approved", [], [])
