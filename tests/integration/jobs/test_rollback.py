"""A rollback on real parts: what it leaves when it succeeds, when it fails, and when its process dies."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from domain.db import Sessions
from domain.errors import InvalidRequest, LeaseLost, PermissionDenied, StudyIsLocked, TransitionNotAllowed
from domain.models import BuildKind, BuildRequest, RequestStatus, State
from domain.requests.build_claim import BuildClaim
from lookit_ops.deployments.manifest import live_deployment
from lookit_ops.deployments.rollback import NotRestorable
from lookit_ops.failures import RequestCancelled
from lookit_ops.mail_delivery import deliver_mails
from lookit_ops.runs.reconcile import reconcile_builds
from lookit_ops.runs.report import built
from lookit_ops.runs.rollback import RolledBack, roll_back
from lookit_ops.storage.errors import NoAnswer, StorageError
from tests.support.databases import POSTGRESQL, SQLITE, create_database
from tests.support.leases import give_up
from tests.support.site import Site
from tests.support.snapshots import Snapshot, Snapshots
from tests.support.workshop import GOOD_BUILD, Workshop


def three_deployments(workshop: Workshop) -> list[dict[str, bytes]]:
    """Deploy three times, as requests 1 to 3; return what a family could fetch of each."""
    lives = []
    for number in (1, 2, 3):
        deploy(workshop, f"version_{number}")
        lives.append(workshop.live())
    return lives


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Snapshots[list[dict[str, bytes]]]:
    return Snapshots(tmp_path_factory.mktemp("three deployments"), three_deployments)


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def snapshot(request: pytest.FixtureRequest, snapshots: Snapshots[list[dict[str, bytes]]]) -> Snapshot:
    def empty(folder: Path) -> str:
        if request.param == SQLITE:
            shutil.copy(request.getfixturevalue("sqlite_template"), folder / "lookit.db")
            return f"sqlite:///{folder / 'lookit.db'}"
        template = request.getfixturevalue("postgresql_template")
        return create_database(request.getfixturevalue("postgresql_server"), f"snapshot_{uuid4().hex}", template)

    return snapshots.of(request.param, empty)


@pytest.fixture
def database_url(snapshot: Snapshot, tmp_path: Path) -> str:
    return snapshot.copy_database(tmp_path)


@pytest.fixture
def site(snapshot: Snapshot, sessions: Sessions) -> Site:
    return Site(sessions, **snapshot.ids)


@pytest.fixture
def three(workshop: Workshop, snapshot: Snapshot) -> list[dict[str, bytes]]:
    """Three deployments, requests 1 to 3; what a family could fetch of each."""
    shutil.copytree(snapshot.home, workshop.root / "home", symlinks=True)
    workshop.build_by(GOOD_BUILD.replace("var version", "var version_3").replace("User-agent: *", "version_3"))
    return snapshot.made


def deploy(workshop: Workshop, name: str) -> None:
    workshop.build_by(GOOD_BUILD.replace("var version", f"var {name}").replace("User-agent: *", name))
    assert workshop.build().success


def back(workshop: Workshop, to: int | None = None, user: int | None = None) -> RolledBack:
    site = workshop.site
    return roll_back(workshop.services, site.study_id, user or site.study_admin, to, origin="a test")


def everything(workshop: Workshop) -> tuple[object, ...]:
    """What a refused rollback must not change."""
    study = workshop.site.study()
    with workshop.site.sessions.begin() as session:
        requests = session.query(BuildRequest).count()
    bucket = {file.key: file.sha256 for file in workshop.faults.real.files()}
    return (study.state, study.fencing_token, requests, len(workshop.site.logs()), len(workshop.site.mails()), bucket)


def assert_ended(workshop: Workshop, request_id: int, status: RequestStatus, state: State = State.ACTIVE) -> None:
    """One end, one log, and a study that is as before."""
    study, request = workshop.site.study(), workshop.site.request(request_id)
    assert (study.state, study.state_before_build, request.status) == (state, None, status)
    logs = [log for log in workshop.site.logs() if log.build_request_id == request_id]
    assert [(log.action, log.state_before, log.state_after) for log in logs] == [("rollback", state, state)]


def test_the_build_before_comes_back_with_one_log_the_mails_and_the_asset(workshop: Workshop, three) -> None:
    told = len(workshop.site.mails())
    done = back(workshop)
    assert workshop.live() == three[1]
    assert (workshop.folder() / "robots.txt").read_text() == "version_2\n"
    assert (done.restores_id, done.state) == (2, "active")
    assert_ended(workshop, done.request_id, RequestStatus.SUCCEEDED)
    facts = workshop.site.logs()[-1].extra["facts"]
    assert (facts["replaced request"], facts["files"]) == ("3", 3)
    mails = workshop.site.mails()[told:]
    assert [(mail.recipient.email, mail.template) for mail in mails] == [
        ("site_admin@example.org", "build_succeeded"),
        ("study_admin@example.org", "build_succeeded"),
    ]
    deliver_mails(workshop.services)
    (text, *_) = [
        path.read_text() for path in workshop.services.settings.mails.iterdir() if "rolled" in path.read_text()
    ]
    assert "Subject: Apples and oranges was rolled back" in text
    asset = built(workshop.services, done.request_id)
    assert asset.asset_key.path == ["experiment_deployment"]
    assert asset.metadata["sha"].value == workshop.site.request(2).player_sha


def test_again_goes_further_and_a_named_one_may_be_newer(workshop: Workshop, three) -> None:
    assert back(workshop).restores_id == 2
    assert back(workshop).restores_id == 1
    assert workshop.live() == three[0]
    with pytest.raises(NotRestorable, match="nothing older than request 1"):
        back(workshop)
    assert back(workshop, to=3).restores_id == 3
    assert workshop.live() == three[2]
    deploy(workshop, "version_4")
    assert back(workshop).restores_id == 3, "the next build is the newest again"


def test_the_state_stays_what_it_was(workshop: Workshop, three) -> None:
    workshop.site.set_state(State.PAUSED)
    assert back(workshop).state == "paused"
    assert workshop.site.study().state == State.PAUSED


@pytest.mark.parametrize(
    ("change", "to", "user", "error"),
    [
        (lambda _: None, None, "designer", PermissionDenied),
        (lambda there: there.site.set_state(State.REJECTED), None, None, TransitionNotAllowed),
        (
            lambda there: there.ledger.claim(there.request(), "run", there.services.settings.lease_duration),
            None,
            None,
            StudyIsLocked,
        ),
        (lambda _: None, 77, None, NotRestorable),
        (lambda _: None, 3, None, NotRestorable),
        (lambda there: [path.unlink() for path in there.folder().glob("assets/*")], None, None, NotRestorable),
        (lambda there: there.faults.refuse("files"), None, None, StorageError),
    ],
    ids=["permission", "state", "locked", "unknown", "live already", "no longer whole", "bucket away"],
)
def test_what_is_refused_changes_nothing(
    workshop: Workshop, three, change: Callable[[Workshop], object], to: int | None, user: str | None, error: type
) -> None:
    change(workshop)
    before = everything(workshop)
    with pytest.raises(error):
        back(workshop, to, getattr(workshop.site, user) if user else None)
    assert everything(workshop) == before


def test_a_page_of_another_platform_is_no_target(workshop: Workshop, three) -> None:
    (row,) = [row for row in workshop.services.bucket.files() if row.key.endswith(".deployments/2-2/manifest.json")]
    manifest = workshop.services.bucket.read(row.key).replace(b'"request_id": "2"', b'"request_id": "r2"')
    workshop.services.bucket.put(
        row.key, manifest, content_type="application/json", cache_control="no-cache", replace=True
    )
    with pytest.raises(NotRestorable, match="'r2'"):
        back(workshop)
    with workshop.site.sessions.begin() as session:
        session.query(BuildRequest).filter_by(id=1).update({"study_id": workshop.site.another_study("Other")})
    with pytest.raises(InvalidRequest, match="no deployment of request 1"):
        back(workshop, to=1)
    assert workshop.live() == three[2]


@pytest.mark.parametrize(("method", "key"), [("put", "manifest"), ("write_page", "index.html")])
def test_a_fault_before_the_page_leaves_the_live_one_and_says_why(
    workshop: Workshop, three, method: str, key: str
) -> None:
    workshop.faults.refuse(method, key)
    with pytest.raises(StorageError, match=f"refuses to {method}"):
        back(workshop)
    assert workshop.live() == three[2]
    assert_ended(workshop, 4, RequestStatus.FAILED)
    assert workshop.site.request(4).error_code == "storage_error"
    assert workshop.site.mails()[-1].template == "build_failed"
    workshop.faults.allow(method)
    assert back(workshop).restores_id == 2


def test_a_fault_after_the_page_counts_as_done(workshop: Workshop, three) -> None:
    def refuse_once(_key: str) -> None:
        workshop.faults.allow("copy")
        raise StorageError("the bucket refuses to copy")

    workshop.faults.before("copy", refuse_once)
    done = back(workshop)
    assert workshop.live() == three[1]
    assert (workshop.folder() / "robots.txt").read_text() == "version_2\n"
    assert_ended(workshop, done.request_id, RequestStatus.SUCCEEDED)
    assert "rollback was finished for it" in workshop.site.logs()[-1].extra["note"]


def test_a_wish_to_cancel_is_heard_before_the_page(workshop: Workshop, three) -> None:
    def ask(_key: str) -> None:
        workshop.ledger.cancel(4, workshop.site.study_admin)

    workshop.faults.after("put", ask)
    with pytest.raises(RequestCancelled):
        back(workshop)
    assert workshop.live() == three[2]
    assert_ended(workshop, 4, RequestStatus.CANCELLED)


def test_an_interruption_in_the_middle_of_the_write_is_settled_at_once(workshop: Workshop, three) -> None:
    generation = live_deployment(workshop.services.bucket, f"experiments/{workshop.site.study().uuid}").generation

    def interrupt(_key: str) -> None:
        workshop.faults.allow("write_page")
        raise KeyboardInterrupt

    workshop.faults.before("write_page", interrupt)
    with pytest.raises(KeyboardInterrupt):
        back(workshop)
    assert workshop.live() == three[2]
    assert_ended(workshop, 4, RequestStatus.FAILED)
    assert workshop.site.request(4).error_code == "interrupted"
    after = live_deployment(workshop.services.bucket, f"experiments/{workshop.site.study().uuid}").generation
    assert after > generation, "a write that is still on its way no longer fits"


def test_without_an_answer_the_study_stays_locked_until_the_bucket_can_be_asked(workshop: Workshop, three) -> None:
    written: list[str] = []

    def lose(key: str) -> None:
        workshop.faults.refuse("page")
        written.append(key)
        raise NoAnswer(f"whether {key} was written is not known")

    workshop.faults.after("write_page", lose)
    with pytest.raises(NoAnswer):
        back(workshop)
    assert len(written) == 1
    workshop.faults.allow("page")
    workshop.faults.after("write_page", lambda _key: None)
    assert workshop.site.study().state == State.DEPLOYING
    assert not reconcile_builds(workshop.services), "a lease that has not ended is not touched"
    workshop.site.end_leases()
    assert reconcile_builds(workshop.services).rolled_forward == (4,)
    assert workshop.live() == three[1]
    assert_ended(workshop, 4, RequestStatus.SUCCEEDED)


def test_a_page_that_may_yet_arrive_is_called_no_failure(workshop: Workshop, three) -> None:
    def lose(key: str) -> None:  # the fence is refused, too; right after it the page can be read: it is the old one yet
        workshop.faults.refuse("write_page")
        raise NoAnswer(f"whether {key} was written is not known")

    workshop.faults.before("write_page", lose)
    with pytest.raises(NoAnswer):
        back(workshop)
    assert workshop.site.request(4).status == RequestStatus.RUNNING
    workshop.faults.allow("write_page")
    workshop.site.end_leases()
    assert reconcile_builds(workshop.services).expired == (4,)
    assert workshop.live() == three[2]
    assert_ended(workshop, 4, RequestStatus.FAILED)


def killed(workshop: Workshop, plan: Callable[[Workshop], None]) -> None:
    """Roll back in a process of its own, which the plan lets die by SIGKILL."""
    workshop.engine.dispose()

    def worker() -> None:
        workshop.engine.dispose(close=False)  # connections of the parent are not ours to use
        plan(workshop)
        back(workshop)

    process = multiprocessing.get_context("fork").Process(target=worker)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL


def kill(_key: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_before_the_page_it_is_rolled_back_for_good(workshop: Workshop, three) -> None:
    killed(workshop, lambda there: there.faults.before("write_page", kill))
    assert workshop.site.study().state == State.DEPLOYING
    with pytest.raises(StudyIsLocked):
        back(workshop)
    workshop.site.end_leases()
    assert reconcile_builds(workshop.services).expired == (4,)
    assert workshop.live() == three[2]
    assert_ended(workshop, 4, RequestStatus.FAILED)
    assert workshop.site.request(4).error_code == "worker_died"
    assert back(workshop).restores_id == 2


def test_killed_after_the_page_it_is_rolled_forward(workshop: Workshop, three) -> None:
    killed(workshop, lambda there: there.faults.after("write_page", kill))
    workshop.site.end_leases()
    assert reconcile_builds(workshop.services).rolled_forward == (4,)
    assert workshop.live() == three[1]
    assert (workshop.folder() / "robots.txt").read_text() == "version_2\n"
    assert_ended(workshop, 4, RequestStatus.SUCCEEDED)
    assert workshop.site.mails()[-1].template == "build_succeeded"


def test_one_that_slept_through_its_lease_can_no_longer_write_the_page(workshop: Workshop, three) -> None:
    def sleep_until_given_up(_key: str) -> None:
        workshop.faults.allow("write_page")
        assert give_up(workshop.site.end_leases, lambda: reconcile_builds(workshop.services).expired) == (4,)
        deploy(workshop, "version_4")

    workshop.faults.before("write_page", sleep_until_given_up)
    # On a busy machine the worker hears of its lost lease first, and does not wait for the bucket's refusal.
    with pytest.raises(StorageError, match=r"somebody else wrote|told to stop"):
        back(workshop)
    assert any(b"version_4" in content for content in workshop.live().values())
    assert_ended(workshop, 4, RequestStatus.FAILED)
    assert workshop.site.request(5).status == RequestStatus.SUCCEEDED


def test_one_that_was_given_up_before_its_last_look_hears_it(workshop: Workshop, three) -> None:
    def sleep_until_given_up(_key: str) -> None:
        workshop.faults.after("put", lambda _key: None)
        assert give_up(workshop.site.end_leases, lambda: reconcile_builds(workshop.services).expired) == (4,)

    workshop.faults.after("put", sleep_until_given_up)
    with pytest.raises(LeaseLost):
        back(workshop)
    assert workshop.live() == three[2]
    assert_ended(workshop, 4, RequestStatus.FAILED)


def test_a_waiting_build_goes_on_waiting(workshop: Workshop, three) -> None:
    waiting = workshop.request(BuildKind.DEPLOYMENT)
    back(workshop)
    assert workshop.site.request(waiting).status == RequestStatus.QUEUED
    assert isinstance(workshop.ledger.claim(waiting, "run", workshop.services.settings.lease_duration), BuildClaim)
