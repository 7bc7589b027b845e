"""`lookit-ops cleanup`: what happens at night, now; and how much room builds take."""

from __future__ import annotations

from typing import Annotated

import typer

from ember_build.disk import MB
from ember_build.errors import BuildPlatformError
from ember_build.removal import Removal
from lookit_ops.cli.options import Json, services
from lookit_ops.cli.show import as_json, console, plain, table
from lookit_ops.maintenance.cleanup import CLEANUPS, hours
from lookit_ops.maintenance.disk_usage import disk_usage

app = typer.Typer(
    help="Remove what is needed no longer: bundles, images, checkouts, dependencies, archives.", no_args_is_help=True
)

OlderThan = Annotated[
    float | None, typer.Option(help="Hours since it was made or last wanted, at least 1; the night's by default.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Remove nothing, and say what would go.")]


@app.command()
def builds(older_than_hours: OlderThan = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove bundles that killed builds have left."""
    _clean("builds", older_than_hours, dry_run=dry_run, json=json)


@app.command("docker-images")
def docker_images(older_than_hours: OlderThan = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove Docker images of earlier builds; only ours, by their labels."""
    _clean("docker_images", older_than_hours, dry_run=dry_run, json=json)


@app.command()
def checkouts(older_than_hours: OlderThan = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove sources of players that no build has wanted lately."""
    _clean("checkouts", older_than_hours, dry_run=dry_run, json=json)


@app.command()
def dependencies(older_than_hours: OlderThan = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove shared dependencies and downloads, which the next build makes anew."""
    _clean("dependencies", older_than_hours, dry_run=dry_run, json=json)


@app.command()
def archives(older_than_hours: OlderThan = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Remove archives of videos that nobody asked for lately; they can be made again."""
    _clean("archives", older_than_hours, dry_run=dry_run, json=json)


@app.command()
def usage(json: Json = False) -> None:
    """Show how much room builds take, and how much is free."""
    told = disk_usage(services())
    if json:
        as_json(told)
    else:
        table("Room for builds", ("what", ""), [(plain(name), f"{value:,.0f}") for name, value in told.items()])


def _clean(name: str, older_than_hours: float | None, *, dry_run: bool, json: bool) -> None:
    cleanup = next(cleanup for cleanup in CLEANUPS if cleanup.name == name)
    age = None if older_than_hours is None else hours(older_than_hours)
    done = cleanup.run(services(), age, dry_run=dry_run)
    if json:
        as_json(
            {
                "removed": done.removed,
                "freed_bytes": done.freed_bytes,
                "size_is_known": done.size_is_known,
                "in_use": done.in_use,
                "failed": done.failed,
                "dry_run": dry_run,
            }
        )
    else:
        _show(done, dry_run=dry_run)
    if done.failed:
        raise BuildPlatformError(f"{len(done.failed)} could not be removed: the next cleanup tries again")


def _show(done: Removal, *, dry_run: bool) -> None:
    verb = "would be removed" if dry_run else "removed"
    for name in done.removed:
        console.print(f"  {plain(name)}", soft_wrap=True, highlight=False)
    size = f"{done.freed_bytes / MB:,.1f} MB" if done.size_is_known else "size unknown"
    console.print(
        f"{len(done.removed)} {verb}, {size}; {done.in_use} kept, being in use.",
        soft_wrap=True,
    )
    for name, reason in done.failed.items():
        console.print(f"[red]{plain(name)}: {plain(reason)}[/]", soft_wrap=True)
