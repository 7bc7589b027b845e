"""The log holds what changed, and `readable_diff` shows it as a reviewer reads it; on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from domain.errors import InvalidRequest
from domain.models import Lab, State, Study, User
from domain.permissions.roles import grant_on_lab
from domain.studies.diff import readable_diff
from domain.studies.edit import edit
from domain.studies.labs import move_to_lab
from tests.support.site import Site, transition_as_read

OLD, NEW = "a" * 40, "b" * 40


def shown(site: Site) -> list[str]:
    """The diff of the newest log."""
    return list(readable_diff(site.logs()[-1]))


def change(site: Site, **changes: Any) -> list[str]:
    """Edit the study; returns the diff of its log."""
    with site.sessions.begin() as session:
        edit(session, session.get_one(Study, site.study_id), session.get_one(User, site.designer), changes)
    return shown(site)


@pytest.fixture(autouse=True)
def not_yet_approved(site: Site) -> None:
    site.set_state(State.CREATED)


def test_a_changed_line_stands_against_the_old_one(site: Site) -> None:
    change(site, purpose="Do toddlers count?")
    assert change(site, purpose="Do toddlers compare?") == [
        "purpose:",
        "  @@ -1 +1 @@",
        "  -Do toddlers count?",
        "  +Do toddlers compare?",
    ]


def test_of_a_long_text_only_the_change_and_two_lines_around_it_are_shown(site: Site) -> None:
    lines = [f"line {number}" for number in range(1, 21)]
    change(site, generator="\n".join(lines))
    lines[9] = "another tenth line"
    assert change(site, generator="\n".join(lines)) == [
        "generator:",
        "  @@ -8,5 +8,5 @@",
        "   line 8",
        "   line 9",
        "  -line 10",
        "  +another tenth line",
        "   line 11",
        "   line 12",
    ]


def test_a_text_that_comes_or_goes_is_shown_whole(site: Site) -> None:
    assert change(site, contact="Rosa\nroom 7") == ["contact:", "  @@ -0,0 +1,2 @@", "  +Rosa", "  +room 7"]
    assert change(site, contact="") == ["contact:", "  @@ -1,2 +0,0 @@", "  -Rosa", "  -room 7"]


def test_a_change_of_the_structure_is_shown_within_its_json(site: Site) -> None:
    frames = {f"frame-{number}": {"kind": "choice", "images": ["boat.png", "fish.png"]} for number in range(4)}
    change(site, structure={"frames": frames, "sequence": list(frames)})
    frames["frame-2"] = {"kind": "choice", "images": ["boat.png", "måne.png"]}
    assert change(site, structure={"sequence": list(frames), "frames": frames}) == [
        "structure:",
        "  @@ -18,5 +18,5 @@",
        '         "images": [',
        '           "boat.png",',
        '  -        "fish.png"',
        '  +        "måne.png"',
        "         ],",
        '         "kind": "choice"',
    ]


def test_another_player_is_shown_with_both_commits(site: Site) -> None:
    change(site, last_known_player_sha=OLD)
    assert change(site, last_known_player_sha=NEW) == [
        "study metadata:",
        "  @@ -1,3 +1,3 @@",
        "   {",
        f'  -  "last_known_player_sha": "{OLD}"',
        f'  +  "last_known_player_sha": "{NEW}"',
        "   }",
    ]
    assert f'  -  "last_known_player_sha": "{NEW}"' in change(site, last_known_player_sha="")


def test_being_discoverable_is_shown_as_true_and_false(site: Site) -> None:
    assert change(site, is_discoverable=True)[-2:] == ["  -false", "  +true"]


def test_each_changed_field_has_its_heading_and_an_unchanged_one_has_none(site: Site) -> None:
    lines = change(site, purpose="Counting", exit_url="https://lookit.example/", contact="", name="Apples")
    assert {line for line in lines if not line.startswith(" ")} == {"name:", "purpose:", "exit url:"}
    assert len(lines) == 3 * 3 + 1  # the name had one before


def test_another_lab_is_shown_by_name_with_the_roles_that_were_lost(site: Site) -> None:
    with site.sessions.begin() as session:
        lab = Lab(name="Infant Lab")
        session.add(lab)
        session.flush()
        user = session.get_one(User, site.study_admin)
        grant_on_lab(session, user, lab, "guest")
        move_to_lab(session, session.get_one(Study, site.study_id), lab, user)
    assert shown(site) == [
        "lab:",
        "  @@ -1 +1 @@",
        "  -Early Childhood Lab",
        "  +Infant Lab",
        "roles lost:",
        "  @@ -1 +0,0 @@",
        "  -designer@example.org",
    ]


def test_a_change_that_sent_the_study_back_shows_the_same_diff(site: Site) -> None:
    site.set_state(State.APPROVED)
    assert change(site, purpose="Another") == ["purpose:", "  @@ -0,0 +1 @@", "  +Another"]
    assert site.logs()[-1].action == "reject"


def test_a_log_that_changed_no_content_has_no_diff(site: Site) -> None:
    with site.sessions.begin() as session:
        study, user = session.get_one(Study, site.study_id), session.get_one(User, site.study_admin)
        transition_as_read(session, study, "submit", user, "please")
    assert shown(site) == []


@pytest.mark.parametrize(("before", "after"), [("one line", "one line\n"), ("a\nb", "a\r\nb"), ("x", "x ")])
def test_a_change_of_mere_whitespace_is_shown_too(site: Site, before: str, after: str) -> None:
    change(site, purpose=before)
    lines = change(site, purpose=after)
    assert any(line.startswith(("  -", "  +")) for line in lines)


def test_a_change_in_the_middle_of_a_long_text_is_shown_in_full(site: Site) -> None:
    many = "a\n" * 120_000
    change(site, generator=f"{many}frames = safe();\n{many}")
    lines = change(site, generator=f"{many}frames = evil();\n{many}")
    assert "  -frames = safe();" in lines
    assert "  +frames = evil();" in lines


def test_a_text_longer_than_a_log_can_keep_is_refused(site: Site) -> None:
    with pytest.raises(InvalidRequest, match="generator has 1,000,000 characters at most"):
        change(site, generator="a" * 1_000_001)
