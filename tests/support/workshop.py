"""A platform for tests of the whole job: real database, GitHub server, checkouts, child processes and bucket folder.

Only the build's command is short: a shell script in build.sh's place, which a test may replace by a failing one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy import Engine

from domain.models import BuildKind
from domain.requests.builds import BuildLedger
from ember_build.builder import Builder
from ember_build.local.builder import LocalBuilder
from ember_build.local.toolchain import Toolchain
from ember_build.source.github import GitHub
from lookit_ops.definitions import defs
from lookit_ops.demo.github_server import Commit, GitHubServer
from lookit_ops.deployments.manifest import folder_of
from lookit_ops.jobs.build_experiment import build_experiment
from lookit_ops.resources import build_run_resource
from lookit_ops.runs.dead_runs import end_dead_work, tell_dagster
from lookit_ops.services import Services
from lookit_ops.settings import Settings
from lookit_ops.storage.experiments import ExperimentBucket
from tests.support.faulty_bucket import FaultyBucket
from tests.support.site import Site

REPOSITORY = "lookit/player"

GOOD_BUILD = """
echo "==> ember build"
echo "building $(cat "$CHECKOUT_DIR/version.txt") for $STUDY_PREFIX"
mkdir -p "$OUTPUT_DIR/assets"
script="var version = '$(cat "$CHECKOUT_DIR/version.txt")';"
md5=$(printf '%s' "$script" | md5sum | cut -d' ' -f1)
printf '%s' "$script" > "$OUTPUT_DIR/assets/player-$md5.js"
echo "<html><script src=\\"${STUDY_PREFIX}assets/player-$md5.js\\"></script></html>" > "$OUTPUT_DIR/index.html"
echo "User-agent: *" > "$OUTPUT_DIR/robots.txt"
"""


def player(version: str) -> Commit:
    """A commit of a tiny player."""
    return Commit({"package.json": b'{"name": "player"}', "version.txt": version.encode()}, message=version)


@dataclass(frozen=True)
class WorkshopServices(Services):
    """The platform with a short build, a bucket that can refuse, and a GitHub client that does not sleep."""

    database_engine: Engine
    script: Path
    tools: Path

    @cached_property
    def engine(self) -> Engine:
        return self.database_engine

    def _open_bucket(self) -> ExperimentBucket:
        return FaultyBucket(super()._open_bucket())

    @cached_property
    def builder(self) -> Builder:
        return LocalBuilder(
            self.settings.home_folder / "ember_build",
            timedelta(seconds=self.settings.build_time_limit),
            script=self.script,
            toolchain=Toolchain(key="short", bin=self.tools),
            grace=timedelta(seconds=0.5),
        )

    @cached_property
    def github(self) -> GitHub:
        return GitHub(
            self.settings.github_api_url,
            self.settings.github_web_url,
            attempts=3,
            refuse_invalid_sha=self.settings.refuse_invalid_sha,
            sleep=lambda _seconds: None,
        )


@dataclass
class Workshop:
    """One platform, the site in its database, and the job that runs on them."""

    root: Path
    site: Site
    engine: Engine
    server: GitHubServer
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir()
        self.script = self.root / "build.sh"
        self.tools = self.root / "tools"
        self.tools.mkdir()
        self.build_by(GOOD_BUILD)

    def build_by(self, script: str) -> None:
        """Replace the build's script."""
        begins = 'set -euo pipefail\n[ "$1" = build ] || exit 0\n'
        self.script.write_text(begins + textwrap.dedent(script))

    @cached_property
    def services(self) -> WorkshopServices:
        url = self.server.url
        settings = Settings(
            **{
                "home": self.root / "home",
                "github_api_url": url,
                "github_web_url": url,
                "player_repo_url": f"{url}/{REPOSITORY}",
                "trusted_repositories": [f"{url}/{REPOSITORY}"],
                "attempts": 1,
                **self.settings,
            }
        )
        return WorkshopServices(settings, self.engine, self.script, self.tools)

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        """Where all runs of this workshop are kept."""
        return dg.DagsterInstance.ephemeral()

    def tick(self, sensor: dg.SensorDefinition, cursor: str | None = None) -> Any:
        """Evaluate a sensor as the daemon does, on this workshop's parts."""
        context = dg.build_sensor_context(
            instance=self.instance,
            resources={"services": self.services},
            definitions=defs,
            cursor=cursor,
        )
        with context:
            return sensor.evaluate_tick(context)

    def end_dead_work(self) -> list[str]:
        """End what dead workers left open, as a run of `end_dead_work` does; says what was done."""
        done = end_dead_work(self.services, self.instance)
        dead_runs = tell_dagster(self.instance, self.services, done)
        return [*done.told(), *([f"dead runs: {dead_runs}"] if dead_runs else [])]

    def close(self) -> None:
        """Let go of what was opened; the engine is the test's."""
        if "services" in self.__dict__ and "bucket" in self.services.__dict__:
            self.services.bucket.close()
        if "instance" in self.__dict__:
            self.instance.dispose()

    @property
    def ledger(self) -> BuildLedger:
        return self.site.ledger

    @property
    def faults(self) -> FaultyBucket:
        bucket = self.services.bucket
        assert isinstance(bucket, FaultyBucket)
        return bucket

    def request(self, kind: BuildKind = BuildKind.DEPLOYMENT) -> int:
        return self.ledger.request(self.site.study_id, self.site.study_admin, kind)

    def run(
        self, services: Services | None = None, tags: Mapping[str, str] | None = None, **config: Any
    ) -> dg.ExecuteInProcessResult:
        """Run the job with the claim's config, as the Launchpad would; errors end the run, not the test."""
        definitions = dg.Definitions(
            jobs=[build_experiment],
            resources={
                "services": dg.ResourceDefinition.hardcoded_resource(services or self.services),
                "build_run": build_run_resource,
                "io_manager": dg.mem_io_manager,
            },
        )
        return definitions.resolve_job_def("build_experiment").execute_in_process(
            run_config={
                "ops": {"claim": {"config": config}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=self.instance,
            raise_on_error=False,
            tags=dict(tags or {}),
        )

    def build(self, kind: BuildKind = BuildKind.DEPLOYMENT) -> dg.ExecuteInProcessResult:
        """Ask for a build and run it."""
        return self.run(request_id=self.request(kind))

    def folder(self, kind: BuildKind = BuildKind.DEPLOYMENT) -> Path:
        """The study's folder in the bucket."""
        return self.services.settings.local_bucket / folder_of(kind, self.site.study().uuid)

    def live(self, kind: BuildKind = BuildKind.DEPLOYMENT) -> dict[str, bytes]:
        """What a family can fetch: the page and all that it names, by path; empty if nothing is deployed."""
        folder = self.folder(kind)
        page = folder / "index.html"
        if not page.exists():
            return {}
        text = page.read_text()
        names = [name for name in text.split('"') if name.startswith("/studies/")]
        files = {name: (folder / name.split("/", 3)[3]).read_bytes() for name in names}
        return {"index.html": page.read_bytes(), **files}

    def leftovers(self) -> list[str]:
        """Files of builds that should be gone: scratch, outputs, half archives."""
        home = self.services.settings.home_folder / "ember_build"
        places = [home / "scratch", home / "deployments"]
        found = [path for place in places if place.exists() for path in place.iterdir()]
        return [str(path.relative_to(home)) for path in [*found, *home.glob("checkouts/*/.incoming-*")]]
