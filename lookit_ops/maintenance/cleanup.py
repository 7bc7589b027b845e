"""The nightly cleanups of this machine, the Docker engine and the archives. What somebody uses is never touched.

| cleanup       | removes, if older than a day |
| ---           | --- |
| builds        | bundles in `ember_build/deployments` of the home, and what dead builds have left on the engine |
| docker-images | images of earlier builds, ours by their labels, but for the newest ones |
| checkouts     | the players' sources in `ember_build/checkouts` of the home |
| dependencies  | shared dependencies and downloads, in Docker and in the home; older than two weeks |
| archives      | archives of videos in their bucket; older than the settings say, and not asked for lately |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from domain.errors import InvalidRequest
from domain.videos.archive_names import study_of
from ember_build.removal import Removal, remove_old
from lookit_ops.runs.archive_parts import remove_orphaned_parts
from lookit_ops.runs.in_use import is_running, output_folders, remove_dead_builds, wanted_commits
from lookit_ops.services import Services
from lookit_ops.storage.archives import PARTS
from lookit_ops.storage.errors import StorageError

DAY = timedelta(days=1)
SHORTEST, LONGEST = timedelta(hours=1), timedelta(days=3650)
"""A run takes an hour at most, so what is older and unclaimed belongs to none."""


def clean_builds(services: Services, older_than: datetime, *, dry_run: bool) -> Removal:
    """Remove what killed builds have left behind: bundles here, and containers and volumes on the engine."""
    removal = Removal()
    if not dry_run:
        remove_dead_builds(services)
    folder = services.settings.home_folder / "ember_build" / "deployments"
    if not folder.is_dir():
        return removal

    def in_use(path: Path) -> bool:
        # While it is checked, a bundle has a hidden name that holds the folder's.
        return any(name in path.name for name in output_folders(services))

    remove_old(sorted(folder.iterdir()), older_than.timestamp(), removal, in_use=in_use, dry_run=dry_run)
    return removal


def clean_checkouts(services: Services, older_than: datetime, *, dry_run: bool) -> Removal:
    """Remove sources that no build has wanted since; a later one fetches them again."""
    return services.checkouts.clean(
        older_than.timestamp(), lambda sha: sha in wanted_commits(services), dry_run=dry_run
    )


def clean_docker_images(services: Services, older_than: datetime, *, dry_run: bool) -> Removal:
    """Remove images of earlier builds. Raises BuildPlatformError without an engine."""
    if services.settings.builder != "docker":
        return Removal()
    return services.docker_builder.clean_images(
        older_than, lambda labels: is_running(services, labels), dry_run=dry_run
    )


def clean_dependencies(services: Services, older_than: datetime, *, dry_run: bool) -> Removal:
    """Remove what builds share. Raises BuildPlatformError without an engine."""
    removal = Removal()
    home = services.settings.home_folder / "ember_build"
    stores = home / "dependencies"
    if stores.is_dir():
        # A local build touches the store that it takes, and takes it for less than an hour.
        remove_old(sorted(stores.iterdir()), older_than.timestamp(), removal, in_use=lambda _: False, dry_run=dry_run)
    if services.settings.builder == "docker":
        on_engine = services.docker_builder.clean_stores(older_than, dry_run=dry_run)
        removal.removed += on_engine.removed
        removal.freed_bytes += on_engine.freed_bytes
        removal.size_is_known = on_engine.size_is_known
        removal.in_use += on_engine.in_use
        removal.failed |= on_engine.failed
    return removal


def clean_archives(services: Services, older_than: datetime, *, dry_run: bool) -> Removal:
    """Remove archives of videos, which can be made again, but those that somebody asked for within a day.

    None of a study whose archive is being made: its worker may have found one, and would offer it. Parts that no claim
    is making go at any age. Raises StorageError if the bucket cannot be listed.
    """
    removal = Removal()
    if not dry_run:
        remove_orphaned_parts(services)
    there = [file for file in services.archives.files() if not file.key.startswith((".", f"{PARTS}/"))]
    for file in there:
        if file.updated_at >= older_than:
            continue
        # Asked before each one: to delete them all takes long enough for somebody to ask for the last.
        if services.archive_links.is_wanted(file.key, study_of(file.key), DAY):
            removal.in_use += 1
            continue
        try:
            if not dry_run:
                services.archives.delete(file.key)
        except StorageError as error:
            removal.failed[file.key] = str(error)
            continue
        removal.removed.append(file.key)
        removal.freed_bytes += file.size_bytes
    if not dry_run:
        # An archive younger than the listing belongs to a request that ended within the day.
        services.archive_links.forget_contents({file.key for file in there} - set(removal.removed), DAY)
    return removal


@dataclass(frozen=True, slots=True)
class Cleanup:
    """One of them: `name` for the command line and the asset; `older_than` is None where a setting says it.

    `lookit_ops/schedules.py` says when it runs.
    """

    name: str
    description: str
    older_than: timedelta | None
    clean: Callable[..., Removal]

    def run(self, services: Services, older_than: timedelta | None = None, *, dry_run: bool = False) -> Removal:
        """Clean up. Raises InvalidRequest for an age under an hour, BuildPlatformError if the engine is away."""
        age = self.older_than if older_than is None else older_than
        if age is None:
            age = timedelta(days=services.settings.archives_kept_days)
        if not SHORTEST <= age <= LONGEST:
            raise InvalidRequest(
                f"older_than is {age / timedelta(hours=1):g} hours; a build that has just begun may need what is"
                " younger than an hour: give 1 or more, and at most ten years"
            )
        return self.clean(services, datetime.now(UTC) - age, dry_run=dry_run)


CLEANUPS = (
    Cleanup("builds", "Remove bundles that killed builds have left.", DAY, clean_builds),
    Cleanup("docker_images", "Remove Docker images of earlier builds.", DAY, clean_docker_images),
    Cleanup("checkouts", "Remove sources of players that no build has wanted lately.", DAY, clean_checkouts),
    Cleanup(
        "dependencies",
        "Remove shared dependencies and downloads, which the next build makes anew.",
        timedelta(days=14),
        clean_dependencies,
    ),
    Cleanup("archives", "Remove archives of videos, which can be made again.", None, clean_archives),
)


def hours(age: float) -> timedelta:
    """An age in hours, however large or small; `run` refuses what makes no sense."""
    try:
        return timedelta(hours=age)
    except (OverflowError, ValueError):
        return timedelta.max if age > 0 else timedelta.min
