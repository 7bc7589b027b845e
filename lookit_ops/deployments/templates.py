"""Templates in the bucket: bundles of full builds, and whether stamping them is proved to give what a build gives.

A template is kept under the key of all that goes into its build but the study. `templates/{key}/template.json` tells
its state; the files are beside it, each under the SHA-256 of its contents, which is verified at each use. The state
changes on the condition that it is still the one that was read, so that any number of machines may prove a template.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from itertools import groupby
from pathlib import Path

from ember_build.bundle import Bundle
from ember_build.errors import NotStampable
from ember_build.templates.folder import compare_with_build
from lookit_ops.deployments.manifest import PARALLEL, REVALIDATED
from lookit_ops.storage.errors import GenerationMismatch, StorageError
from lookit_ops.storage.experiments import ExperimentBucket, StoredFile, StoredPage, check_key
from lookit_ops.storage.parallel import in_parallel

TEMPLATES = "templates"
RECORD = "template.json"
KEPT_UNUSED = timedelta(days=30)
"""How long a template stays after its last use."""
NOTED_EVERY = timedelta(days=1)
"""A use is noted once in this time: a write for each would be one more request for each build."""
FORMAT = 1
"""Raised when stamping changes: what was proved by an earlier one counts no more."""


class TemplateState(StrEnum):
    """Whether a template may serve."""

    UNPROVED = "unproved"
    PROVED = "proved"
    REFUSED = "refused"
    """It cannot be stamped, or a full build has made something else. It stays so."""


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """One file of a template."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Template:
    """What the bucket tells of a template; `prefix` is that of the study that it was built for."""

    key: str
    state: TemplateState
    prefix: str
    files: tuple[TemplateFile, ...]
    reason: str = ""
    """Why it was refused."""
    facts: Mapping[str, str] | None = None
    """Repository and commit, for a person who reads the record."""


@dataclass(frozen=True, slots=True)
class Record:
    """A template as it was found; it changes on the condition of this generation. `written_at` is in UTC."""

    template: Template
    generation: int
    written_at: datetime


@dataclass(frozen=True, slots=True)
class Learned:
    """What a full build has done to a template, in words; `withdrawn` if it had served until then."""

    told: str
    withdrawn: bool = False


def template_key(inputs: Mapping[str, object]) -> str:
    """Return the key of a template: a digest of all that goes into its build but the study."""
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Templates:
    """The templates in one bucket. Every method raises StorageError if the bucket cannot be asked."""

    bucket: ExperimentBucket

    def find(self, key: str) -> Record | None:
        """Return the record of the template, or None."""
        page = self.bucket.page(_record_key(key))
        return None if page is None else Record(self._template(key, page), page.generation, page.updated_at)

    def note_use(self, record: Record, now: datetime) -> None:
        """Write the record that was found anew once a day, so that the pruning finds the template in use."""
        if now - record.written_at > NOTED_EVERY:
            self._write(record.template, record.generation)

    def fetch(self, template: Template, folder: Path) -> None:
        """Write the template's files below a folder. Raises StorageError if one is not what the record says."""
        folder.mkdir(parents=True)
        acts = [partial(self._fetch, template.key, file, folder / file.path) for file in template.files]
        for _ in in_parallel(acts, PARALLEL):
            pass

    def learn(
        self,
        key: str,
        bundle: Bundle,
        scratch: Path,
        facts: Mapping[str, str],
        cancelled: threading.Event | None = None,
    ) -> Learned:
        """Take what a full build has made as a template, or as the proof of one.

        `scratch` is a folder that does not exist yet; the caller removes it. Raises BuildCancelled, too.
        """
        found = self.find(key)
        if found is None:
            return Learned(self._keep(key, bundle, facts))
        known, generation = found.template, found.generation
        if known.state is TemplateState.REFUSED:
            return Learned(f"no template: {known.reason}")
        self.fetch(known, scratch)
        try:
            compare_with_build(scratch, known.prefix, bundle.root, bundle.prefix, cancelled)
        except NotStampable as difference:
            self._write(replace(known, state=TemplateState.REFUSED, reason=str(difference)), generation)
            withdrawn = known.state is TemplateState.PROVED
            return Learned(f"the template is refused: {difference}", withdrawn=withdrawn)
        if known.state is TemplateState.PROVED:
            return Learned("the template still gives what a full build gives")
        if known.prefix == bundle.prefix:
            return Learned("the template is still unproved: it was built for this study, too")
        self._write(replace(known, state=TemplateState.PROVED), generation)
        return Learned("the template is proved: stamped for this study, it equals this build byte for byte")

    def _keep(self, key: str, bundle: Bundle, facts: Mapping[str, str]) -> str:
        files = tuple(TemplateFile(str(file.path), file.size_bytes, file.sha256) for file in bundle.files)
        template = Template(key, TemplateState.UNPROVED, bundle.prefix, files, facts=dict(facts))
        by_contents = {file.sha256: file for file in files}
        acts = [partial(self._put, key, bundle.root, file) for file in by_contents.values()]
        for _ in in_parallel(acts, PARALLEL):
            pass
        self._write(template, 0)
        return "kept as a template; the next full build for another study proves it"

    def _fetch(self, key: str, file: TemplateFile, target: Path) -> None:
        name = _object_key(key, file.sha256)
        content = self.bucket.read(name)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise StorageError(f"{name} in {self.bucket.name} has other contents than its name says")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def _put(self, key: str, root: Path, file: TemplateFile) -> None:
        name = _object_key(key, file.sha256)
        self.bucket.put(name, root / file.path, content_type="application/octet-stream", cache_control=REVALIDATED)

    def _template(self, key: str, page: StoredPage) -> Template:
        try:
            told = json.loads(page.content)
            files = tuple(TemplateFile(**file) for file in told["files"])
            template = Template(
                key=told["key"],
                state=TemplateState(told["state"]),
                prefix=told["prefix"],
                files=files,
                reason=told["reason"],
                facts=told["facts"],
            )
            if template.key != key:
                raise ValueError("it is another template's")
            for file in files:
                check_key(file.path)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(
                f"{_record_key(key)} in {self.bucket.name} is no record of a template: {error}"
            ) from error
        return template

    def _write(self, template: Template, generation: int) -> None:
        try:
            self.bucket.write_page(
                _record_key(template.key),
                json.dumps(asdict(template), indent=1, sort_keys=True).encode(),
                content_type="application/json",
                cache_control=REVALIDATED,
                metadata={},
                if_generation=generation,
            )
        except GenerationMismatch as error:
            raise StorageError(f"another worker has just changed the template: {error}") from error


def prune_templates(
    bucket: ExperimentBucket, *, now: datetime, dry_run: bool
) -> tuple[list[StoredFile], dict[str, str]]:
    """Remove the templates that no build has used for `KEPT_UNUSED`, and files that belong to none.

    Returns what was removed, or would be, and what could not be, with the reason. The record goes first: a build that
    still reads the files falls back to a full build.
    """
    removed: list[StoredFile] = []
    failed: dict[str, str] = {}
    try:
        for _, members in groupby(bucket.files(f"{TEMPLATES}/"), key=lambda file: file.key.split("/")[1]):
            files = sorted(members, key=lambda file: not file.key.endswith(f"/{RECORD}"))
            records = [file for file in files if file.key.endswith(f"/{RECORD}")]
            if max(file.updated_at for file in records or files) > now - KEPT_UNUSED:
                continue
            for file in files:
                if not dry_run:
                    bucket.delete(file.key)
                removed.append(file)
    except StorageError as error:
        failed[TEMPLATES] = str(error)
    return removed, failed


def _record_key(key: str) -> str:
    return f"{TEMPLATES}/{key}/{RECORD}"


def _object_key(key: str, sha256: str) -> str:
    return f"{TEMPLATES}/{key}/{sha256}"
