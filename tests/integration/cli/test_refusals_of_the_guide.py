"""The refusals that the operator's guide shows are what the commands say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from domain.db import Sessions
from lookit_ops.demo.people import populate
from tests.integration.cli.conftest import Shown

GUIDE = (Path(__file__).parents[3] / "docs" / "operators.md").read_text()
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


def shown_in_the_guide() -> list[tuple[str, str]]:
    (block,) = re.findall(r"## When something is refused.*?```console\n(.*?)```", GUIDE, re.DOTALL)
    entries = [entry.partition("\n") for entry in re.split(r"^\$ lookit-ops ", block, flags=re.MULTILINE) if entry]
    return [(command, answer.strip()) for command, _, answer in entries]


def test_the_guide_shows_ten_refusals_or_more() -> None:
    assert len(shown_in_the_guide()) >= 10


@pytest.mark.parametrize(("command", "answer"), shown_in_the_guide(), ids=[c[:60] for c, _ in shown_in_the_guide()])
def test_a_refusal_reads_as_in_the_guide(
    run_on_database: Callable[..., Shown], sessions: Sessions, command: str, answer: str
) -> None:
    with sessions.begin() as session:
        populate(session)
    shown = run_on_database(*shlex.split(command))
    assert UUID.sub("…", (shown.out + shown.err).strip()) == answer
