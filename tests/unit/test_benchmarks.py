"""The frame of the benchmarks: its arithmetic, what it writes, what it refuses; and one tiny race."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import claim_race, frame
from benchmarks.frame import BEGIN, END, BenchmarkError, Result, choose, compare, load_benchmarks
from domain.db import Sessions
from domain.errors import StudyIsLocked
from domain.models import BuildKind, State

FIELDS = ["name", "unit", "ours", "peer", "peer_name", "ratio", "runs", "spread", "note"]
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def result(name: str = "a.b", ours: float = 2.0, note: str = "") -> Result:
    return Result.of(name, "s", [ours], [4.0], "the peer", note)


# --- arithmetic


def test_of_seconds_less_is_better():
    assert Result.of("a", "s", [2.0], [4.0], "the peer").ratio == 2.0
    assert Result.of("a", "s", [4.0], [2.0], "the peer").ratio == 0.5


def test_of_a_rate_more_is_better():
    assert Result.of("a", "claims/s", [4.0], [2.0], "the peer").ratio == 2.0
    assert Result.of("a", "MB/s", [2.0], [4.0], "the peer").ratio == 0.5


def test_medians_are_compared_and_the_worse_spread_is_told():
    measured = Result.of("a", "s", [1.0, 2.0, 100.0], [4.0, 4.0, 5.0], "the peer")
    assert (measured.ours, measured.peer, measured.ratio, measured.runs) == (2.0, 4.0, 2.0, 3)
    assert measured.spread == 49.5
    assert Result.of("a", "s", [2.0, 2.0], [1.0, 3.0], "the peer").spread == 1.0
    assert Result.of("a", "MB", [-1.0, 0.0, 1.0], [], None).spread is None
    assert Result.of("a", "MB", [-1.0, -2.0, -3.0], [], None).spread == 1.0


def test_without_a_peer_there_is_no_ratio():
    measured = compare("a", "s", lambda: 3.0, None, runs=2, peer_name="nobody")
    assert (measured.ours, measured.peer, measured.peer_name, measured.ratio) == (3.0, None, None, None)
    assert (measured.runs, measured.spread) == (2, 0.0)


def test_the_sides_take_turns_and_each_goes_first_every_other_time():
    order: list[str] = []
    compare("a", "s", lambda: order.append("ours") or 1.0, lambda: order.append("peer") or 1.0, runs=3)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]


# --- choosing


def test_every_benchmark_of_the_package_is_found():
    assert list(load_benchmarks()) == [
        "build.claim_race.postgresql",
        "build.claim_race.sqlite",
        "build.image_unchanged",
        "build.stamped_vs_full",
        "build.take_dependencies",
        "build.warm_dependencies",
        "deploy.upload",
        "permissions",
        "queue.busy_day",
        "queue.recovery_s",
        "queue.request_to_first_op_s",
        "queue.tick_5000_waiting_s",
        "run.overhead",
        "run.overhead.launched",
        "videos.zip",
    ]


def test_only_chooses_by_the_beginning_of_the_name():
    known = load_benchmarks()
    assert list(choose(known, "")) == [name for name in known if name != "queue.busy_day"], "it takes more than an hour"
    assert list(choose(known, "queue")) == [
        "queue.recovery_s",
        "queue.request_to_first_op_s",
        "queue.tick_5000_waiting_s",
    ]
    assert list(choose(known, "queue.busy_day")) == ["queue.busy_day"]
    assert list(choose(known, " build.claim_race ")) == ["build.claim_race.postgresql", "build.claim_race.sqlite"]
    assert list(choose(known, "run.overhead.launched")) == ["run.overhead.launched"]


@pytest.mark.parametrize("unknown", ["claim_race", "build.claim_race.sqlite.1", "Run"])
def test_an_unknown_name_is_refused_with_the_names_that_there_are(unknown):
    with pytest.raises(BenchmarkError, match=rf"begins with '{unknown}'; .*build\.claim_race\.sqlite.*run\.overhead"):
        choose(load_benchmarks(), unknown)


# --- writing


def test_the_file_is_a_list_of_objects_with_just_these_fields(tmp_path):
    path = tmp_path / "results" / "latest.json"
    frame.write_results(path, [result(), Result.of("c", "s", [1.0], [], None)])
    rows = json.loads(path.read_text())
    assert [list(row) for row in rows] == [FIELDS, FIELDS]
    assert (rows[0]["ratio"], rows[1]["peer"], rows[1]["peer_name"], rows[1]["ratio"]) == (2.0, None, None, None)
    assert frame.read_results(path) == [result(), Result.of("c", "s", [1.0], [], None)]
    assert [file.name for file in path.parent.iterdir()] == ["latest.json"]


def test_there_are_no_results_before_the_first_run(tmp_path):
    assert frame.read_results(tmp_path / "latest.json") == []


def test_new_results_take_the_places_of_the_old_ones():
    old = [result("a"), result("b"), result("c")]
    new = [result("d"), result("b", ours=1.0)]
    assert frame.merged(old, new) == [result("a"), result("b", ours=1.0), result("c"), result("d")]


def test_the_table_goes_between_the_markers_and_nothing_else_changes(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
    frame.write_table(page, [result(note="one | two")])
    first = page.read_text()
    assert first.startswith(f"# Before\n\n{BEGIN}\n\n| benchmark |")
    assert first.endswith(f"|\n\n{END}\n\nAfter\n")
    assert "| `a.b` | s | 2 | 4 | 2 | 1 | 0% | the peer | one \\| two |" in first
    assert "old" not in first
    frame.write_table(page, [result(note="one | two")])
    assert page.read_text() == first


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}\n{BEGIN}"])
def test_a_page_without_the_markers_is_refused_and_left_alone(tmp_path, text):
    page = tmp_path / "performance.md"
    page.write_text(text)
    with pytest.raises(BenchmarkError, match="no place for the table"):
        frame.write_table(page, [result()])
    assert page.read_text() == text


def test_the_page_of_the_docs_has_the_markers():
    text = PAGE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1


# --- the command


@pytest.fixture
def places(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Results and page of the command, with two benchmarks that take no time."""
    results, page = tmp_path / "latest.json", tmp_path / "performance.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(command, "RESULTS", results)
    monkeypatch.setattr(command, "PAGE", page)
    known = {name: lambda quick, name=name: [result(f"{name}.row", 1.0 if quick else 2.0)] for name in ("one", "two")}
    monkeypatch.setattr(command, "load_benchmarks", lambda: known)
    return results, page


def test_a_full_run_writes_file_and_table(places):
    results, page = places
    command.main("", quick=False)
    assert [row.name for row in frame.read_results(results)] == ["one.row", "two.row"]
    assert "`one.row`" in page.read_text()


def test_a_quick_run_says_so_and_leaves_the_table_alone(places):
    results, page = places
    command.main("", quick=True)
    assert [(row.ours, row.note) for row in frame.read_results(results)] == [(1.0, "quick run")] * 2
    assert page.read_text() == f"{BEGIN}\n{END}\n"


def test_one_of_them_keeps_the_results_of_the_others(places):
    results, page = places
    command.main("", quick=True)
    command.main("two", quick=False)
    assert [(row.name, row.ours) for row in frame.read_results(results)] == [("one.row", 1.0), ("two.row", 2.0)]
    assert "`one.row`" in page.read_text()


def test_an_unknown_name_writes_nothing(places):
    results, _ = places
    with pytest.raises(BenchmarkError, match="there are: one, two"):
        command.main("three", quick=False)
    assert not results.exists()


# --- a tiny race


def test_a_tiny_race_on_sqlite(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_race, "WORKERS", (1, 2))
    rows = list(claim_race.sqlite_rows(tmp_path, claim_race.Size(requests=3, runs=1)))
    assert [row.name for row in rows] == [f"build.claim_race.sqlite.{workers}_workers" for workers in (1, 2)]
    for row in rows:
        assert (row.unit, row.runs, row.peer_name) == ("claims/s", 1, claim_race.PEER_ON_SQLITE)
        assert row.ours > 0
        assert row.ratio is not None
    assert [file.name for file in tmp_path.glob("*.db")] == ["template.db"]


def test_a_race_that_is_not_won_by_one_each_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_race, "WORKERS", (1, 2))
    monkeypatch.setattr(claim_race, "claim_by_ledger", _nobody_wins)
    with pytest.raises(BenchmarkError, match="0 claims were won, of 3 requests"):
        list(claim_race.sqlite_rows(tmp_path, claim_race.Size(requests=3, runs=1)))


def test_a_worker_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_race, "WORKERS", (1, 2))
    monkeypatch.setattr(claim_race, "claim_by_ledger", _fails)
    with pytest.raises(BenchmarkError, match="ZeroDivisionError"):
        list(claim_race.sqlite_rows(tmp_path, claim_race.Size(requests=3, runs=1)))


def test_peer_and_ledger_leave_the_same_rows_and_refuse_alike(site, sessions: Sessions):
    seen = []
    for name, claim in {"ours": claim_race.claim_by_ledger, "peer": claim_race.claim_by_locking}.items():
        study_id = site.another_study(name, State.APPROVED)
        request_id = site.ledger.request(study_id, site.study_admin, BuildKind.DEPLOYMENT)
        claimed = claim(sessions, request_id, "run")
        with pytest.raises(StudyIsLocked):
            claim(sessions, request_id, "another run")
        study, request = site.study(study_id), site.request(request_id)
        assert (claimed.request_id, claimed.study_id, claimed.study_uuid) == (request_id, study_id, study.uuid)
        assert None not in (request.claimed_at, request.lease_expires_at)
        seen.append(
            (
                *(claimed.kind, claimed.requested_by, claimed.fencing_token, claimed.attempt, claimed.state_before),
                *(study.state, study.state_before_build, study.fencing_token),
                *(request.status, request.run_id, request.attempt, request.fencing_token, request.state_before),
            )
        )
    assert seen[0] == seen[1]


def _nobody_wins(_sessions, request_id, _run_id):
    if request_id <= 3:  # the contested ones; those behind them only warm a worker up
        raise StudyIsLocked(f"request {request_id}")


def _fails(_sessions, _request_id, _run_id):
    return 1 / 0
