"""The pictures of the workflow as assets: of the whole, and of one study with its past."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from lookit_ops.assets.workflow import study_workflow_diagram, workflow_diagram
from lookit_ops.runs.report import studies
from lookit_ops.sensors.study_partitions import study_partitions_sensor
from tests.support.workshop import Workshop


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def picture(markdown: str) -> bytes:
    head, _, data = markdown.partition("(data:image/png;base64,")
    assert head.startswith("![")
    return b64decode(data.rstrip(")"))


def test_the_whole_workflow_is_a_picture(workshop: Workshop, instance: dg.DagsterInstance) -> None:
    made = dg.materialize([workflow_diagram], instance=instance, resources={"services": workshop.services})
    (event,) = made.asset_materializations_for_node("workflow_diagram")
    assert picture(event.metadata["diagram"].value).startswith(b"\x89PNG")


def test_a_study_shows_where_it_has_been(workshop: Workshop, instance: dg.DagsterInstance) -> None:
    assert workshop.build().success
    uuid = str(workshop.site.study().uuid)
    instance.add_dynamic_partitions(studies.name or "", [uuid])
    made = dg.materialize(
        [study_workflow_diagram], instance=instance, resources={"services": workshop.services}, partition_key=uuid
    )
    (event,) = made.asset_materializations_for_node("study_workflow_diagram")
    assert (event.metadata["study"].value, event.metadata["state"].value) == ("Apples and oranges", "active")
    assert "| approved | active | 1 |" in event.metadata["past"].value
    assert picture(event.metadata["diagram"].value).startswith(b"\x89PNG")


def test_each_new_study_gets_a_partition_once(workshop: Workshop, instance: dg.DagsterInstance) -> None:
    def tick() -> Any:
        with dg.build_sensor_context(instance=instance, resources={"services": workshop.services}) as context:
            return study_partitions_sensor.evaluate_tick(context)

    first = tick()
    (request,) = first.dynamic_partitions_requests
    assert list(request.partition_keys) == [str(workshop.site.study().uuid)]
    instance.add_dynamic_partitions(studies.name or "", list(request.partition_keys))

    other = workshop.site.another_study("Pears")
    second = tick()
    (request,) = second.dynamic_partitions_requests
    assert list(request.partition_keys) == [str(workshop.site.study(other).uuid)]
    instance.add_dynamic_partitions(studies.name or "", list(request.partition_keys))
    assert tick().skip_message == "no new study, and none deleted"


def test_the_partition_of_a_deleted_study_goes(workshop: Workshop, instance: dg.DagsterInstance) -> None:
    deleted = "0c5f5dd7-0000-4000-8000-00000000dead"
    instance.add_dynamic_partitions(studies.name or "", [deleted, str(workshop.site.study().uuid)])
    with dg.build_sensor_context(instance=instance, resources={"services": workshop.services}) as context:
        ticked = study_partitions_sensor.evaluate_tick(context)
    (request,) = ticked.dynamic_partitions_requests or []
    assert isinstance(request, dg.DeleteDynamicPartitionsRequest)
    assert list(request.partition_keys) == [deleted]
