"""Pictures of the workflow, drawn by `transitions` and Graphviz: the whole graph, or what concerns one study.

A trigger that leads to a state from every other one would cover the picture with edges: in the whole graph it is drawn
once, from a box that says so.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session
from transitions.extensions import GraphMachine

from domain.models import State, Study, StudyLog
from domain.models.studies import WORKFLOW_STATES
from domain.studies.workflow import INITIAL_STATE, active_table, machine_arguments
from domain.studies.workflow_table import Row

Format = Literal["png", "svg"]

ANY_OTHER = "any other state"
DEPLOYMENT = "a deployment"

_INK, _RED, _BLUE, _GREY = "#333333", "#b03a2e", "#2463a8", "#8a8a8a"
_FONT = {"fontname": "Helvetica"}
_GRAPH = {"rankdir": "TB", "nodesep": "0.5", "ranksep": "0.5", "label": "", "pad": "0.2", **_FONT}
_NODE = {"fontsize": "13", "shape": "box", "style": "rounded,filled", "margin": "0.15,0.07", **_FONT}
_EDGE = {"fontsize": "11", **_FONT}
_UNVISITED = {"fillcolor": "white", "color": _INK, "fontcolor": "black", "peripheries": "1"}
_VISITED = {"fillcolor": "#dceafa", "color": _BLUE}
_CURRENT = {"fillcolor": "#ffd166", "color": _INK, "penwidth": "2.5"}
_MAIN_ROAD = (State.CREATED, State.SUBMITTED, State.APPROVED, State.ACTIVE)


@dataclass(frozen=True, slots=True)
class Step:
    """A study went from one state of the workflow to another, so many times, the last time then (UTC)."""

    before: State
    after: State
    times: int
    last: datetime


@dataclass(frozen=True, slots=True)
class Path:
    """Where a study stands in the workflow, and each different step that brought it there, the first taken first."""

    state: State
    steps: tuple[Step, ...]


def path_of(session: Session, study: Study) -> Path:
    """The path of a study, from its logs. While a build runs, it stands where the build found it."""
    columns = (StudyLog.state_before, StudyLog.state_after, StudyLog.created_at)  # a log may hold megabytes besides
    logs = select(*columns).where(StudyLog.study_id == study.id, StudyLog.state_before != StudyLog.state_after)
    steps: dict[tuple[str, str], Step] = {}
    for before, after, at in session.execute(logs.order_by(StudyLog.id)):
        way = (before, after)
        times = steps[way].times + 1 if way in steps else 1
        steps[way] = Step(State(way[0]), State(way[1]), times, at)
    return Path(state=State(study.state_before_build or study.state), steps=tuple(steps.values()))


class _Drawn:
    """The model that the drawing machine moves: it only stands in a state."""

    state: str
    get_graph: Callable[..., Any]
    """Put here by the machine."""


def draw(form: Format, path: Path | None = None, *, region_of_interest: bool = False) -> bytes:
    """The workflow as a picture; with a path, where the study stands is marked, and where it went.

    The region of interest is where the study has been, where it is, and where it can go from there.
    """
    with _quiet_fontconfig():
        return layout(path, region_of_interest=region_of_interest).draw(None, format=form)


@contextlib.contextmanager
def _quiet_fontconfig() -> Generator[None]:
    """Keep what Fontconfig says of this machine's files off standard error; all else that is written there stays.

    Graphviz brings a Fontconfig of its own, which reads the machine's templates whatever its settings say, and warns of
    what it does not know in newer ones.
    """
    with tempfile.TemporaryFile() as said:
        real = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
            said.seek(0)
            others = [line for line in said if not line.startswith(b"Fontconfig ")]
            if others:
                os.write(2, b"".join(others))


def layout(path: Path | None = None, *, region_of_interest: bool = False) -> Any:
    """The same picture as a pygraphviz graph with all positions, before it is drawn."""
    model = _Drawn()
    GraphMachine(model=model, graph_engine="pygraphviz", show_conditions=False, title="", **machine_arguments())
    graph = model.get_graph()
    _style(graph)
    if path is not None:
        _mark(graph, path)
    if region_of_interest and path is not None:
        _keep_region(graph, path)
    else:
        _gather_edges_from_everywhere(graph)
    graph.layout(prog="dot")
    return graph


def _style(graph: Any) -> None:
    graph.graph_attr.update(_GRAPH)
    graph.node_attr.update(_NODE)
    graph.edge_attr.update(_EDGE)
    for node in graph.nodes():
        node.attr.update(_UNVISITED)
    road = set(pairwise(_MAIN_ROAD))
    for edge in graph.edges():
        colour = _RED if edge[1] == State.REJECTED else _INK
        edge.attr.update(color=colour, fontcolor=colour, label=_label(edge[0], edge[1]))
        if edge in road:
            edge.attr.update(weight="20", penwidth="2")


def _rows(source: str, dest: str) -> list[Row]:
    return [row for row in active_table() if row["dest"] == dest and source in row["source"]]


def _label(source: str, dest: str, *more: str) -> str:
    """The triggers of an edge, and what else leads that way, a line each; the spaces keep it off the line."""
    rows = _rows(source, dest)
    lines = [row["trigger"] for row in rows]
    lines += [f"or {DEPLOYMENT}" for row in rows if row.get("needs_deployment")]
    return "\\n".join(f" {line} " for line in (*lines, *more))


def _mark(graph: Any, path: Path) -> None:
    for step in path.steps:
        if not graph.has_edge(step.before, step.after):  # no row of today's table, but the log has it
            graph.add_edge(step.before, step.after)
        times = f"{step.last:%Y-%m-%d}" + (f", {step.times} times" if step.times > 1 else "")
        graph.get_edge(step.before, step.after).attr.update(
            color=_BLUE, fontcolor=_BLUE, penwidth="2.5", label=_label(step.before, step.after, times)
        )
        for visited in (step.before, step.after):
            graph.get_node(visited).attr.update(_VISITED)
    graph.get_node(path.state).attr.update(_CURRENT)


def _keep_region(graph: Any, path: Path) -> None:
    walked = {(step.before.value, step.after.value) for step in path.steps}
    for edge in graph.edges():
        if edge not in walked and edge[0] != path.state:
            graph.delete_edge(edge)
    for node in graph.nodes():
        if node != path.state and not graph.degree(node):
            graph.delete_node(node)


def _gather_edges_from_everywhere(graph: Any) -> None:
    for trigger, dest in _from_everywhere():
        for source in set(WORKFLOW_STATES) - {dest}:
            edge = graph.get_edge(source, dest)
            if edge.attr["color"] != _BLUE:  # a step that the study took stays
                graph.delete_edge(edge)
        box = f"{ANY_OTHER}: {trigger}"
        graph.add_node(box, label=ANY_OTHER, style="rounded,dashed", color=_GREY, fontcolor=_GREY)
        graph.add_edge(box, dest, label=f" {trigger} ", color=_INK, fontcolor=_INK)


def _from_everywhere() -> Iterator[tuple[str, str]]:
    """Trigger and destination of the rows that start from every state but where they lead."""
    for row in active_table():
        if set(row["source"]) == set(WORKFLOW_STATES) - {row["dest"]}:
            yield row["trigger"], row["dest"]


def mermaid() -> str:
    """The whole graph in Mermaid's language, for documents."""
    everywhere = dict(_from_everywhere())
    lines = ["stateDiagram-v2", f"    [*] --> {INITIAL_STATE}"]
    for row in active_table():
        if row["trigger"] in everywhere:
            continue
        label = row["trigger"] + (f", or {DEPLOYMENT}" if row.get("needs_deployment") else "")
        lines += [f"    {source} --> {row['dest']}: {label}" for source in row["source"]]
    for trigger, dest in everywhere.items():
        lines += [f'    state "{ANY_OTHER}" as other_than_{dest}', f"    other_than_{dest} --> {dest}: {trigger}"]
    return "\n".join(lines)
