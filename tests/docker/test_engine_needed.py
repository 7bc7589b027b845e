"""Without an engine the Docker tests are left out in one line that says why; where CI is set, that is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from _pytest.outcomes import Failed, Skipped

from tests.support.docker_engine import find_engine

pytestmark = pytest.mark.docker


@pytest.fixture
def _no_engine(docker_engine: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address where nobody answers; what the script needs to ask there is installed."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.delenv("CI", raising=False)


@pytest.mark.usefixtures("_no_engine")
def test_without_an_engine_the_tests_are_left_out_and_say_why() -> None:
    with pytest.raises(Skipped, match=r"left out: .*no\.sock\) does not answer"):
        find_engine()


@pytest.mark.usefixtures("_no_engine")
def test_in_ci_that_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(Failed, match=r"CI must run the Docker tests, .*no\.sock\) does not answer"):
        find_engine()
