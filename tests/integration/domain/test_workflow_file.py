"""The workflow as a file: what is refused, with its line; what may be changed; no file leads around the review."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import domain
from domain.errors import InvalidRequest, PermissionDenied
from domain.mail.audience import Audience
from domain.models import BuildKind, State, Study, User
from domain.models.studies import WORKFLOW_STATES
from domain.permissions.codes import Permission
from domain.requests.archive_links import LINK_ACTION
from domain.requests.archives import ARCHIVE_ACTION
from domain.studies.approval import APPROVED_STATES
from domain.studies.availability import SERVED_STATES
from domain.studies.diagram import mermaid
from domain.studies.workflow import (
    SHIPPED_FILE,
    active_table,
    allowed_triggers,
    shared_machine,
    transition,
    triggers_from,
    use_workflow,
)
from domain.studies.workflow_file import MOST_BYTES, OTHER_ACTIONS, read_table, table_from_yaml
from domain.videos.consent_marks import MARKED
from tests.support.site import Site

SHIPPED = SHIPPED_FILE.read_text()
BOMB = b"- &a0 [x, x]\n" + b"".join(b"- &a%d [*a%d, *a%d]\n" % (n, n - 1, n - 1) for n in range(1, 30))
"""Half a kilobyte that would become 500 million values."""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A file to write to; the shipped one is in use again afterwards."""
    yield tmp_path / "workflow.yaml"
    use_workflow(SHIPPED_FILE)


def line_of(text: str, what: str) -> int:
    return text[: text.index(what)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "at", "message"),
    [
        ("dest: submitted", "dest: deploying", "dest: deploying", "it is a lock state"),
        ("dest: submitted", "dest: published", "dest: published", "no state 'published'"),
        ("studies.approve_study", "studies.change_study_status", "- trigger: approve\n", "it is the review"),
        (
            "source: [submitted]\n  dest: approved",
            "source: [created]\n  dest: approved",
            "- trigger: approve\n",
            "alone",
        ),
        ("dest: submitted", "dest: approved", "- trigger: submit\n", "and no other trigger leads to 'approved'"),
        ("dest: submitted", "dest: paused", "- trigger: submit\n", "no reviewer has approved"),
        ("  needs_deployment: true\n", "", "- trigger: activate\n", "needs_deployment: true"),
        ("source: [approved, paused]", "source: [approved, rejected]", "- trigger: activate\n", "leads from rejected"),
        ("dest: retracted", "dest: retracted\n  dest: rejected", "dest: rejected", "'dest' is given twice"),
        ("trigger: pause", "trigger: Pause!", "- trigger: Pause!", "a name in lower case"),
        ("source: [active]", "source: [active, active]", "source: [active, active]", "leads from 'active' already"),
        ("source: [active]", "source: [active, approved]", "- trigger: pause\n", "leads from approved to 'paused'"),
        ("source: [active]", "source: [deactivated]", "- trigger: pause\n", "needs_deployment: true"),
        ("trigger: pause", "trigger: rollback", "trigger: rollback", "another act of that name"),
        ("studies.change_study_status", "labs.approve_lab", "permission: labs.approve_lab", "a permission on labs"),
        ("audience: site_admins", "1: a", "notice:", "each a text"),
        ("headline: paused", "headline: paused\n    headline: rests", "headline: rests", "'headline' is given twice"),
        ("  dest: retracted", "  <<: {dest: rejected}\n  dest: retracted", "<<", "no merge keys"),
        ("  dest: retracted", "  [a]: b\n  dest: retracted", "[a]", "cannot be read as YAML"),
    ],
)
def test_what_a_file_may_not_do_is_refused_with_its_line(file: Path, old: str, new: str, at: str, message: str) -> None:
    assert old in SHIPPED
    changed = SHIPPED.replace(old, new, 1)
    file.write_text(changed)
    with pytest.raises(InvalidRequest) as refusal:
        use_workflow(file)
    assert str(refusal.value).startswith(f"{file}, line {line_of(changed, at)}: ")
    assert message in str(refusal.value)
    assert triggers_from("created") == ["submit", "archive"], "nothing has changed"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"- {trigger: submit", "line 1: this cannot be read as YAML"),
        (b"\xff", "not text in UTF-8"),
        (b"#" * (MOST_BYTES + 1), "more than 100,000 bytes"),
        (b"- &a [*a]", "line 1: this cannot be read as YAML: a workflow table has no aliases"),
        (BOMB, "line 2: this cannot be read as YAML: a workflow table has no aliases"),
        (b"", "a list of transitions"),
        (b"[]", "a list of transitions"),
        (b"- " + b"a" * 90_000, "not 'aaa.{10,80}$"),
        (b"- trigger: " + b"9" * 5_000, "cannot be read as YAML: Exceeds the limit"),
        (b"- !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
        (b"[" * 50_000, "cannot be read as YAML"),
    ],
)
def test_what_is_no_table_is_refused(file: Path, contents: bytes, message: str) -> None:
    file.write_bytes(contents)
    with pytest.raises(InvalidRequest, match=message):
        read_table(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InvalidRequest, match=f"workflow file {path} cannot be read"):
            read_table(path)


def test_another_workflow_is_what_the_machine_people_and_pictures_go_by(site: Site, file: Path) -> None:
    rows = [row for row in active_table() if row["trigger"] != "retract"]
    stricter = [row | {"permission": "studies.approve_study"} if row["trigger"] == "archive" else row for row in rows]
    reopen = {"trigger": "reopen", "source": ["archived"], "dest": "created", "permission": "studies.approve_study"}
    file.write_text(yaml.safe_dump([*stricter, reopen]))
    use_workflow(file)
    assert triggers_from("submitted") == ["approve", "reject", "archive"]
    assert "archived --> created: reopen" in mermaid()
    with site.sessions.begin() as session:
        study, admin = session.get_one(Study, site.study_id), session.get_one(User, site.study_admin)
        with pytest.raises(PermissionDenied):
            transition(session, study, "archive", admin)
        reviewer = session.get_one(User, site.site_admin)
        transition(session, study, "archive", reviewer)
        assert [choice.trigger for choice in allowed_triggers(session, study, reviewer) if choice.allowed] == ["reopen"]
        transition(session, study, "reopen", reviewer)
        assert study.state == State.CREATED
    machine = shared_machine()
    use_workflow(file)
    assert shared_machine() is machine, "the same table again changes nothing"


ROWS = st.fixed_dictionaries(
    {
        "trigger": st.sampled_from(["approve", "activate", "submit", "send_back", "publish"]),
        "source": st.lists(st.sampled_from([state.value for state in WORKFLOW_STATES]), min_size=1, max_size=3),
        "dest": st.sampled_from([*(state.value for state in WORKFLOW_STATES), "deploying"]),
        "permission": st.sampled_from([Permission.APPROVE_STUDY.value, Permission.CHANGE_STUDY_STATUS.value, "none"]),
    },
    optional={
        "needs_deployment": st.booleans(),
        "notice": st.fixed_dictionaries(
            {"audience": st.sampled_from([*Audience]).map(str), "headline": st.just("h"), "sentence": st.just("s")}
        ),
    },
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.lists(ROWS, max_size=6))
def test_no_file_that_is_accepted_leads_around_the_review(rows: list[dict[str, object]]) -> None:
    """Only the review leads to where an approval stands, and only a deployed study to where families get it."""
    try:
        table = table_from_yaml(yaml.safe_dump(rows))
    except InvalidRequest:
        return
    outside = set(WORKFLOW_STATES) - APPROVED_STATES
    for row in table:
        for source in row["source"]:
            if source in outside and row["dest"] in APPROVED_STATES:
                assert (row["trigger"], source, row["dest"]) == ("approve", State.SUBMITTED, State.APPROVED)
                assert row["permission"] == Permission.APPROVE_STUDY
            if source not in SERVED_STATES and row["dest"] in SERVED_STATES:
                assert row.get("needs_deployment") is True


def test_no_trigger_is_named_as_another_act_in_the_log() -> None:
    source = "".join(module.read_text() for module in Path(domain.__file__).parent.rglob("*.py"))
    written = set(re.findall(r'action="(\w+)"', source)) | {"put_back", "taken_down", "rollback"}
    assert written | {*BuildKind, ARCHIVE_ACTION, LINK_ACTION, MARKED} == OTHER_ACTIONS
    assert not OTHER_ACTIONS & {row["trigger"] for row in active_table()}
