"""The job `build_experiment` on real parts: what a build leaves when it succeeds, and when each step fails in turn."""

from __future__ import annotations

import json
import stat
import threading
import time
import unittest.mock
from collections.abc import Callable, Mapping
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import dagster as dg
import pytest

from domain.models import BuildKind, State
from lookit_ops.demo.github_server import Answer, Commit
from lookit_ops.mail_delivery import deliver_mails
from lookit_ops.resources import build_run_resource
from lookit_ops.services import Services
from tests.support import faulty_github
from tests.support.faulty_github import Faults, archive_of, body, entry, status
from tests.support.production import PRODUCTION
from tests.support.workshop import GOOD_BUILD, REPOSITORY, Workshop, WorkshopServices, player

SYMLINK = stat.S_IFLNK | 0o777
PREVIEW, DEPLOYMENT = BuildKind.PREVIEW, BuildKind.DEPLOYMENT
FIRST, SECOND = player("1.0").sha, player("2.0").sha


def what_failed(run: dg.ExecuteInProcessResult) -> str:
    """The description of the failure that the run's page shows."""
    (failed,) = [event for event in run.all_events if event.is_step_failure]
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None, failed.step_failure_data.error
    return str(failure.description)


def metadata_of(run: dg.ExecuteInProcessResult, op: str) -> dict[str, object]:
    (event,) = [event for event in run.events_for_node(op) if event.is_successful_output]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def test_a_preview_is_in_the_bucket_and_the_state_is_as_before(workshop: Workshop) -> None:
    workshop.site.set_state(State.SUBMITTED)
    assert workshop.build(PREVIEW).success
    uuid = workshop.site.study().uuid
    live = workshop.live(PREVIEW)
    assert f"/studies/{uuid}/".encode() in live["index.html"]
    assert any(b"2.0" in content for content in live.values())
    assert (workshop.folder(PREVIEW) / "robots.txt").read_text() == "User-agent: *\n"
    assert workshop.live(DEPLOYMENT) == {}
    assert workshop.site.study().state == State.SUBMITTED
    assert workshop.leftovers() == []


def test_a_deployment_makes_the_study_active_with_one_log_and_the_right_mails(workshop: Workshop) -> None:
    assert workshop.build(DEPLOYMENT).success
    assert workshop.site.study().state == State.ACTIVE
    (log,) = workshop.site.logs()
    assert (log.action, log.state_before, log.state_after) == ("deployment", "approved", "active")
    assert "building 2.0 for /studies/" in log.extra["build_output"]
    assert "claimed build request" in log.extra["log"]
    assert log.extra["sha"] == SECOND
    mails = workshop.site.mails()
    assert [(mail.recipient.email, mail.template, mail.status) for mail in mails] == [
        ("site_admin@example.org", "build_succeeded", "waiting"),
        ("study_admin@example.org", "build_succeeded", "waiting"),
    ]
    assert deliver_mails(workshop.services).sent == 2
    assert len(list(workshop.services.settings.mails.glob("*.eml"))) == 2


def test_the_runs_page_shows_commit_sizes_and_a_link_and_the_asset_is_materialised(workshop: Workshop) -> None:
    run = workshop.build(PREVIEW)
    uuid = str(workshop.site.study().uuid)
    assert metadata_of(run, "checkout")["sha"] == SECOND
    assert metadata_of(run, "checkout")["repository"] == "lookit/player"
    assert metadata_of(run, "upload")["files"] == 3
    assert "building 2.0" in str(metadata_of(run, "build")["end of the output"])
    (materialised,) = [event for event in run.all_events if event.is_step_materialization]
    asset = materialised.step_materialization_data.materialization
    assert (asset.asset_key.path, asset.partition) == (["experiment_preview"], uuid)
    assert asset.metadata["link"].value == f"http://{uuid}.localhost:8002/studies/{uuid}/"


def test_the_commit_of_the_study_is_built(workshop: Workshop) -> None:
    workshop.site.set_metadata(last_known_player_sha=FIRST)
    assert workshop.build().success
    assert any(b"1.0" in content for content in workshop.live().values())
    assert workshop.site.logs()[0].extra["sha"] == FIRST


@pytest.mark.parametrize("sha", ["", "f" * 40, "main", "12345"])
def test_an_empty_or_unknown_sha_builds_the_default_branch_and_says_so(workshop: Workshop, sha: str) -> None:
    workshop.site.set_metadata(last_known_player_sha=sha)
    run = workshop.build()
    assert run.success
    (log,) = workshop.site.logs()
    reason = log.extra["sha_reason"]
    assert log.extra["sha"] == SECOND
    assert "default branch" in reason
    assert metadata_of(run, "checkout")["why this sha"] == reason
    assert reason in (workshop.site.mails()[0].context["sha_reason"])
    pinned = workshop.site.study().study_metadata.get("last_known_player_sha")
    assert pinned == (sha or SECOND), "a blank SHA is pinned, a researcher's own is never replaced"


def test_a_setting_refuses_an_unknown_sha_instead(workshop: Workshop) -> None:
    workshop.settings["refuse_invalid_sha"] = True
    workshop.site.set_metadata(last_known_player_sha="f" * 40)
    assert "f" * 40 in what_failed(workshop.build())
    assert workshop.site.logs()[0].extra["step"] == "checkout"


def refuse_pages(workshop: Workshop, _: Faults) -> None:
    workshop.faults.refuse("write_page")


def refuse_files(workshop: Workshop, _: Faults) -> None:
    workshop.faults.refuse("put", "assets/")


def ember_fails(workshop: Workshop, _: Faults) -> None:
    workshop.build_by('echo "==> ember build"; echo "SyntaxError: frame.js: Unexpected token"; exit 3')


def ember_says_nothing(workshop: Workshop, _: Faults) -> None:
    workshop.build_by('echo "==> ember build"')


def ember_breaks_an_asset(workshop: Workshop, _: Faults) -> None:
    workshop.build_by(GOOD_BUILD + 'rm "$OUTPUT_DIR"/assets/*.js')


def ember_forgets_the_prefix(workshop: Workshop, _: Faults) -> None:
    workshop.build_by('mkdir -p "$OUTPUT_DIR"; echo "<html>nothing</html>" > "$OUTPUT_DIR/index.html"')


FAILURES: dict[str, tuple[Callable[[Workshop, Faults], object], str, str, str]] = {
    "repository gone": (lambda _, faults: faults.on("", status(404)), "checkout", "player_invalid", "repository"),
    "GitHub 503 for ever": (lambda _, faults: faults.on("", status(503)), "checkout", "platform_error", "503"),
    "GitHub hangs up for ever": (
        lambda _, faults: faults.on("/archive/", faulty_github.hang_up),
        "checkout",
        "platform_error",
        "",
    ),
    "broken archive": (
        lambda _, faults: faults.on("/archive/", faulty_github.cut_silently),
        "checkout",
        "player_invalid",
        "archive",
    ),
    "archive with ../": (
        lambda _, faults: faults.on("/archive/", body(archive_of({"player-1/../../evil": b""}))),
        "checkout",
        "player_invalid",
        "..",
    ),
    "archive with a symlink": (
        lambda _, faults: faults.on("/archive/", body(archive_of([(entry("player-1/link", SYMLINK), b"/etc/passwd")]))),
        "checkout",
        "player_invalid",
        "link",
    ),
    "ember build exits non-zero": (ember_fails, "build", "player_build_failed", "Unexpected token"),
    "ember build exits 0 without output": (ember_says_nothing, "build", "player_build_failed", ""),
    "ember build exits 0 with a broken asset": (ember_breaks_an_asset, "build", "player_build_failed", "assets/player"),
    "ember build forgets the prefix": (ember_forgets_the_prefix, "build", "player_build_failed", "/studies/"),
    "storage refuses before the commit point": (refuse_files, "upload", "storage_error", "refuses to put"),
    "storage refuses at the commit point": (refuse_pages, "upload", "storage_error", "refuses to write_page"),
}


@pytest.mark.parametrize("kind", BuildKind)
@pytest.mark.parametrize("case", FAILURES)
def test_a_build_that_fails_leaves_the_state_before_one_log_one_mail_each_and_the_live_version(
    workshop: Workshop, github_faults: Faults, case: str, kind: BuildKind
) -> None:
    spoil, step, code, cause = FAILURES[case]
    workshop.site.set_metadata(last_known_player_sha=FIRST)
    assert workshop.build(kind).success
    before, live = workshop.site.study(), workshop.live(kind)
    assert live
    logs, mails = workshop.site.logs(), workshop.site.mails()
    workshop.site.set_metadata(last_known_player_sha=SECOND)
    spoil(workshop, github_faults)

    run = workshop.build(kind)

    assert not run.success
    assert cause in what_failed(run)
    after = workshop.site.study()
    assert (after.state, after.state_before_build) == (before.state, None)
    assert after.state_changed_at == before.state_changed_at
    (log,) = workshop.site.logs()[len(logs) :]
    assert (log.extra["outcome"], log.extra["step"]) == ("failed", step)
    assert cause in log.extra["error"]
    told = workshop.site.mails()[len(mails) :]
    assert [(mail.recipient.email, mail.template) for mail in told] == [
        ("site_admin@example.org", "build_failed"),
        ("study_admin@example.org", "build_failed"),
    ]
    request = workshop.site.request(log.build_request_id or 0)
    assert (request.status, request.error_code) == ("failed", code)
    assert workshop.live(kind) == live
    assert workshop.leftovers() == []


def test_a_github_that_answers_503_for_a_while_does_not_fail_a_build(workshop: Workshop, github_faults: Faults) -> None:
    github_faults.on("/commits/", status(503), times=2).on("/archive/", status(503), times=2)
    assert workshop.build().success


def test_the_log_of_a_failed_build_holds_its_output_and_the_exception(workshop: Workshop) -> None:
    ember_fails(workshop, Faults())
    workshop.build()
    extra = workshop.site.logs()[0].extra
    assert "SyntaxError: frame.js: Unexpected token" in extra["build_output"].splitlines()
    assert extra["exception"]["type"] == "PlayerBuildFailed"
    assert "Traceback" in extra["exception"]["traceback"]
    assert json.dumps(extra)


def test_no_secret_reaches_the_log_the_mails_or_the_runs_page(workshop: Workshop) -> None:
    workshop.settings["player_s3_secret_access_key"] = "the-secret-of-the-bucket"
    workshop.build_by('echo "==> ember build"; echo "key $S3_SECRET_ACCESS_KEY"; exit 1')
    run = workshop.build()
    log = json.dumps(workshop.site.logs()[0].extra)
    assert "key [redacted]" in log
    seen = log + json.dumps([mail.context for mail in workshop.site.mails()]) + what_failed(run)
    assert "the-secret-of-the-bucket" not in seen


def test_an_untrusted_repository_is_not_built_without_a_container(workshop: Workshop) -> None:
    workshop.settings["trusted_repositories"] = []
    workshop.settings["player_s3_secret_access_key"] = "the-secret-of-the-bucket"
    workshop.build_by('touch "$OUTPUT_DIR"/../../../code-was-run')
    assert "not among the trusted" in what_failed(workshop.build())
    assert workshop.site.study().state == State.APPROVED
    assert not list(workshop.root.rglob("code-was-run"))


def test_the_bucket_of_another_environment_is_refused(workshop: Workshop) -> None:
    workshop.services.settings.local_bucket.mkdir(parents=True)
    workshop.services.bucket.real.claim_environment("development")  # ty: ignore[unresolved-attribute]
    workshop.settings.update(environment="staging", bucket_folder=workshop.services.settings.local_bucket)
    del workshop.services
    assert "development" in what_failed(workshop.build())
    (log,) = workshop.site.logs()
    assert workshop.site.request(log.build_request_id or 0).error_code == "wrong_environment"
    assert workshop.site.study().state == State.APPROVED
    assert workshop.live() == {}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"study": "Nothing like it", "requesting_user": "study_admin@example.org"}, "no study has"),
        ({"study": "Apples and oranges", "requesting_user": "nobody@example.org"}, "nobody has an account"),
        ({"study": "Apples and oranges", "requesting_user": "stranger@example.org"}, "lacks studies.change_study"),
        ({"study": "Apples and oranges"}, "give either request_id, or both"),
        ({"request_id": 4711}, "no build request 4711"),
        (
            {"study": "Apples and oranges", "requesting_user": "designer@example.org", "kind": "deployment"},
            "lacks studies.change_study_status",
        ),
    ],
)
def test_what_is_refused_before_the_claim_leaves_neither_log_nor_mail(
    workshop: Workshop, config: dict[str, object], said: str
) -> None:
    run = workshop.run(**config)
    assert said in what_failed(run)
    assert (workshop.site.logs(), workshop.site.mails()) == ([], [])
    assert workshop.site.study().state == State.APPROVED


def test_a_state_that_forbids_a_deployment_ends_the_request_with_neither_log_nor_mail(workshop: Workshop) -> None:
    request_id = workshop.request()
    workshop.site.set_state(State.SUBMITTED)
    assert "is submitted; a deployment may start from" in what_failed(workshop.run(request_id=request_id))
    request = workshop.site.request(request_id)
    assert (request.status, request.error_code) == ("failed", "state_forbids")
    assert (workshop.site.logs(), workshop.site.mails()) == ([], [])


@pytest.mark.parametrize("url", ["not a url", "https://evil.example/a/b", "file:///etc/passwd", "https://github.com/a"])
def test_a_malformed_repository_ends_the_request_with_neither_log_nor_mail(workshop: Workshop, url: str) -> None:
    workshop.site.set_metadata(player_repo_url=url)
    request_id = workshop.request()
    assert url in what_failed(workshop.run(request_id=request_id))
    request = workshop.site.request(request_id)
    assert (request.status, request.error_code) == ("failed", "player_invalid")
    assert (workshop.site.logs(), workshop.site.mails()) == ([], [])
    assert workshop.site.study().state == State.APPROVED


def test_a_launchpad_run_is_recorded_as_on_behalf_of_the_person(workshop: Workshop) -> None:
    run = workshop.run(study="Apples and oranges", requesting_user="study_admin@example.org", kind="preview")
    assert run.success
    assert workshop.site.logs()[0].extra["origin"] == "on behalf of study_admin@example.org through Dagster"


def test_cancelling_while_the_build_runs_stops_it_and_says_by_whom(workshop: Workshop) -> None:
    workshop.settings["lease"] = 1
    request_id = workshop.request()
    marker = workshop.root / "running"
    workshop.build_by(f"touch {marker}; sleep 60")

    def cancel_when_it_runs() -> None:
        until = time.monotonic() + 60
        while not marker.exists():
            assert time.monotonic() < until, "the build did not begin"
            time.sleep(0.05)
        workshop.ledger.cancel(request_id, workshop.site.study_admin)

    canceller = threading.Thread(target=cancel_when_it_runs)
    canceller.start()
    run = workshop.run(request_id=request_id)
    canceller.join()
    assert not run.success
    (log,) = workshop.site.logs()
    assert (log.extra["outcome"], log.extra["cancelled_by"]) == ("cancelled", "Study Admin")
    assert workshop.site.request(request_id).status == "cancelled"
    assert workshop.site.study().state == State.APPROVED
    assert workshop.leftovers() == []


def test_cancelling_while_the_build_waits_for_github_ends_it_within_seconds(
    workshop: Workshop, github_faults: Faults
) -> None:
    workshop.settings["lease"] = 1
    request_id = workshop.request()

    def cancel_and_ask_to_wait(answer: Answer) -> Answer | None:
        workshop.ledger.cancel(request_id, workshop.site.study_admin)
        return status(429, Retry_After="120")(answer)

    github_faults.on("/commits/", cancel_and_ask_to_wait, times=1)
    began = time.monotonic()
    workshop.run(request_id=request_id)
    assert time.monotonic() - began < 30, "it would have waited for two minutes"
    (log,) = workshop.site.logs()
    assert (log.extra["outcome"], log.extra["cancelled_by"]) == ("cancelled", "Study Admin")


def test_a_cancelled_run_says_so_and_is_no_bug(workshop: Workshop) -> None:
    request_id = workshop.request()
    workshop.faults.after("put", lambda _: workshop.ledger.cancel(request_id, workshop.site.study_admin))
    run = workshop.run(request_id=request_id)
    (failed,) = [event for event in run.all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data.metadata["cause"].value == "cancelled"
    assert workshop.site.request(request_id).status == "cancelled"


def test_a_wish_to_cancel_after_the_page_is_live_comes_too_late(workshop: Workshop) -> None:
    request_id = workshop.request()

    def cancel(key: str) -> None:
        if key.endswith("index.html"):
            workshop.ledger.cancel(request_id, workshop.site.study_admin)

    workshop.faults.after("write_page", cancel)
    run = workshop.run(request_id=request_id)
    assert run.success, what_failed(run)
    assert [event for event in run.all_events if event.is_step_materialization]
    assert workshop.site.study().state == State.ACTIVE


@pytest.mark.parametrize(
    ("asked_for", "outcome"), [(True, ("cancelled", "an operator, in Dagster")), (False, ("failed", None))]
)
def test_an_interruption_is_a_cancellation_only_if_somebody_asked_for_it(
    workshop: Workshop, asked_for: bool, outcome: tuple[str, str | None]
) -> None:
    """A shutdown of the machine interrupts as well, and is nobody's wish."""

    def interrupt(_key: str) -> None:
        if asked_for:
            (run,) = workshop.instance.get_runs()
            workshop.instance.report_run_canceling(run)
        raise dg.DagsterExecutionInterruptedError

    workshop.faults.before("put", interrupt)
    assert not workshop.build().success
    (log,) = workshop.site.logs()
    assert (log.extra["outcome"], log.extra.get("cancelled_by")) == outcome
    code = workshop.site.request(log.build_request_id or 0).error_code
    assert code == ("cancelled" if asked_for else "interrupted")
    assert workshop.site.study().state == State.APPROVED


def test_a_run_from_the_launchpad_that_cannot_begin_takes_no_waiting_request_away(workshop: Workshop) -> None:
    workshop.ledger.claim(workshop.request(PREVIEW), "another run", timedelta(minutes=5))
    waiting = workshop.request(PREVIEW)
    run = workshop.run(study="Apples and oranges", requesting_user="designer@example.org", kind="preview")
    assert "wait until that build has ended" in what_failed(run)
    assert workshop.site.request(waiting).status == "queued"
    assert workshop.site.mails() == []


def test_whose_waiting_request_is_replaced_by_somebody_else_is_told(workshop: Workshop) -> None:
    waiting = workshop.request(PREVIEW)
    assert workshop.run(study="Apples and oranges", requesting_user="designer@example.org", kind="preview").success
    assert workshop.site.request(waiting).error_code == "replaced"
    (mail,) = [mail for mail in workshop.site.mails() if mail.template == "build_replaced"]
    assert (mail.recipient.email, mail.context["replaced_by"]) == ("study_admin@example.org", "Designer")


def test_what_is_built_and_pinned_is_the_repository_at_the_claim(workshop: Workshop) -> None:
    """An edit between the check before the claim and the claim: the newer repository counts, for both."""
    request_id = workshop.request(PREVIEW)
    claim = workshop.services.ledger.claim

    def edited_meanwhile(_self: Any, *args: Any, **more: Any) -> Any:
        workshop.site.set_metadata(player_repo_url=f"{workshop.server.url}/lookit/another")
        return claim(*args, **more)

    with unittest.mock.patch.object(type(workshop.services.ledger), "claim", edited_meanwhile):
        run = workshop.run(request_id=request_id)
    assert "lookit/another" in what_failed(run)
    assert "last_known_player_sha" not in workshop.site.study().study_metadata


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_without_containers_all_but_development_is_refused_before_the_claim(
    workshop: Workshop, environment: str
) -> None:
    workshop.settings.update({**PRODUCTION, "environment": environment})

    class ByTheSettings(WorkshopServices):
        builder = Services.builder

    services = ByTheSettings(workshop.services.settings, workshop.engine, workshop.script, workshop.tools)
    request_id = workshop.request()
    run = workshop.run(services=services, request_id=request_id)
    assert f"works in development only, not in {environment}" in what_failed(run)
    assert workshop.site.request(request_id).status == "queued"
    assert (workshop.site.logs(), workshop.site.mails()) == ([], [])


def test_no_secret_of_an_unexpected_error_reaches_any_event_of_the_run(workshop: Workshop) -> None:
    workshop.settings["player_s3_secret_access_key"] = "the-secret-of-the-bucket"

    def deny(_key: str) -> None:
        raise RuntimeError("denied for key the-secret-of-the-bucket")

    workshop.faults.before("put", deny)
    run = workshop.build()
    assert "denied for key [redacted]" in what_failed(run)
    assert "the-secret-of-the-bucket" not in "".join(map(repr, run.all_events))
    assert "Traceback" in workshop.site.logs()[0].extra["exception"]["traceback"]


def test_an_error_after_the_page_was_written_does_not_undo_the_deployment(workshop: Workshop) -> None:
    assert workshop.build().success
    workshop.site.set_state(State.PAUSED)
    workshop.build_by(GOOD_BUILD.replace("User-agent: *", "User-agent: nobody"))
    workshop.faults.refuse("copy")
    assert not workshop.build().success
    assert workshop.site.study().state == State.DEPLOYING, "the page is live: neither finished nor undone yet"

    workshop.faults.allow("copy")
    workshop.site.end_leases()
    workshop.end_dead_work()

    assert workshop.site.study().state == State.ACTIVE
    uuid = str(workshop.site.study().uuid)
    event = workshop.instance.get_latest_materialization_event(dg.AssetKey("experiment_deployment"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.partition == uuid
    assert event.asset_materialization.metadata["files"].value == 3
    assert [log.extra["outcome"] for log in workshop.site.logs()] == ["succeeded", "succeeded"]
    assert (workshop.folder() / "robots.txt").read_text() == "User-agent: nobody\n"


def test_the_session_resource_closes_a_claim_that_a_torn_down_run_left_open(workshop: Workshop) -> None:
    request_id = workshop.request()
    with dg.build_init_resource_context(resources={"services": workshop.services}) as context:
        generator = build_run_resource.resource_fn(context)
        session = next(generator)
        session.claim(request_id)
        assert workshop.site.study().state == State.DEPLOYING
        with pytest.raises(StopIteration):
            next(generator)
    assert workshop.site.study().state == State.APPROVED
    assert workshop.site.request(request_id).error_code == "interrupted"
    assert len(workshop.site.logs()) == 1


# -- sources that are not complete -------------------------------------------------------------------------------------


def push(workshop: Workshop, files: Mapping[str, bytes]) -> None:
    """Make a commit with these files, besides those of a player, the head of the default branch."""
    commit = Commit({**player("3.0").tree, **files}, message="incomplete")
    workshop.server._repositories[REPOSITORY] = (commit,)


SUBMODULE = b'[submodule "stimuli"]\n\tpath = stimuli\n\turl = https://github.com/lab/stimuli\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 81234\n"


def test_what_the_source_lacks_is_told_in_log_run_and_mail_and_the_build_goes_on(workshop: Workshop) -> None:
    push(workshop, {".gitmodules": SUBMODULE, "docs/film.mp4": POINTER})
    run = workshop.build(DEPLOYMENT)
    assert run.success
    (log,) = workshop.site.logs()
    lfs, submodule = log.extra["warnings"]
    assert "Git LFS pointers in place of docs/film.mp4" in lfs
    assert "nothing in stimuli, since GitHub's archives leave submodules out" in submodule
    assert lfs in log.extra["log"]
    assert "docs/film" in str(metadata_of(run, "checkout")["warnings"])
    deliver_mails(workshop.services)
    (mail, *_) = sorted(workshop.services.settings.mails.glob("*.eml"))
    text = message_from_bytes(mail.read_bytes(), policy=default)
    assert isinstance(text, EmailMessage)
    for kind in ("plain", "html"):
        body = text.get_body((kind,))
        assert body is not None
        assert "Git LFS pointers in place of docs/film.mp4" in " ".join(body.get_content().split())


def test_a_build_that_fails_names_the_submodule_in_its_message(workshop: Workshop) -> None:
    push(workshop, {".gitmodules": SUBMODULE})
    workshop.build_by("echo \"Cannot find module './stimuli/list'\"\nexit 1")
    assert not workshop.build(DEPLOYMENT).success
    request = workshop.site.request(1)
    assert request.error_code == "player_build_failed"
    assert "Cannot find module" in str(request.error)
    assert "nothing in stimuli" in str(request.error)


def test_a_pointer_that_reaches_the_bundle_fails_the_build(workshop: Workshop) -> None:
    push(workshop, {"public/star.png": POINTER})
    workshop.build_by(f'{GOOD_BUILD}\ncp "$CHECKOUT_DIR/public/star.png" "$OUTPUT_DIR/"')
    assert not workshop.build(DEPLOYMENT).success
    request = workshop.site.request(1)
    assert request.error_code == "player_build_failed"
    assert "pointers in place of star.png" in str(request.error)
    assert workshop.live() == {}


def test_a_script_that_browsers_would_refuse_fails_the_build(workshop: Workshop) -> None:
    workshop.build_by(f'{GOOD_BUILD}\nsed -i "s/src=/integrity=sha256-AAAA src=/" "$OUTPUT_DIR/index.html"')
    assert not workshop.build(DEPLOYMENT).success
    assert "Browsers would refuse it" in str(workshop.site.request(1).error)


def test_the_warnings_of_an_earlier_attempt_are_not_those_of_the_next(workshop: Workshop) -> None:
    workshop.settings |= {"attempts": 2, "retry_after": 1}
    push(workshop, {".gitmodules": SUBMODULE})
    request_id = workshop.request()
    workshop.faults.refuse("put")
    assert not workshop.run(request_id=request_id).success
    assert workshop.site.request(request_id).warnings
    workshop.faults.allow("put")
    push(workshop, {})
    assert workshop.run(request_id=request_id).success
    assert workshop.site.request(request_id).warnings == []
    assert "warnings" not in workshop.site.logs()[-1].extra
