"""The processes that make up a running Dagster on one machine: code location, daemon, webserver.

The code location is a server at a port of its own, named in a workspace file: so daemon and webserver find it again by
themselves after it died and was started anew. (Started by them, from the module, it would be lost until a reload.)
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import yaml

from lookit_ops.supervisor import Program

LOOPBACK = "127.0.0.1"
QUIET = ("--log-level", "warning")
LOCATION = "lookit_ops"
"""The name of the code location. It keys the on/off state of schedules and sensors, so it is the same everywhere."""


def dagster_programs(dagster_home: Path, port: int, code_port: int | None = None) -> list[Program]:
    """What to keep running; the UI listens at `port`, the code location at `code_port` or any free one."""
    code_port = code_port or _free_port()
    workspace = dagster_home / "workspace.yaml"
    server = {"grpc_server": {"host": LOOPBACK, "port": code_port, "location_name": LOCATION}}
    workspace.write_text(yaml.safe_dump({"load_from": [server]}))
    python = [sys.executable, "-m"]
    code = [
        "--module-name",
        "lookit_ops.definitions",
        "--location-name",
        LOCATION,
        "--use-python-environment-entry-point",
    ]
    at = ["--workspace", str(workspace)]
    return [
        Program(
            "code location",
            [*python, "dagster", "api", "grpc", *code, "--host", LOOPBACK, "--port", str(code_port), *QUIET],
        ),
        Program("daemon", [*python, "dagster._daemon", "run", *at, *QUIET]),
        Program("webserver", [*python, "dagster_webserver", "--host", LOOPBACK, "--port", str(port), *at, *QUIET]),
    ]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
