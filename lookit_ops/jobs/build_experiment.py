"""The job `build_experiment`: a request becomes a built study in the bucket.

claim -> checkout -> image -> build -> upload -> finish, one way. Each step takes what the one before returned.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of contexts and configs as they are.

import logging
from dataclasses import dataclass, replace
from typing import Literal

import dagster as dg
from pydantic import Field

from domain.errors import DomainError, InvalidRequest, QueueIsFull, StudyIsLocked
from domain.escaping import markdown_block, markdown_list
from domain.lookup import find_study, find_user
from domain.models import BuildKind
from domain.requests.build_claim import BuildClaim, player_of
from ember_build.builder import BuildOrder, Image
from ember_build.bundle import Bundle
from ember_build.errors import BuildError, InvalidPlayer, PlayerBuildFailed
from ember_build.source.checkouts import Checkout
from ember_build.source.completeness import left_out
from ember_build.source.github import CannotCompare
from ember_build.source.repository import Repository, ResolvedCommit
from lookit_ops.deployments.manifest import folder_of, live_deployment
from lookit_ops.deployments.publish import Deployment, publish
from lookit_ops.failures import as_dagster_failure
from lookit_ops.maintenance.public_list import refresh_public_list
from lookit_ops.run_tags import KIND_TAG, tags_of
from lookit_ops.runs.build import BuildRun
from lookit_ops.runs.report import built, studies
from lookit_ops.runs.stamping import Made, make_bundle
from lookit_ops.services import Services
from lookit_ops.storage.errors import StorageError

logger = logging.getLogger(__name__)

UNCERTAIN = (
    "GitHub could not tell whether the repository's default branch contains this commit, so it was built as one that is"
    " not trusted: without the player's secrets (S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY) and shared dependencies."
)
"""What the log, the run and the mail say of such a build."""


class BuildExperiment(dg.Config):
    """What to build: a waiting request by its id, or a study and the person who asks."""

    study: str = Field("", description="UUID or name of the study; leave empty when you give request_id.")
    requesting_user: str = Field(
        "", description="E-mail address of the person for whom you ask; their permissions count. Empty with request_id."
    )
    kind: Literal["preview", "deployment"] = Field(
        "preview", description="A preview for researchers, or a deployment, which makes the study active."
    )
    request_id: int | None = Field(None, description="Id of a waiting build request (`lookit-ops build list`).")
    full: bool = Field(False, description="Build in full, even if a proved template of the commit could be stamped.")


@dataclass(frozen=True, slots=True)
class ClaimedBuild:
    """A claimed request, its repository, and the generation of the page that was live at the claim (0: none).

    `full` asks for a full build.
    """

    claim: BuildClaim
    repository: Repository
    page_generation: int
    full: bool = False

    @property
    def folder(self) -> str:
        """The folder of the bucket that this build goes into."""
        return folder_of(self.claim.kind, self.claim.study_uuid)

    @property
    def labels(self) -> dict[str, str]:
        """What tells whose this is where something of the build can be seen."""
        claim = self.claim
        return {"study": str(claim.study_uuid), "request": str(claim.request_id), "claim": str(claim.fencing_token)}

    @property
    def prefix(self) -> str:
        """The path under which the study is served."""
        return f"/studies/{self.claim.study_uuid}/"


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """The player's source, and which commit it is and why."""

    commit: ResolvedCommit
    checkout: Checkout
    warnings: tuple[str, ...] = ()
    """What is missing in the source, which may do no harm."""

    @property
    def facts(self) -> dict[str, str]:
        """What deployments and templates keep of the commit."""
        return {"repository": self.commit.repository.full_name, "sha": self.commit.sha}


@dg.op(
    description="Take the request: lock the study, remember its state, start the lease.",
)
def claim(
    context: dg.OpExecutionContext,
    config: BuildExperiment,
    services: dg.ResourceParam[Services],
    build_run: dg.ResourceParam[BuildRun],
) -> ClaimedBuild:
    try:
        _ = services.builder  # refuses to build without containers but in development, before anything is claimed
        claimed = _take(services, build_run, config)  # by the database alone: bucket and engine may be away
    except (DomainError, BuildError, StorageError) as error:
        if isinstance(error, (StudyIsLocked, QueueIsFull)) and config.request_id is not None:
            services.build_queue.release(config.request_id, build_run.submission)
        raise as_dagster_failure(build_run.failure("claim", error)) from None
    with build_run.step(context):
        context.instance.add_run_tags(context.run_id, tags_of(claimed))
        # The study is locked: this is what will be built.
        repository = services.trust.repository(claimed.player_repo_url)
        live = live_deployment(build_run.bucket, folder_of(claimed.kind, claimed.study_uuid))
        context.add_output_metadata(
            {
                "study": f"{claimed.study_name} ({claimed.study_uuid})",
                "request": claimed.request_id,
                "kind": claimed.kind.value,
                "asked for by": claimed.requested_by,
                "state before": claimed.state_before,
                "repository": repository.full_name,
            }
        )
        return ClaimedBuild(claimed, repository, live.generation if live else 0, config.full)


@dg.op(
    description="Resolve the commit at GitHub, and fetch and unpack its archive.",
)
def checkout(
    context: dg.OpExecutionContext,
    claimed: ClaimedBuild,
    services: dg.ResourceParam[Services],
    build_run: dg.ResourceParam[BuildRun],
) -> CheckedOut:
    with build_run.step(context):
        services.require_room()
        github = replace(services.github, cancelled=build_run.stop)
        commit = github.resolve(claimed.repository, claimed.claim.player_sha)
        (logger.warning if commit.substituted else logger.info)("%s", commit.reason)
        services.ledger.note_commit(
            claimed.claim, repository=commit.repository.full_name, sha=commit.sha, reason=commit.reason
        )
        source = services.checkouts.cancelled_by(build_run.stop).fetch(commit)
        warnings = left_out(source.path, build_run.stop)
        if warnings:
            _warn(services, claimed.claim, commit, warnings)
        context.add_output_metadata(
            {
                "repository": commit.repository.full_name,
                "sha": commit.sha,
                "why this sha": commit.reason,
                "files": source.file_count,
                "bytes": source.size_bytes,
                "was there already": source.reused,
                **({"warnings": dg.MetadataValue.md(markdown_list(warnings))} if warnings else {}),
            }
        )
        return CheckedOut(commit, source, warnings)


@dg.op(
    description="Make ready what the build runs in: an image, or tools, with Node and ember-cli of the player's time.",
)
def image(
    context: dg.OpExecutionContext,
    claimed: ClaimedBuild,
    source: CheckedOut,
    services: dg.ResourceParam[Services],
    build_run: dg.ResourceParam[BuildRun],
) -> Image:
    with build_run.step(context):
        output = build_run.show_output(build_run.image_output)
        ready = services.builder.prepare(output, source.checkout.path, claimed.labels, build_run.stop)
        context.add_output_metadata({"name": ready.name, "what": ready.description, "seconds": round(ready.seconds, 1)})
        return ready


@dg.op(
    description="Stamp a proved template of the commit, or run build.sh on the checkout; check the bundle.",
)
def build(
    context: dg.OpExecutionContext,
    claimed: ClaimedBuild,
    source: CheckedOut,
    ready: Image,
    services: dg.ResourceParam[Services],
    build_run: dg.ResourceParam[BuildRun],
) -> Made:
    with build_run.step(context):
        trusted = _is_trusted(services, claimed.claim, source)
        if not (trusted or services.builder.is_isolated):
            raise InvalidPlayer(_why_untrusted(services, source.commit))
        order = BuildOrder(
            checkout=source.checkout.path,
            prefix=claimed.prefix,
            environment=services.settings.player_environment(trusted=trusted),
            output=build_run.output_folder,
            trusted=trusted,
            labels={**claimed.labels, "repository": source.commit.repository.full_name},
            image=ready.name,
        )

        def full_build() -> Bundle:
            try:
                return services.builder.build(order, build_run.show_output(build_run.build_output), build_run.stop)
            except PlayerBuildFailed as error:
                raise PlayerBuildFailed("\n".join([str(error), *source.warnings])) from error

        made = make_bundle(build_run, order, source.facts, full_build, full=claimed.full)
        bundle = made.bundle
        logger.info("%s build: %s", made.way, made.why)
        build_run.check()
        context.add_output_metadata(
            {
                "way": made.way,
                "why this way": made.why,
                **({"template": made.learned} if made.learned else {}),
                "files": len(bundle.files),
                "bytes": bundle.size_bytes,
                "end of the output": dg.MetadataValue.md(markdown_block(build_run.build_output.tail(30))),
            }
        )
        return made


@dg.op(
    description="Put the bundle into the bucket: everything else first, index.html last and at once.",
)
def upload(
    context: dg.OpExecutionContext,
    claimed: ClaimedBuild,
    source: CheckedOut,
    made: Made,
    services: dg.ResourceParam[Services],
    build_run: dg.ResourceParam[BuildRun],
) -> Deployment:
    with build_run.step(context):
        deployed = publish(
            build_run.bucket,
            made.bundle,
            folder=claimed.folder,
            request_id=str(claimed.claim.request_id),
            fencing_token=claimed.claim.fencing_token,
            seen_generation=claimed.page_generation,
            facts=source.facts,
            before_commit=build_run.before_commit,
            after_commit=build_run.bucket.ask_to_the_end,
            after_file=lambda _file: build_run.check() if build_run.stop.is_set() else None,
        )
        context.add_output_metadata(
            {
                "bucket": services.bucket.name,
                "folder": claimed.folder,
                "files": deployed.file_count,
                "bytes": deployed.size_bytes,
                "files uploaded": deployed.uploaded_count,
                "bytes uploaded": deployed.uploaded_bytes,
                "generation of index.html": deployed.generation,
            }
        )
        return deployed


@dg.op(
    description="State, study log and mails in one transaction; then the asset.",
)
def finish(
    context: dg.OpExecutionContext,
    claimed: ClaimedBuild,
    made: Made,
    deployed: Deployment,
    services: dg.ResourceParam[Services],
    build_run: dg.ResourceParam[BuildRun],
) -> None:
    with build_run.step(context):
        facts = {
            "bucket": services.bucket.name,
            "folder": claimed.folder,
            "files": deployed.file_count,
            "bytes": deployed.size_bytes,
            "way": made.way,
            **({"template": made.key} if made.key else {}),
        }
        build_run.finish(facts)
        materialization = built(services, claimed.claim.request_id)
        context.instance.add_dynamic_partitions(studies.name or "", [materialization.partition or ""])
        context.log_event(materialization)
        if claimed.claim.kind is BuildKind.DEPLOYMENT:
            _refresh_public_list(context, services)


@dg.job(
    description="Build a study's app and put it into the bucket, as a preview or for real.",
    executor_def=dg.in_process_executor,  # a process per op costs 5 to 7 s, and the steps share a folder
    tags={"dagster/max_runtime": 3600, KIND_TAG: "build"},
)
def build_experiment() -> None:
    """The way of a build."""
    claimed = claim()
    source = checkout(claimed)
    made = build(claimed, source, image(claimed, source))
    finish(claimed, made, upload(claimed, source, made))


def _refresh_public_list(context: dg.OpExecutionContext, services: Services) -> None:
    """The build has ended well: that the list cannot be written is no failure of it, and a sensor tries again."""
    try:
        refresh_public_list(services)
    except StorageError as error:
        context.log.warning(f"the public list could not be brought up to date, the sensor will: {error}")


def _launch(services: Services, build_run: BuildRun, config: BuildExperiment) -> BuildClaim:
    """Ask for what this run was configured to be. Raises InvalidRequest, PermissionDenied, StudyIsLocked, ..."""
    if not config.study.strip() or not config.requesting_user.strip():
        raise InvalidRequest(
            "give either request_id, or both study and requesting_user; study was"
            f" {config.study!r} and requesting_user {config.requesting_user!r}"
        )
    with services.sessions.begin() as session:
        study, user = find_study(session, config.study), find_user(session, config.requesting_user)
    services.trust.repository(player_of(study, BuildKind(config.kind)).repository_url)
    origin = f"on behalf of {user.email} through Dagster"
    return build_run.launch(study.id, user.id, BuildKind(config.kind), origin)


def _take(services: Services, build_run: BuildRun, config: BuildExperiment) -> BuildClaim:
    """BuildClaim what this run was configured to build. Raises what the ledger raises, InvalidPlayer, ..."""
    return _launch(services, build_run, config) if config.request_id is None else _claim(build_run, config.request_id)


def _claim(build_run: BuildRun, request_id: int) -> BuildClaim:
    """BuildClaim a request that waits; a malformed URL of its player ends it before. Raises InvalidPlayer, ..."""
    services = build_run.services
    try:
        services.trust.repository(services.ledger.player_repo_url(request_id))
    except InvalidPlayer as error:
        failure = build_run.failure("claim", error)
        services.ledger.refuse(request_id, failure.code, failure.message)
        raise
    return build_run.claim(request_id)


def _warn(services: Services, claim: BuildClaim, commit: ResolvedCommit, warnings: tuple[str, ...]) -> None:
    """Tell what people should know of a build, however it ends, in the log, the run and the mail. Raises LeaseLost."""
    for warning in warnings:
        logger.warning("%s", warning)
    services.ledger.note_commit(
        claim, repository=commit.repository.full_name, sha=commit.sha, reason=commit.reason, warnings=warnings
    )


def _is_trusted(services: Services, claim: BuildClaim, source: CheckedOut) -> bool:
    """Whether the build gets secrets and shares dependencies.

    A GitHub that cannot compare commits, whatever the reason, is asked again by later attempts. The last one builds
    without: nothing of the player depends on it but the two secrets, and the log, the run and the mail say so.
    """
    try:
        return services.trust.trusts_commit(source.commit)
    except CannotCompare as error:
        if not services.builder.is_isolated or services.ledger.has_another_attempt(claim):
            raise
        logger.warning("%s", error)
        _warn(services, claim, source.commit, (*source.warnings, UNCERTAIN))
        return False


def _why_untrusted(services: Services, commit: ResolvedCommit) -> str:
    """What is wrong, and what can be done: the repository is a stranger's, or only the commit is."""
    name = commit.repository.full_name
    if not services.trust.trusts(commit.repository):
        return (
            f"{name} is not among the trusted repositories, so its code is not run without a container; an operator can"
            " add it to LOOKIT_TRUSTED_REPOSITORIES"
        )
    return (
        f"{name} is trusted, but its default branch does not contain commit {commit.sha}, which may come from"
        " anybody's fork, so its code is not run without a container; have the commit merged into the default branch,"
        " or name one that is"
    )
