"""The made-up site of the demonstration: a lab, people in several roles, studies in different states."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from domain.lookup import find_user
from domain.models import Lab, Study, User
from domain.permissions.roles import grant_on_lab, grant_on_site, grant_on_study
from domain.studies.labs import create_study
from domain.studies.workflow import transition

LAB = "Early Childhood Cognition Lab"
STUDY = "Which one is bigger?"

ADMIN = "ada.admin@lookit.example"
RESEARCHER = "rosa.researcher@lookit.example"
DESIGNER = "dan.designer@lookit.example"
MEMBER = "mia.member@lookit.example"

PEOPLE = {
    ADMIN: "Ada Admin",
    RESEARCHER: "Rosa Researcher",
    DESIGNER: "Dan Designer",
    MEMBER: "Mia Member",
}

OTHERS = {
    "The curious octopus": ("Do toddlers expect helpers to be helped?", ()),
    "Shapes that sing": ("Do babies match sounds with shapes?", ("submit",)),
    "Grandma's kitchen": ("How do children learn the order of steps?", ("submit", "approve")),
    "Hide and seek": ("When do children search where they last looked?", ("submit", "reject")),
}
"""Studies by name: purpose, and the triggers that bring them to their state."""

WHO = {"submit": RESEARCHER, "approve": ADMIN, "reject": ADMIN}


@dataclass(frozen=True, slots=True)
class Cast:
    """The people whom the demonstration acts as."""

    admin: User
    researcher: User


def populate(session: Session) -> Cast:
    """Make the site, or leave it as it is if it was made before."""
    if session.scalar(select(Lab).where(Lab.name == LAB)) is None:
        _make(session)
    return Cast(admin=find_user(session, ADMIN), researcher=find_user(session, RESEARCHER))


def _make(session: Session) -> None:
    lab = Lab(name=LAB)
    people = {email: User(email=email, name=name) for email, name in PEOPLE.items()}
    session.add_all([lab, *people.values()])
    session.flush()
    grant_on_site(session, people[ADMIN], "site_admin")
    grant_on_lab(session, people[RESEARCHER], lab, "member")
    grant_on_lab(session, people[MEMBER], lab, "member")
    for name, (purpose, triggers) in OTHERS.items():
        study = _study(session, lab, people[RESEARCHER], name, purpose)
        grant_on_study(session, people[DESIGNER], study, "design")
        session.flush()
        for trigger in triggers:
            comment = "Please say how long it takes a family." if trigger == "reject" else ""
            revision = study.revision if trigger == "approve" else None
            transition(session, study, trigger, people[WHO[trigger]], comment, revision=revision)


def new_study(session: Session, sha: str) -> Study:
    """One more study, not yet submitted, whose player is pinned to a commit."""
    lab = session.scalars(select(Lab).where(Lab.name == LAB)).one()
    told = session.scalar(select(func.count(Study.id)).where(Study.name.startswith(STUDY))) or 0
    name = STUDY if not told else f"{STUDY} ({told + 1})"
    researcher = find_user(session, RESEARCHER)
    study = _study(session, lab, researcher, name, "Do two-year-olds choose the bigger of two pictures?")
    study.study_metadata = {"last_known_player_sha": sha}
    grant_on_study(session, find_user(session, DESIGNER), study, "design")
    return study


def _study(session: Session, lab: Lab, creator: User, name: str, purpose: str) -> Study:
    study = create_study(session, lab, creator, name)
    study.purpose = purpose
    study.duration = "10 minutes"
    study.contact = creator.email
    study.compensation = "A picture book"
    study.exit_url = "https://lookit.example/thanks"
    study.is_discoverable = True
    return study
