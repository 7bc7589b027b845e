"""Taken down and put back: what families get follows the study's state, even if a worker is late or dies."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest

from domain.models import BuildKind, State, Study, User
from domain.models.studies import WORKFLOW_STATES, PageState
from domain.requests.build_claim import MAY_START_FROM
from domain.studies.availability import begin_change, end_change
from domain.studies.discoverable import discoverable_studies
from domain.studies.edit import edit
from lookit_ops.deployments.manifest import NOT_AVAILABLE, folder_of, history
from lookit_ops.deployments.rollback import restorable
from lookit_ops.maintenance.availability import bring_page_into_line, bring_pages_into_line
from lookit_ops.sensors.availability import availability
from lookit_ops.storage.errors import StorageError
from tests.support.site import transition_as_read
from tests.support.workshop import GOOD_BUILD, Workshop

SERVING = Path(__file__).parents[3] / "docs" / "serving.md"


def page(workshop: Workshop) -> bytes:
    return (workshop.folder() / "index.html").read_bytes()


def move(workshop: Workshop, trigger: str) -> None:
    with workshop.site.sessions.begin() as session:
        study, user = session.get_one(Study, workshop.site.study_id), session.get_one(User, workshop.site.superuser)
        transition_as_read(session, study, trigger, user)


def in_line(workshop: Workshop) -> tuple[int, int, int]:
    done = bring_pages_into_line(workshop.services)
    return len(done.taken_down), len(done.put_back), len(done.failed)


@pytest.fixture
def served(workshop: Workshop) -> Workshop:
    assert workshop.build().success
    assert b"<script" in page(workshop)
    assert workshop.site.study().page_state == PageState.SERVED
    assert in_line(workshop) == (0, 0, 0)
    return workshop


@pytest.mark.parametrize("trigger", ["reject", "deactivate", "archive"])
def test_a_study_that_leaves_is_taken_down_and_its_files_stay(served: Workshop, trigger: str) -> None:
    before = {path for path in served.folder().rglob("*") if path.is_file()}
    move(served, trigger)
    assert in_line(served) == (1, 0, 0)
    assert page(served) == NOT_AVAILABLE
    assert {path for path in served.folder().rglob("*") if path.is_file()} == before
    assert served.site.study().page_state == PageState.WITHDRAWN
    log = served.site.logs()[-1]
    assert (log.action, log.user_id, log.state_after) == ("taken_down", None, served.site.study().state)
    assert in_line(served) == (0, 0, 0)
    folder = folder_of("deployment", served.site.study().uuid)
    assert len(history(served.services.bucket, folder)) == 1


def test_an_edit_that_sends_an_active_study_back_takes_it_down(served: Workshop) -> None:
    with served.site.sessions.begin() as session:
        study, user = session.get_one(Study, served.site.study_id), session.get_one(User, served.site.study_admin)
        edit(session, study, user, {"purpose": "Another"})
    assert in_line(served) == (1, 0, 0)
    assert page(served) == NOT_AVAILABLE


def test_a_paused_study_stays_served(served: Workshop) -> None:
    move(served, "pause")
    assert in_line(served) == (0, 0, 0)
    assert b"<script" in page(served)


def test_a_return_to_active_puts_the_page_back_without_a_build(served: Workshop) -> None:
    was = page(served)
    move(served, "reject")
    assert in_line(served) == (1, 0, 0)
    for trigger in ("resubmit", "approve"):
        move(served, trigger)
        assert in_line(served) == (0, 0, 0)
        assert page(served) == NOT_AVAILABLE
    move(served, "activate")
    assert in_line(served) == (0, 1, 0)
    assert page(served) == was
    assert [log.action for log in served.site.logs()][-1] == "put_back"
    assert served.site.study().page_state == PageState.SERVED


def test_a_deployment_after_a_take_down_is_served_and_the_earlier_one_can_be_restored(served: Workshop) -> None:
    move(served, "reject")
    in_line(served)
    served.build_by(GOOD_BUILD.replace("var version", "var next_version"))
    for trigger in ("resubmit", "approve"):
        move(served, trigger)
    assert served.build().success
    assert b"<script" in page(served)
    assert served.site.study().page_state == PageState.SERVED
    assert in_line(served) == (0, 0, 0)
    assert len(restorable(served.services.bucket, folder_of("deployment", served.site.study().uuid))) == 1


def test_a_bucket_that_is_away_leaves_the_wish_in_the_database(served: Workshop) -> None:
    move(served, "deactivate")
    served.faults.refuse("write_page")
    assert in_line(served) == (0, 0, 1)
    assert served.site.study().page_state == PageState.CHANGING
    served.faults.allow("write_page")
    assert in_line(served) == (1, 0, 0)
    assert page(served) == NOT_AVAILABLE


def test_a_worker_that_dies_behind_its_write_is_followed_by_another(served: Workshop) -> None:
    move(served, "deactivate")

    def die(_key: str) -> None:
        served.faults.after("write_page", lambda _key: None)
        raise RuntimeError("the process is gone")

    served.faults.after("write_page", die)
    assert in_line(served) == (0, 0, 1)
    assert page(served) == NOT_AVAILABLE
    assert served.site.study().page_state == PageState.CHANGING
    in_line(served)
    assert served.site.study().page_state == PageState.WITHDRAWN


def test_a_worker_that_is_late_with_putting_back_does_not_undo_a_later_take_down(served: Workshop) -> None:
    """It has seen an active study and the withdrawn page; before it writes, the study is rejected again."""
    move(served, "reject")
    in_line(served)
    for trigger in ("resubmit", "approve", "activate"):
        move(served, trigger)
    late = []

    def overtake(_key: str) -> None:
        served.faults.before("write_page", lambda _key: None)
        move(served, "reject")
        late.append(bring_page_into_line(served.services, served.site.study_id))

    served.faults.before("write_page", overtake)
    assert bring_page_into_line(served.services, served.site.study_id) is None
    assert late == [None], "the page said so already, and is written again all the same"
    assert page(served) == NOT_AVAILABLE
    assert served.site.study().page_state == PageState.WITHDRAWN


def test_a_worker_that_stalls_before_its_first_look_does_not_undo_a_later_take_down(served: Workshop) -> None:
    """It has noted the change of an active study; what it then finds is the page of a later take-down."""
    move(served, "reject")
    in_line(served)
    for trigger in ("resubmit", "approve", "activate"):
        move(served, trigger)
    bucket = served.services.bucket
    key = f"{folder_of('deployment', served.site.study().uuid)}/index.html"
    seen = bucket.page(key)
    with served.site.sessions.begin() as session:
        late = begin_change(session, served.site.study_id)
    assert late is not None
    move(served, "reject")
    assert in_line(served)[2] == 0
    assert page(served) == NOT_AVAILABLE
    now = bucket.page(key)
    assert seen is not None
    assert now is not None
    assert now.generation > seen.generation, "so what the late worker writes on what it has seen is refused"
    with served.site.sessions.begin() as session:  # and if it had written all the same, the next one would look again
        assert not end_change(session, late, PageState.SERVED, was_changed=False)
    in_line(served)
    assert served.site.study().page_state == PageState.WITHDRAWN


def test_a_study_that_moves_while_its_page_is_written_is_looked_at_again(served: Workshop) -> None:
    move(served, "reject")

    def move_on(_key: str) -> None:
        served.faults.after("write_page", lambda _key: None)
        for trigger in ("resubmit", "approve", "activate"):
            move(served, trigger)

    served.faults.after("write_page", move_on)
    assert bring_page_into_line(served.services, served.site.study_id) is PageState.SERVED
    assert b"<script" in page(served)


def test_while_a_deployment_runs_the_page_is_left_to_it(served: Workshop) -> None:
    served.ledger.claim(served.request(), "a run", served.services.settings.lease_duration)
    with served.site.sessions.begin() as session:
        assert begin_change(session, served.site.study_id) is None
    assert in_line(served) == (0, 0, 0)


def test_a_study_without_a_page_needs_none(workshop: Workshop) -> None:
    move(workshop, "archive")
    assert in_line(workshop) == (0, 0, 0)
    with workshop.site.sessions.begin() as session:
        session.get_one(Study, workshop.site.study_id).page_state = PageState.SERVED.value  # as after an upgrade
    assert in_line(workshop) == (0, 0, 0)
    assert workshop.site.study().page_state == PageState.NONE


def test_the_sensor_starts_one_run_and_asks_the_database_alone(served: Workshop) -> None:
    assert "every study has the page" in str(served.tick(availability).skip_message)
    move(served, "deactivate")
    served.faults.refuse("page")
    (asked,) = served.tick(availability).run_requests or []
    assert isinstance(asked, dg.RunRequest)
    served.faults.allow("page")
    in_line(served)
    assert "every study has the page" in str(served.tick(availability).skip_message)


def test_a_page_that_cannot_be_read_is_an_error_and_stays_to_be_changed(served: Workshop) -> None:
    served.faults.refuse("page")
    move(served, "deactivate")
    with pytest.raises(StorageError):
        bring_page_into_line(served.services, served.site.study_id)
    served.faults.allow("page")
    assert in_line(served) == (1, 0, 0)


ROWS = {
    row[0].strip(" `"): [cell.strip() for cell in row[1:]]
    for row in (
        line.strip("|").split("|")
        for line in re.findall(r"^\| `\w+` \|.*$", SERVING.read_text().partition("| state | served |")[2], re.MULTILINE)
    )
}


@pytest.mark.parametrize("state", WORKFLOW_STATES)
def test_the_guides_table_of_states_is_true(served: Workshop, state: State) -> None:
    is_served, is_listed, builds = ROWS[state.value]
    served.site.set_state(state)
    with served.site.sessions.begin() as session:
        session.get_one(Study, served.site.study_id).is_discoverable = True
    in_line(served)
    assert (page(served) != NOT_AVAILABLE) is (is_served == "yes")
    with served.site.sessions.begin() as session:
        assert bool(discoverable_studies(session)) is (is_listed == "yes")
    can = [kind for kind in ("preview", "deployment") if builds_from(kind, state)]
    assert (" and ".join(can) or "no") == builds


def builds_from(kind: str, state: State) -> bool:
    return state in MAY_START_FROM[BuildKind(kind)]
