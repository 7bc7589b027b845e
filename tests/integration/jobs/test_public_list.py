"""The public list: what is on it, that it follows each change, and that no writer leaves an older one behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import pytest

from domain.models import BuildKind, State, Study, User
from domain.requests.failure import Failure
from domain.studies.edit import edit
from lookit_ops.assets.public_list import discoverable_studies_asset
from lookit_ops.definitions import defs
from lookit_ops.maintenance.public_list import KEY, refresh_public_list
from lookit_ops.sensors.public_list import public_list_sensor
from lookit_ops.storage.errors import GenerationMismatch
from tests.support.site import transition_as_read
from tests.support.workshop import Workshop

STUDY = "Apples and oranges"


@pytest.fixture
def listed(workshop: Workshop) -> Workshop:
    """A workshop whose study is active, deployed and discoverable."""
    with workshop.site.sessions.begin() as session:
        session.get_one(Study, workshop.site.study_id).is_discoverable = True
    assert workshop.build().success
    return workshop


def names(workshop: Workshop) -> list[str]:
    page = workshop.services.bucket.page(KEY)
    return [study["name"] for study in json.loads(page.content)["studies"]] if page else []


def move(workshop: Workshop, trigger: str, user: int) -> None:
    with workshop.site.sessions.begin() as session:
        study = session.get_one(Study, workshop.site.study_id)
        transition_as_read(session, study, trigger, session.get_one(User, user))


def test_a_deployment_puts_a_discoverable_study_on_the_list(listed: Workshop) -> None:
    page = listed.services.bucket.page(KEY)
    assert page is not None
    (entry,) = json.loads(page.content)["studies"]
    uuid = str(listed.site.study().uuid)
    assert (entry["uuid"], entry["name"], entry["lab"]) == (uuid, STUDY, "Early Childhood Lab")
    assert entry["url"].endswith(f"/studies/{uuid}/")


def test_a_hidden_study_and_a_preview_put_nothing_on_the_list(workshop: Workshop) -> None:
    assert workshop.build().success
    assert workshop.build(BuildKind.PREVIEW).success
    assert names(workshop) == []


@pytest.mark.parametrize("kind", BuildKind)
def test_a_build_of_an_active_study_takes_nothing_off_the_list(listed: Workshop, kind: BuildKind) -> None:
    claim = listed.ledger.claim(listed.request(kind), "a run", timedelta(minutes=5))
    assert listed.site.study().state == {"preview": State.PREVIEWING, "deployment": State.DEPLOYING}[kind]
    assert refresh_public_list(listed.services).names == (STUDY,)
    listed.ledger.fail(claim, Failure("build", "player_build_failed", "no"), {})
    assert refresh_public_list(listed.services).names == (STUDY,)


def test_who_leaves_active_leaves_the_list_and_comes_back(listed: Workshop) -> None:
    move(listed, "pause", listed.site.study_admin)
    assert refresh_public_list(listed.services).rewritten
    assert names(listed) == []
    move(listed, "activate", listed.site.study_admin)
    assert refresh_public_list(listed.services).names == (STUDY,)


def test_an_edit_that_sends_the_study_back_takes_it_off(listed: Workshop) -> None:
    with listed.site.sessions.begin() as session:
        study = session.get_one(Study, listed.site.study_id)
        edit(session, study, session.get_one(User, listed.site.study_admin), {"purpose": "Another"})
    assert refresh_public_list(listed.services).names == ()


def test_a_list_that_is_right_is_not_written_again(listed: Workshop) -> None:
    first, second = refresh_public_list(listed.services), refresh_public_list(listed.services)
    assert (first.rewritten, second.rewritten) == (False, False)
    assert first.generation == second.generation


def test_a_writer_that_was_overtaken_asks_the_database_again(listed: Workshop) -> None:
    """Between its question and its writing, another writer moves the study and writes: the newer list stays."""
    move(listed, "pause", listed.site.study_admin)

    def overtake(_key: str) -> None:
        listed.faults.allow("write_page")
        move(listed, "activate", listed.site.study_admin)
        with listed.site.sessions.begin() as session:
            session.get_one(Study, listed.site.study_id).name = "Pears"
        assert refresh_public_list(listed.services).rewritten

    listed.faults.before("write_page", overtake)
    assert refresh_public_list(listed.services).names == ("Pears",)
    assert names(listed) == ["Pears"]


def test_a_writer_that_is_always_overtaken_says_so(listed: Workshop) -> None:
    def overtake(_key: str) -> None:
        raise GenerationMismatch("somebody else wrote it")

    move(listed, "pause", listed.site.study_admin)
    listed.faults.before("write_page", overtake)
    with pytest.raises(GenerationMismatch):
        refresh_public_list(listed.services)


def test_a_storage_that_refuses_the_list_is_no_failure_of_the_build(workshop: Workshop) -> None:
    with workshop.site.sessions.begin() as session:
        session.get_one(Study, workshop.site.study_id).is_discoverable = True
    workshop.faults.refuse("page", KEY)
    assert workshop.build().success
    assert workshop.site.study().state == State.ACTIVE
    workshop.faults.allow("page")
    assert refresh_public_list(workshop.services).rewritten


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_the_sensor_requests_a_run_for_a_list_that_none_has_compared_and_asks_the_database_alone(
    listed: Workshop, instance: dg.DagsterInstance
) -> None:
    move(listed, "pause", listed.site.study_admin)
    listed.faults.refuse("page")
    listed.faults.refuse("write_page")
    resources = {"services": listed.services}

    def tick() -> tuple[list[dg.RunRequest], str | None]:
        with dg.build_sensor_context(instance=instance, definitions=defs, resources=resources) as context:
            ticked = public_list_sensor.evaluate_tick(context)
            return list(ticked.run_requests or []), ticked.skip_message

    ((asked,), _) = tick()
    run = instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(), tags=dict(asked.tags), status=dg.DagsterRunStatus.STARTED
    )
    assert tick() == ([], "a run that compares the list is on its way, or has just failed")
    instance.delete_run(run.run_id)
    for status, asks in ((dg.DagsterRunStatus.SUCCESS, False), (dg.DagsterRunStatus.FAILURE, False)):
        run = instance.create_run_for_job(
            defs.resolve_implicit_global_asset_job_def(), tags=dict(asked.tags), status=status
        )
        assert bool(tick()[0]) is asks
        instance.delete_run(run.run_id)
    instance.create_run_for_job(
        defs.resolve_implicit_global_asset_job_def(), tags=dict(asked.tags), status=dg.DagsterRunStatus.SUCCESS
    )
    move(listed, "activate", listed.site.study_admin)  # another list than the one that was compared
    assert len(tick()[0]) == 1


def test_the_asset_is_materialized_by_hand(listed: Workshop, instance: dg.DagsterInstance) -> None:
    move(listed, "pause", listed.site.study_admin)
    made = dg.materialize([discoverable_studies_asset], instance=instance, resources={"services": listed.services})
    assert made.success
    assert names(listed) == []
