"""The processes that make up a running Dagster on one machine: code location, daemon, webserver.

The code location is a server at a port of its own, named in a workspace file: so daemon and webserver find it again by
themselves after it died and was started anew. (Started by them, from the module, it would be lost until a reload.)
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import yaml

from lookit_ops.server.supervisor import Program

LOOPBACK = "127.0.0.1"
NO_NEWS = "Parameter `owners` of initializer"
"""Dagster warns of a parameter that only it passes on, when it binds resources to a sensor of run statuses."""
QUIET = {"PYTHONWARNINGS": f"ignore:{NO_NEWS}"}
CODE_THREADS = 32
LOCATION = "lookit_ops"
"""The name of the code location. It keys the on/off state of schedules and sensors, so it is the same everywhere."""


def dagster_programs(
    dagster_home: Path, port: int, code_port: int | None = None, module: str = "lookit_ops.definitions"
) -> list[Program]:
    """What to keep running; the UI listens at `port`, the code location at `code_port` or any free one."""
    code_port = code_port or _free_port()
    workspace = dagster_home / "workspace.yaml"
    server = {"grpc_server": {"host": LOOPBACK, "port": code_port, "location_name": LOCATION}}
    workspace.write_text(yaml.safe_dump({"load_from": [server]}))

    def python(module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments, "--log-level", "warning"]

    code = ("--module-name", module, "--location-name", LOCATION, "--host", LOOPBACK, "--port", str(code_port))
    # Each sensor and each page of the UI takes one: Dagster's own number, four more than processors, is soon used up.
    code = (*code, "--max-workers", str(CODE_THREADS))
    # Runs begin as `python -m dagster` then, whatever the PATH says.
    code = (*code, "--use-python-environment-entry-point")
    read = ("--workspace", str(workspace))
    ui = ("--host", LOOPBACK, "--port", str(port))
    return [
        Program("code location", python("dagster", "api", "grpc", *code), QUIET, listens_at=(LOOPBACK, code_port)),
        Program("daemon", python("dagster._daemon", "run", *read), QUIET),
        Program("webserver", python("dagster_webserver", *ui, *read), QUIET),
    ]


def make_storage() -> None:
    """Let one process make the tables of a new instance: several at once would be in each other's way."""
    from dagster import DagsterInstance  # takes seconds to load, and most commands do without

    with DagsterInstance.get() as instance:
        instance.get_runs_count()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
