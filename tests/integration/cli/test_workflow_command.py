"""`lookit-ops workflow check`, and a workflow of the operator's own in a file that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from domain.models import State
from domain.studies.workflow import SHIPPED_FILE, use_workflow
from tests.integration.cli.conftest import Shown
from tests.support.site import Site

Run = Callable[..., Shown]
STUDY = "Apples and oranges"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "workflow.yaml"
    file.write_text(SHIPPED_FILE.read_text())
    yield file
    use_workflow(SHIPPED_FILE)


def test_a_file_is_checked(run: Run, file: Path) -> None:
    assert "10 transitions" in run("workflow", "check").out
    fine = run("workflow", "check", str(file))
    assert fine.status == 0
    assert "is fine" in fine.out
    file.write_text(SHIPPED_FILE.read_text().replace("dest: approved", "dest: deploying"))
    refused = run("workflow", "check", str(file))
    assert refused.status == 1
    assert "it is a lock state" in refused.err
    assert ", line " in refused.err


def test_the_file_of_the_settings_is_what_commands_go_by(
    run: Run, site: Site, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOKIT_WORKFLOW_FILE", str(file))
    by = site.user(site.study_admin).email
    site.set_state(State.CREATED)
    file.write_text(SHIPPED_FILE.read_text().replace("trigger: submit", "trigger: hand_in"))
    assert "hand_in" in run("study", "transition", STUDY, "submit", "--as", by).err
    moved = run("study", "transition", STUDY, "hand_in", "--as", by)
    assert moved.status == 0, moved.err
    assert site.study().state == "submitted"
    file.write_text("- nonsense")
    for command in (["study", "show", STUDY], ["workflow", "diagram", "-o", str(file.with_suffix(".mmd"))]):
        broken = run(*command)
        assert broken.status == 1
        assert f"{file}, line 1: a transition has" in broken.err


def test_a_file_that_is_not_there_is_told_with_the_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKIT_WORKFLOW_FILE", "/nowhere/workflow.yaml")
    refused = run("study", "list")
    assert refused.status == 1
    assert "LOOKIT_WORKFLOW_FILE: must be a YAML file with the workflow" in refused.err
