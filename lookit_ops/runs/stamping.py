"""Makes the bundle of a build: reused or stamped from a template where that is safe, else by a full build."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from domain.requests.build_reports import made_from
from ember_build.builder import BUILD_SCRIPT, ENVIRONMENT_FILE, BuildOrder
from ember_build.bundle import Bundle, check_bundle
from ember_build.errors import BuildPlatformError, NotStampable, PlayerBuildFailed
from ember_build.templates.folder import stamp_folder
from lookit_ops.deployments.templates import Record, Templates, TemplateState, template_key
from lookit_ops.runs.build import BuildRun
from lookit_ops.storage.errors import StorageError

logger = logging.getLogger(__name__)

OFF = "LOOKIT_STAMP_BUILDS is off"
FORCED = "the run was asked for a full build"
AUDIT = "a proved template was there, and this build was chosen to check it (LOOKIT_STAMP_AUDIT_SHARE)"
NO_TEMPLATE = "there is no template of this commit yet"


@dataclass(frozen=True, slots=True)
class Made:
    """A checked bundle, and which way it was made (`full`, `reused`, `stamped`)."""

    bundle: Bundle
    way: str
    why: str
    key: str = ""
    """Of the template that it was made from, or that it has made or proved."""
    learned: str = ""
    """What a full build has done to the template, in words."""


def make_bundle(
    build_run: BuildRun, order: BuildOrder, facts: Mapping[str, str], full_build: Callable[[], Bundle], *, full: bool
) -> Made:
    """Return the bundle that was ordered. A template that cannot be used costs no build its success.

    `facts` (repository, sha) name the commit; `full_build` builds it into `order.output`; `full` asks for that.
    Raises what `full_build` raises, and BuildCancelled.
    """
    if not build_run.services.settings.stamp_builds:
        return Made(full_build(), "full", OFF)
    key = key_of(order, facts, is_isolated=build_run.services.builder.is_isolated)
    templates = Templates(build_run.bucket)
    scratch = order.output.with_name(f"{order.output.name}.template")
    try:
        made = FORCED if full else _from_template(build_run, templates, key, order, scratch)
        if isinstance(made, Made):
            return made
        bundle = full_build()
        shutil.rmtree(scratch, ignore_errors=True)
        return Made(bundle, "full", made, key, _learn(build_run, templates, key, bundle, scratch, facts))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def key_of(order: BuildOrder, facts: Mapping[str, str], *, is_isolated: bool) -> str:
    """Return the key of what is ordered: all that goes into the build but the study.

    Builds share a template only if they have the same trust and saw the same values.
    """
    values = json.dumps(dict(order.environment), sort_keys=True)
    return template_key(
        {
            "repository": facts["repository"].lower(),
            "sha": facts["sha"],
            "image": order.image,
            "values": hashlib.sha256(values.encode()).hexdigest(),
            "script": _digest(BUILD_SCRIPT),
            "environment file": _digest(ENVIRONMENT_FILE),
            "trusted": order.trusted,
            "isolated": is_isolated,
        }
    )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _from_template(build_run: BuildRun, templates: Templates, key: str, order: BuildOrder, scratch: Path) -> Made | str:
    """Return the bundle of this study that a full build has left, or a stamped one; or why it takes a full build."""
    try:
        record = templates.find(key)
        if record is None:
            return NO_TEMPLATE
        template = record.template
        if template.prefix == order.prefix:
            templates.fetch(template, order.output)
            bundle = check_bundle(order.output, order.prefix, cancelled=build_run.stop)
            _note_use(templates, record)
            return Made(bundle, "reused", "a full build of this commit for this study was there", key)
        if template.state is not TemplateState.PROVED:
            return f"the template of this commit is {template.state}{': ' if template.reason else ''}{template.reason}"
        if secrets.SystemRandom().random() < build_run.services.settings.stamp_audit_share:
            return AUDIT
        templates.fetch(template, scratch)
        bundle = stamp_folder(scratch, template.prefix, order.output, order.prefix, build_run.stop)
        _note_use(templates, record)
        return Made(bundle, "stamped", "a proved template of this commit was there", key)
    except (NotStampable, StorageError, PlayerBuildFailed, BuildPlatformError, OSError) as error:
        shutil.rmtree(order.output, ignore_errors=True)
        logger.warning("the template of this commit could not be used, so it is built in full: %s", error)
        return f"the template of this commit could not be used: {error}"


def _note_use(templates: Templates, record: Record) -> None:
    try:
        templates.note_use(record, datetime.now(UTC))
    except StorageError as error:  # another build may just have noted it
        logger.info("the use of a template was not noted: %s", error)


def _learn(
    build_run: BuildRun, templates: Templates, key: str, bundle: Bundle, scratch: Path, facts: Mapping[str, str]
) -> str:
    """Keep or prove the template. The build has ended well: that this fails is no failure of it."""
    try:
        learned = templates.learn(key, bundle, scratch, facts, build_run.stop)
    except (StorageError, PlayerBuildFailed, BuildPlatformError, OSError) as error:
        logger.warning("no template was kept or proved: %s", error)
        return f"no template was kept or proved: {error}"
    if not learned.withdrawn:
        return learned.told
    with build_run.services.sessions.begin() as session:
        affected = ", ".join(made_from(session, key)) or "no study"
    told = f"{learned.told}. Stamped from it before: {affected}; build those again"
    logger.error("a proved template was withdrawn: %s", told)
    return told
