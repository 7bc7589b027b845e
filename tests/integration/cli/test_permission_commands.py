"""`permission …`, and what `study transition`, `diff` and `move-to-lab` say about who may do what."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select

from domain.models import GrantRecord, Lab, Role, RolePermission, State, Study, StudyGrant, User
from domain.permissions.roles import grant_on_lab
from tests.support.site import Site

STUDY, LAB = "Apples and oranges", "Early Childhood Lab"
ADMIN, SITE_ADMIN, SUPERUSER = "study_admin@example.org", "site_admin@example.org", "superuser@example.org"
STRANGER, DESIGNER = "stranger@example.org", "designer@example.org"


def said(shown: Any) -> str:
    """What was printed, in one line: the width of the terminal breaks it anywhere."""
    return " ".join(shown.out.split())


def records(site: Site) -> list[tuple[str, str, str]]:
    with site.sessions.begin() as session:
        query = select(GrantRecord).order_by(GrantRecord.id)
        return [(record.role_name, record.scope, record.action) for record in session.scalars(query)]


def held(site: Site, user_id: int) -> set[str]:
    """The roles that somebody holds on the study."""
    with site.sessions.begin() as session:
        query = select(Role.name).join(StudyGrant, StudyGrant.role_id == Role.id).where(StudyGrant.user_id == user_id)
        return set(session.scalars(query))


@pytest.fixture
def new_lab(site: Site) -> int:
    with site.sessions.begin() as session:
        lab = Lab(name="Infant [Lab]")
        session.add(lab)
        session.flush()
        grant_on_lab(session, session.get_one(User, site.study_admin), lab, "guest")
        return lab.id


def test_the_first_site_admin_is_named_once(run, site: Site) -> None:
    refused = run("permission", "first-admin", STRANGER)
    assert (refused.status, refused.out) == (1, "")
    assert f"{SITE_ADMIN} is site_admin already" in " ".join(refused.err.split())
    last = run("permission", "revoke", SITE_ADMIN, "site_admin", "--as", SUPERUSER)
    assert (last.status, last.out) == (1, "")
    assert "is the last admin platform-wide" in " ".join(last.err.split())
    run("permission", "revoke", SITE_ADMIN, "site_admin", "--as", SUPERUSER, "--force")
    named = run("permission", "first-admin", STRANGER)
    assert said(named).startswith(f"Is now site_admin platform-wide, the first one: {STRANGER}. gains: ")
    assert "nobody has an account" in run("permission", "first-admin", "nobody@example.org").err
    assert records(site) == [("site_admin", "site", "revoke"), ("site_admin", "site", "grant")]
    assert run("permission", "grant", DESIGNER, "site_admin", "--as", STRANGER).status == 0


# -- grant, revoke -----------------------------------------------------------------------------------------------------


def test_a_role_is_given_and_taken_and_what_that_means_is_said(run, site: Site) -> None:
    given = run("permission", "grant", STRANGER, "analysis", "--study", STUDY, "--as", ADMIN)
    assert given.status == 0, given.err
    assert said(given).startswith(f"Is now analysis on the study {STUDY!r} ({site.study().uuid}): {STRANGER}. gains: ")
    assert "studies.view_study_responses" in given.out
    assert "loses" not in given.out
    assert held(site, site.stranger) == {"analysis"}
    taken = run("permission", "revoke", STRANGER, "analysis", "--study", str(site.study().uuid), "--as", ADMIN)
    assert f"no longer analysis on the study {STUDY!r}" in said(taken)
    assert "loses: studies.code_study_preview_consent, studies.delete_study_preview_data" in said(taken)
    assert held(site, site.stranger) == set()
    assert records(site) == [("analysis", "study", "grant"), ("analysis", "study", "revoke")]


def test_roles_on_labs_and_platform_wide_are_given_alike(run, site: Site) -> None:
    on_lab = run("permission", "grant", STRANGER, "guest", "--lab", LAB, "--as", SITE_ADMIN)
    assert said(on_lab) == f"Is now guest on the lab {LAB!r}: {STRANGER}. gains: labs.create_lab_study"
    everywhere = run("permission", "grant", STRANGER.upper(), "site_admin", "--as", SITE_ADMIN)
    assert said(everywhere).startswith(f"Is now site_admin platform-wide: {STRANGER.upper()}. gains: labs.approve_lab")
    assert records(site) == [("guest", "lab", "grant"), ("site_admin", "site", "grant")]


@pytest.mark.parametrize(("command", "role"), [("grant", "analysis"), ("revoke", "design")])
def test_a_dry_run_says_the_same_and_changes_nothing(run, site: Site, command: str, role: str) -> None:
    arguments = ["permission", command, DESIGNER, role, "--study", STUDY, "--as", ADMIN]
    dry = run(*arguments, "--dry-run")
    assert dry.status == 0
    assert said(dry).startswith("Would be ")
    assert (held(site, site.designer), records(site)) == ({"design"}, [])
    real = run(*arguments)
    assert said(dry).removeprefix("Would be ") == said(real).removeprefix("Is now ")
    assert len(records(site)) == 1


def test_a_role_that_adds_nothing_says_so(run, site: Site) -> None:
    added = run("permission", "grant", ADMIN, "preview", "--study", STUDY, "--as", ADMIN)
    assert said(added).endswith("Nothing changes in what they may do: other roles of theirs hold the same.")


def test_a_superuser_is_not_said_to_hold_other_roles(run, site: Site) -> None:
    added = run("permission", "grant", SUPERUSER, "preview", "--study", STUDY, "--as", ADMIN)
    assert "Nothing changes in what they may do" in said(added)
    assert "other roles of theirs" not in said(added)


# -- list, who ---------------------------------------------------------------------------------------------------------


def test_the_roles_on_an_object_are_listed(run, site: Site) -> None:
    listed = json.loads(run("permission", "list", "--study", STUDY, "--json").out)
    assert listed == [
        {"email": DESIGNER, "name": "Designer", "role": "design"},
        {"email": ADMIN, "name": "Study Admin", "role": "admin"},
    ]
    assert json.loads(run("permission", "list", "--lab", LAB, "--json").out) == [
        {"email": "lab_member@example.org", "name": "Lab Member", "role": "member"}
    ]
    assert [row["role"] for row in json.loads(run("permission", "list", "--json").out)] == ["site_admin"]
    shown = run("permission", "list", "--study", STUDY)
    assert f"2 roles on the study {STUDY!r}" in said(shown)
    assert DESIGNER in shown.out


def test_everyone_who_holds_a_permission_is_listed_superusers_among_them(run, site: Site) -> None:
    who = json.loads(run("permission", "who", "studies.approve_study", "--study", STUDY, "--json").out)
    assert who == [{"email": SITE_ADMIN, "name": "Site Admin"}, {"email": SUPERUSER, "name": "Superuser"}]
    shown = run("permission", "who", "create_lab_study", "--lab", LAB)
    assert f"2 accounts with labs.create_lab_study on the lab {LAB!r}" in said(shown)
    assert "lab_member@example.org" in shown.out
    assert [row["email"] for row in json.loads(run("permission", "who", "change_lab", "--json").out)] == [
        SITE_ADMIN,
        SUPERUSER,
    ]


# -- explain -----------------------------------------------------------------------------------------------------------


def test_an_explanation_says_by_which_group_a_permission_is_held(run, site: Site) -> None:
    shown = run("permission", "explain", DESIGNER, "change_study", "--study", STUDY)
    uuid = site.study().uuid
    assert shown.status == 0
    assert (
        said(shown) == f"{DESIGNER} holds studies.change_study on the study {STUDY!r} ({uuid}): as design of the study."
    )
    found = json.loads(run("permission", "explain", DESIGNER, "studies.change_study", "--study", STUDY, "--json").out)
    assert found == {"held": True, "reasons": [said(shown)]}


def test_an_explanation_of_what_is_missing_is_an_answer_not_an_error(run, site: Site) -> None:
    shown = run("permission", "explain", DESIGNER, "approve_study", "--study", STUDY)
    assert (shown.status, shown.err) == (0, "")
    assert [line.rstrip() for line in shown.out.splitlines()][1:] == [
        "Groups platform-wide that hold it: site_admin.",
        f"Who could put somebody into one: {SITE_ADMIN}, {SUPERUSER}.",
    ]
    found = json.loads(run("permission", "explain", DESIGNER, "approve_study", "--study", STUDY, "--json").out)
    assert (found["held"], len(found["reasons"])) == (False, 3)
    assert "inactive account" in run("permission", "explain", "inactive@example.org", "view_study").out
    assert f"on the lab {LAB!r}" in said(run("permission", "explain", STRANGER, "change_lab", "--lab", LAB))


def test_names_that_look_like_markup_are_printed_as_they_are(run, site: Site) -> None:
    with site.sessions.begin() as session:
        role = Role(scope="study", name="[bold]listener[/]")
        session.add(role)
        session.get_one(Study, site.study_id).name = "Apples [red]and[/] pears"
        session.flush()
        session.add(RolePermission(role_id=role.id, code="studies.view_study_responses"))
    given = run("permission", "grant", STRANGER, "[bold]listener[/]", "--study", str(site.study().uuid), "--as", ADMIN)
    assert "Is now [bold]listener[/] on the study 'Apples [red]and[/] pears'" in said(given)
    listed = run("permission", "list", "--study", str(site.study().uuid)).out
    assert "[bold]listener[/]" in listed


# -- the study's commands ----------------------------------------------------------------------------------------------


def cells(shown: Any) -> dict[str, list[str]]:
    """The rows of a printed table by their first cell; a cell that goes over several lines is put together."""
    rows: dict[str, list[str]] = {}
    last = ""
    for line in shown.out.splitlines():
        if not line.startswith("│"):
            continue
        parts = [part.strip() for part in line.split("│")[1:-1]]
        if parts[0]:
            last = parts[0]
            rows[last] = parts[1:]
        elif last:
            rows[last] = [f"{old} {new}".strip() for old, new in zip(rows[last], parts[1:], strict=True)]
    return rows


def test_without_a_trigger_it_says_what_may_be_done_why_not_the_rest_and_who_could(run, site: Site) -> None:
    site.set_state(State.SUBMITTED)
    shown = run("study", "transition", STUDY, "--as", ADMIN)
    assert shown.status == 0
    assert "Apples and oranges is submitted" in shown.out
    found = cells(shown)
    assert list(found) == [
        *("submit", "resubmit", "retract", "approve", "reject", "activate", "pause", "deactivate", "archive")
    ]
    assert found["retract"] == ["→ retracted", "yes", ""]
    assert found["archive"] == ["→ archived", "yes", ""]
    assert found["approve"][0] == "→ approved"
    assert "lacks studies.approve_study" in found["approve"][1]
    assert f"{SITE_ADMIN}, {SUPERUSER}" in found["approve"][2]
    assert found["pause"] == ["–", "the study is submitted; pause starts from active", ""]
    assert (site.study().state, site.logs()) == ("submitted", [])


def test_of_many_who_could_three_are_named_in_the_table(run, site: Site) -> None:
    site.set_state(State.CREATED)
    assert run("permission", "grant", DESIGNER, "manager", "--study", STUDY, "--as", ADMIN).status == 0
    found = cells(run("study", "transition", STUDY, "--as", STRANGER))
    assert found["submit"][2].split() == [f"{DESIGNER},", f"{SITE_ADMIN},", ADMIN, "…"]


def test_a_diff_shows_who_changed_what_and_why_it_was_sent_back(run, site: Site) -> None:
    assert said(run("study", "diff", STUDY)) == "Nothing was changed since the study was made."
    run("study", "edit", STUDY, "--as", DESIGNER, "--purpose", "Do they [count]?")
    run("study", "edit", STUDY, "--as", ADMIN, "--purpose", "Do they compare?", "--sha", "a" * 40)
    shown = run("study", "diff", STUDY)
    lines = [line.strip() for line in shown.out.splitlines()]
    assert [index for index, line in enumerate(lines) if "UTC · Designer" in line] < [
        index for index, line in enumerate(lines) if "UTC · Study Admin" in line
    ]
    assert "Reviewed content changed after the approval: purpose. Please submit it again." in lines
    assert lines.count("+Do they [count]?") == lines.count("-Do they [count]?") == 1
    assert f'+  "last_known_player_sha": "{"a" * 40}"' in lines
    newest = run("study", "diff", STUDY, "--last", "1").out
    assert "Study Admin" in newest
    assert "Designer" not in newest


def test_a_study_is_moved_to_a_lab_and_who_lost_their_roles_is_said(run, site: Site, new_lab: int) -> None:
    shown = run("study", "move-to-lab", STUDY, "infant [lab]", "--as", ADMIN)
    assert shown.status == 0, shown.err
    assert f"No role on it any more: {DESIGNER}." in said(shown)
    assert "The study went from approved to rejected: it needs to be reviewed again." in said(shown)
    assert (site.study().lab_id, site.study().state) == (new_lab, "rejected")
    diff = [line.strip() for line in run("study", "diff", STUDY).out.splitlines()]
    assert ["lab:", "@@ -1 +1 @@", f"-{LAB}", "+Infant [Lab]", "roles lost:"] == diff[2:7]


# -- mistakes ----------------------------------------------------------------------------------------------------------

ON_STUDY, AS = ["--study", STUDY], ["--as", ADMIN]
REFUSED: list[tuple[list[str], str]] = [
    (
        ["permission", "grant", "nobody@example.org", "design", *ON_STUDY, *AS],
        "'nobody@example.org'; check the spelling",
    ),
    (["permission", "grant", STRANGER, "design", *ON_STUDY, "--as", "nobody@example.org"], "nobody has an account"),
    (
        ["permission", "grant", STRANGER, "wizard", *ON_STUDY, *AS],
        "no study role is called 'wizard'; there are admin, analysis, design, manager, preview, researcher,",
    ),
    (["permission", "grant", STRANGER, "design", *AS], "no site role is called 'design'; there are site_admin"),
    (["permission", "grant", STRANGER, "design", "--study", "Nothing", *AS], "no study has the UUID or name 'Nothing'"),
    (
        ["permission", "grant", STRANGER, "guest", "--lab", "Nothing", *AS],
        f"no lab has the name or UUID 'Nothing'; there are {LAB}",
    ),
    (["permission", "grant", STRANGER, "design", *ON_STUDY, "--lab", LAB, *AS], "--study or --lab, not both"),
    # Of a script whose variable is not set: by no means platform-wide.
    (["permission", "grant", STRANGER, "site_admin", "--study", "", *AS], "no study has the UUID or name ''"),
    (["permission", "revoke", STRANGER, "site_admin", "--lab", "", *AS], "no lab has the name or UUID ''"),
    (["permission", "explain", STRANGER, "view_study", "--study", ""], "no study has the UUID or name ''"),
    (["permission", "grant", DESIGNER, "design", *ON_STUDY, *AS], f"{DESIGNER} is design on the study {STUDY!r}"),
    (["permission", "grant", "inactive@example.org", "design", *ON_STUDY, *AS], "is inactive: activate it"),
    (
        ["permission", "grant", STRANGER, "design", *ON_STUDY, "--as", DESIGNER],
        "lacks studies.manage_study_researchers",
    ),
    (["permission", "grant", STRANGER, "design", *ON_STUDY, "--as", DESIGNER, "--dry-run"], "lacks studies.manage"),
    (
        ["permission", "grant", STRANGER, "guest", "--lab", LAB, *AS],
        f"lacks labs.manage_lab_researchers on the lab {LAB!r}",
    ),
    (["permission", "grant", STRANGER, "site_admin", *AS], "lacks labs.manage_lab_researchers platform-wide"),
    (["permission", "revoke", STRANGER, "design", *ON_STUDY, *AS], "so there is nothing to revoke"),
    (["permission", "revoke", STRANGER, "design", *ON_STUDY, *AS, "--dry-run"], "so there is nothing to revoke"),
    (["permission", "revoke", ADMIN, "wizard", *ON_STUDY, *AS], "no study role is called 'wizard'"),
    (["permission", "list", *ON_STUDY, "--lab", LAB], "--study or --lab, not both"),
    (["permission", "list", "--study", "Nothing", "--json"], "no study has the UUID or name 'Nothing'"),
    (
        ["permission", "explain", STRANGER, "fly", *ON_STUDY],
        "there is no permission 'fly'; there are studies.view_study,",
    ),
    (["permission", "explain", "nobody@example.org", "view_study"], "nobody has an account"),
    (["permission", "explain", STRANGER, "view_study", *ON_STUDY, "--lab", LAB], "--study or --lab, not both"),
    (["permission", "who", "fly"], "there is no permission 'fly'"),
    (["permission", "who", "view_study", *ON_STUDY, "--lab", LAB], "--study or --lab, not both"),
    (["study", "transition", "Nothing", *AS], "no study has the UUID or name 'Nothing'"),
    (["study", "transition", STUDY, "--as", "nobody@example.org"], "nobody has an account"),
    (["study", "transition", STUDY, "reject", *AS], "lacks studies.approve_study"),
    (["study", "diff", "Nothing"], "no study has the UUID or name 'Nothing'"),
    (["study", "move-to-lab", STUDY, "Nothing", *AS], f"there are {LAB}"),
    (["study", "move-to-lab", STUDY, LAB, "--as", SUPERUSER], f"is in the lab {LAB!r} already"),
    (["study", "move-to-lab", STUDY, LAB, "--as", DESIGNER], "lacks studies.change_study_lab"),
    (["study", "move-to-lab", STUDY, LAB, *AS], f"lacks labs.create_lab_study on the lab {LAB!r}"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_a_mistake_gets_one_sentence_and_changes_nothing(run, site: Site, arguments: list[str], message: str) -> None:
    shown = run(*arguments)
    assert (shown.status, shown.out) == (1, "")
    assert shown.err.startswith("Error: ")
    assert message in " ".join(shown.err.split())
    assert "Traceback" not in shown.err
    assert records(site) == []
    assert (site.logs(), site.mails(), site.study().state, site.study().lab_id) == ([], [], "approved", site.lab_id)


@pytest.mark.parametrize("command", ["grant", "revoke"])
def test_who_acts_must_be_said(run, site: Site, command: str) -> None:
    shown = run("permission", command, STRANGER, "design", *ON_STUDY)
    assert shown.status == 2
    assert "--as" in shown.err
    assert records(site) == []


# -- make-role ---------------------------------------------------------------------------------------------------------


def test_a_role_made_by_hand_is_given_like_any_other(run, site: Site) -> None:
    root = "site_admin@example.org"
    made = run(
        "permission", "make-role", "coders", "view_study", "studies.code_study_consent", "--on", "study", "--as", root
    )
    assert said(made) == "The study role coders holds studies.code_study_consent, studies.view_study."
    assert run("permission", "grant", STRANGER, "coders", "--study", STUDY, "--as", ADMIN).status == 0
    assert run("permission", "explain", STRANGER, "view_study", "--study", STUDY).out.startswith(f"{STRANGER} holds")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "view_study", "--on", "study", "--as", ADMIN], "lacks labs.manage_lab_researchers platform-wide"),
        (["x", "see_study", "--on", "study", "--as", "site_admin@example.org"], "no permission 'see_study'"),
        (["x", "change_lab", "--on", "study", "--as", "site_admin@example.org"], "cannot be held on a study"),
    ],
)
def test_a_role_that_cannot_be_made_says_why(run, arguments: list[str], message: str) -> None:
    refused = run("permission", "make-role", *arguments)
    assert (refused.status, refused.out) == (1, "")
    assert message in " ".join(refused.err.split())


def test_leaving_a_lab_lists_what_goes_with_it_and_all_that_a_person_holds_is_listed(run, site: Site) -> None:
    with site.sessions.begin() as session:
        grant_on_lab(session, session.get_one(User, site.designer), session.get_one(Lab, site.lab_id), "guest")
    holds = said(run("permission", "list", "--person", DESIGNER))
    assert f"2 roles of {DESIGNER}" in holds
    assert "design" in holds
    revoked = ("permission", "revoke", DESIGNER, "guest", "--lab", LAB, "--as", SUPERUSER)
    would = said(run(*revoked, "--dry-run"))
    assert f"loses the role design on the study {STUDY} (" in would
    assert held(site, site.designer) == {"design"}
    assert f"loses the role design on the study {STUDY} (" in said(run(*revoked))
    assert held(site, site.designer) == set()
    shown = json.loads(run("permission", "list", "--person", DESIGNER, "--json").out)
    assert shown == {"email": DESIGNER, "active": True, "superuser": False, "roles": []}
    refused = run("permission", "list", "--person", DESIGNER, "--study", STUDY)
    assert (refused.status, refused.out) == (1, "")
    assert "give --person alone" in refused.err
    assert "is inactive" in said(run("permission", "list", "--person", "inactive@example.org"))
