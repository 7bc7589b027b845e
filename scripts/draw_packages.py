"""Draw the packages, their subpackages and the imports between them, from the code, into docs/images/packages.svg.

An arrow says "imports". Inside a package only those arrows are drawn that no chain of others implies, and between two
packages one arrow for all of their imports: what the contracts in pyproject.toml allow besides is not seen here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
import pygraphviz

PACKAGES = {"lookit_ops": "#e4ecf7", "ember_build": "#fdf1dc", "domain": "#e3f1e6"}
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "packages.svg"


def imports() -> dict[str, set[str]]:
    """Return which unit imports which: the modules and subpackages right below the packages."""
    graph = grimp.build_graph(*PACKAGES)
    units = sorted({child for package in PACKAGES for child in graph.find_children(package)})
    for unit in units:
        graph.squash_module(unit)
    return {unit: graph.find_modules_directly_imported_by(unit) & set(units) - {unit} for unit in units}


def without_implied(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the edges of an acyclic graph that no chain of others implies."""

    def reached(unit: str) -> set[str]:
        return edges[unit].union(*(reached(other) for other in edges[unit])) if edges[unit] else set()

    return {
        unit: {other for other in others if not any(other in reached(between) for between in others - {other})}
        for unit, others in edges.items()
    }


def drawn(edges: dict[str, set[str]]) -> pygraphviz.AGraph:
    """Return the picture, laid out."""
    picture = pygraphviz.AGraph(directed=True, rankdir="TB", ranksep="0.45", nodesep="0.18", compound=True)
    picture.node_attr.update(shape="box", style="filled,rounded", fontname="Helvetica", fontsize="11", height="0.3")
    picture.edge_attr.update(color="#8a93a0", arrowsize="0.6")
    for package, colour in PACKAGES.items():
        members = [unit for unit in edges if unit.startswith(f"{package}.")]
        cluster = picture.add_subgraph(
            name=f"cluster_{package}", label=package, style="rounded", color="#9aa5b1", fontname="Helvetica-Bold"
        )
        for unit in members:
            name = unit.removeprefix(f"{package}.")
            path = PICTURE.parents[2] / package / name
            cluster.add_node(unit, label=f"{name}/" if path.is_dir() else name, fillcolor=colour, color="#8a93a0")
        within = without_implied({unit: edges[unit] & set(members) for unit in members})
        for unit, others in within.items():
            for other in sorted(others):
                picture.add_edge(unit, other)
    for below in ("ember_build", "domain"):
        importers = [unit for unit in edges if any(other.startswith(f"{below}.") for other in edges[unit])]
        if any(unit.startswith("lookit_ops.") for unit in importers):
            ends = {"ltail": "cluster_lookit_ops", "lhead": f"cluster_{below}"}
            target = {"ember_build": "ember_build.docker", "domain": "domain.requests"}[below]
            picture.add_edge("lookit_ops.storage", target, penwidth="2", color="#5a6675", **ends)
    picture.layout("dot")
    return picture


def main() -> None:
    """Write the picture."""
    sys.path.insert(0, str(PICTURE.parents[2]))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    drawn(imports()).draw(str(PICTURE))
    sys.stdout.write(f"{PICTURE.relative_to(Path.cwd())}\n")


if __name__ == "__main__":
    main()
