"""The pictures of the workflow: what is in them, and that nothing lies on anything else."""

from __future__ import annotations

import itertools
import os
import re
import struct
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Any

import pytest

from domain.models import State
from domain.models.studies import WORKFLOW_STATES
from domain.studies.diagram import ANY_OTHER, Path, Step, _quiet_fontconfig, draw, layout, mermaid
from domain.studies.workflow import active_table

S = State
DAY = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)
ROAD = (S.CREATED, S.SUBMITTED, S.APPROVED, S.ACTIVE)
LONG_ROAD = (*ROAD, S.PAUSED, S.ACTIVE, S.REJECTED, S.SUBMITTED, S.APPROVED, S.ACTIVE, S.DEACTIVATED, S.ARCHIVED)
POINTS_PER_LETTER = 6.0  # of 11-point Helvetica, on the average and rounded up
LINE_HEIGHT = 13.0


@dataclass(frozen=True)
class Box:
    """A rectangle in points: of a state or of a label."""

    what: str
    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def holds(self, x: float, y: float) -> bool:
        return self.left < x < self.right and self.bottom < y < self.top


def path(*states: State) -> Path:
    """The path of a study that went through these states."""
    steps: dict[tuple[State, State], int] = {}
    for way in itertools.pairwise(states):
        steps[way] = steps.get(way, 0) + 1
    return Path(states[-1], tuple(Step(before, after, times, DAY) for (before, after), times in steps.items()))


def around(what: str, position: str, width: float, height: float) -> Box:
    x, y = map(float, position.split(","))
    return Box(what, x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def state_boxes(graph: Any) -> list[Box]:
    size = [(node, float(node.attr["width"]) * 72, float(node.attr["height"]) * 72) for node in graph.nodes()]
    return [around(str(node), node.attr["pos"], width, height) for node, width, height in size]


def label_boxes(graph: Any) -> list[Box]:
    boxes = []
    for edge in graph.edges():
        lines = [line.strip() for line in edge.attr["label"].split("\\n")]
        width = max(map(len, lines)) * POINTS_PER_LETTER
        boxes.append(around(f"{edge[0]} → {edge[1]}", edge.attr["lp"], width, len(lines) * LINE_HEIGHT))
    return boxes


def curve_points(graph: Any) -> list[tuple[str, float, float]]:
    """Points of each edge: its Bézier curves, sampled."""
    points = []
    for edge in graph.edges():
        spots = [tuple(map(float, spot.split(","))) for spot in re.sub(r"[es],\S+", "", edge.attr["pos"]).split()]
        for start in range(0, len(spots) - 1, 3):
            a, b, c, d = spots[start : start + 4]
            for step in range(21):
                t = step / 20
                weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
                x, y = (sum(w * spot[axis] for w, spot in zip(weights, (a, b, c, d), strict=True)) for axis in (0, 1))
                points.append((f"{edge[0]} → {edge[1]}", x, y))
    return points


PICTURES = {
    "the whole": (None, False),
    "new": (path(S.CREATED), True),
    "active": (path(*ROAD), True),
    "a long life": (path(*LONG_ROAD), True),
    "the whole, with a path": (path(*ROAD), False),
    "the whole, with a long life": (path(*LONG_ROAD), False),
}


@pytest.mark.parametrize(("marked", "region"), PICTURES.values(), ids=PICTURES)
def test_no_label_lies_on_a_state_another_label_or_a_line(marked: Path | None, region: bool) -> None:
    graph = layout(marked, region_of_interest=region)
    states, labels = state_boxes(graph), label_boxes(graph)
    boxes = states + labels
    assert [(a.what, b.what) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)] == []
    lines = curve_points(graph)
    assert {(label.what, line) for label in labels for line, x, y in lines if label.holds(x, y)} == set()
    crossed = {(box.what, line) for box in states for line, x, y in lines if box.holds(x, y)}
    assert {(state, line) for state, line in crossed if state not in line.split(" → ")} == set()


@pytest.mark.parametrize(("marked", "region"), PICTURES.values(), ids=PICTURES)
def test_a_picture_fits_into_dagsters_page(marked: Path | None, region: bool) -> None:
    png = draw("png", marked, region_of_interest=region)
    assert png.startswith(b"\x89PNG")
    width, _height = struct.unpack(">II", png[16:24])
    assert width <= 1100  # above, the page clips it
    assert len(png) < 200_000


def test_the_whole_graph_shows_every_state_and_every_row_of_the_table() -> None:
    graph = layout()
    assert {str(node) for node in graph.nodes() if not node.startswith(ANY_OTHER)} == set(WORKFLOW_STATES)
    drawn = {(edge[0], edge[1]): edge.attr["label"] for edge in graph.edges()}
    for row in active_table():
        for source in row["source"]:
            from_box = drawn.get((f"{ANY_OTHER}: {row['trigger']}", row["dest"]), "")
            assert row["trigger"] in drawn.get((source, row["dest"]), from_box), row


def test_a_region_shows_past_present_and_what_can_come_next() -> None:
    graph = layout(path(S.CREATED, S.SUBMITTED, S.REJECTED, S.SUBMITTED, S.APPROVED), region_of_interest=True)
    assert {str(node) for node in graph.nodes()} == {
        "created", "submitted", "rejected", "approved", "active", "archived",
    }  # fmt: skip
    current = [str(node) for node in graph.nodes() if node.attr["fillcolor"] == "#ffd166"]
    assert current == ["approved"]
    assert "2026-11-24" in graph.get_edge("submitted", "rejected").attr["label"]
    assert not graph.has_edge("rejected", "archived")


def test_a_step_taken_often_says_how_often() -> None:
    graph = layout(path(*ROAD, S.PAUSED, S.ACTIVE, S.PAUSED), region_of_interest=True)
    assert "2026-11-24, 2 times" in graph.get_edge("active", "paused").attr["label"]


def test_a_step_of_an_older_table_is_drawn_as_the_log_has_it() -> None:
    graph = layout(path(S.CREATED, S.ACTIVE), region_of_interest=True)
    assert "2026-11-24" in graph.get_edge("created", "active").attr["label"]


def test_svg_holds_the_names_as_text() -> None:
    assert all(f">{state}</text>" in draw("svg").decode() for state in WORKFLOW_STATES)


def test_the_architecture_page_holds_todays_mermaid() -> None:
    page = (FilePath(__file__).parents[3] / "ARCHITECTURE.md").read_text()
    blocks = re.findall(r"```mermaid\n(stateDiagram.*?)\n```", page, re.DOTALL)
    assert blocks == [mermaid()], "write it anew: lookit-ops workflow diagram -o workflow.mmd"


def test_nothing_is_said_on_standard_error_but_what_others_say(capfd: pytest.CaptureFixture[str]) -> None:
    command = "from domain.studies.diagram import draw; draw('png')"
    drawn = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert drawn.stderr == ""
    with _quiet_fontconfig():
        os.write(2, b"Fontconfig warning: it is old\nanother thread's words\n")
    assert capfd.readouterr().err == "another thread's words\n"
