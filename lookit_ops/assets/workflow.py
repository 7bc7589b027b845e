"""The assets `workflow_diagram` and `study_workflow_diagram`: pictures that open in Dagster's UI, drawn from the table.

A picture is metadata: PNG (its fonts are everywhere the same) within Markdown, behind "Show Markdown".
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts as they are.

from base64 import b64encode

import dagster as dg

from domain.lookup import find_study
from domain.studies.diagram import Path, draw, path_of
from lookit_ops.assets.experiments import studies_asset
from lookit_ops.run_tags import OWNERS
from lookit_ops.runs.report import studies
from lookit_ops.services import Services


def _picture(png: bytes, title: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{b64encode(png).decode()})")


@dg.asset(
    description="The whole workflow of studies: states, and the triggers between them.",
    group_name="studies",
    kinds={"graphviz"},
    owners=OWNERS,
)
def workflow_diagram(services: dg.ResourceParam[Services]) -> dg.MaterializeResult:
    """The whole graph of the workflow that the settings name."""
    _ = services  # making it has read the workflow
    return dg.MaterializeResult(metadata={"diagram": _picture(draw("png"), "the workflow of studies")})


@dg.asset(
    description="One study in the workflow: where it has been, where it is, where it can go.",
    group_name="studies",
    kinds={"graphviz"},
    owners=OWNERS,
    deps=[studies_asset],
    partitions_def=studies,
)
def study_workflow_diagram(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> dg.MaterializeResult:
    """The region of interest of one study."""
    with services.sessions.begin() as session:
        study = find_study(session, context.partition_key)
        name, path = study.name, path_of(session, study)
    picture = draw("png", path, region_of_interest=True)
    return dg.MaterializeResult(
        metadata={
            "study": name,
            "state": path.state.value,
            "diagram": _picture(picture, "the study in the workflow"),
            "past": dg.MetadataValue.md(_past(path)),
        }
    )


def _past(path: Path) -> str:
    steps = [f"| {s.before} | {s.after} | {s.times} | {s.last:%Y-%m-%d %H:%M} |" for s in path.steps]
    return "\n".join(["| from | to | times | last (UTC) |", "| --- | --- | --- | --- |", *steps])
