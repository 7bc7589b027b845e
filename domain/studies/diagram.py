"""Pictures of the workflow, drawn by `transitions` and Graphviz: the whole graph, or what concerns one study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from transitions.extensions import GraphMachine

from domain.models import State
from domain.studies.workflow import machine_arguments

Format = Literal["png", "svg"]

_GRAPH = {"rankdir": "TB", "nodesep": "0.5", "ranksep": "0.6", "fontname": "Helvetica", "label": "", "pad": "0.2"}
_NODE = {"fontname": "Helvetica", "fontsize": "13", "shape": "box", "style": "rounded,filled"}
_EDGE = {"fontname": "Helvetica", "fontsize": "11"}


class _Drawn:
    """The model that the drawing machine moves: it only stands in a state."""

    state: str
    get_graph: Callable[..., Any]
    """Put here by the machine."""


def draw(
    form: Format, *, state: State | None = None, came_from: State | None = None, region_of_interest: bool = False
) -> bytes:
    """The workflow as a picture; with `state`, where a study stands is marked.

    The region of interest is the state the study came from, the one it is in, and all that it can reach from there.
    """
    model = _Drawn()
    arguments: dict[str, Any] = {**machine_arguments(), "initial": (state or State.CREATED).value}
    machine = GraphMachine(model=model, graph_engine="pygraphviz", show_conditions=False, title="", **arguments)
    if came_from is not None and state is not None:
        machine.model_graphs[id(model)].set_previous_transition(came_from.value, state.value)
    graph = model.get_graph(show_roi=region_of_interest)
    graph.graph_attr.update(_GRAPH)
    graph.node_attr.update(_NODE)
    graph.edge_attr.update(_EDGE)
    if state is None:  # nothing stands anywhere: no state is the active one
        for node in graph.nodes():
            node.attr.update(fillcolor="white", color="black")
    return graph.draw(None, format=form, prog="dot")
