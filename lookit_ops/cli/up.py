"""`lookit-ops up` and `dev`: one process to start, which keeps all that a machine needs running."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer

from lookit_ops.cli.options import services
from lookit_ops.cli.serve import serve_folders
from lookit_ops.cli.show import console, plain
from lookit_ops.demo.example import example_port, example_server
from lookit_ops.server.dagster_home import prepare_dagster_home
from lookit_ops.server.dagster_processes import LOOPBACK, dagster_programs, make_storage
from lookit_ops.server.supervisor import supervise
from lookit_ops.services import Services

Port = Annotated[int, typer.Option(help="Port of Dagster's UI.", min=1, max=65535)]


def up(port: Port = 3000) -> None:
    """Run Dagster's UI, daemon and code location on this machine, restarted when they die, until interrupted."""
    outside = services()
    with ExitStack() as servers:
        _run(outside, port, servers)


def dev(port: Port = 3000) -> None:
    """The same, with the built studies and the demonstration's repository, to look at."""
    outside = services()
    with ExitStack() as servers:
        if example := example_port(outside.settings):
            server = servers.enter_context(example_server(example))
            console.print(f"Example repository  {server.url}", highlight=False)
        serve_folders(outside, servers)
        _run(outside, port, servers)


def _run(outside: Services, port: int, servers: ExitStack) -> None:
    outside.upgrade_database()
    home = prepare_dagster_home(outside.settings)
    make_storage()
    stop = servers.enter_context(_stopped_by_signals())
    address = f"http://{LOOPBACK}:{port}"
    console.print(f"Dagster             {address} (home: {plain(home)})", highlight=False, soft_wrap=True)
    supervise(dagster_programs(home, port), stop, lambda what: console.print(plain(what), soft_wrap=True))
    console.print("Stopped.")


@contextmanager
def _stopped_by_signals() -> Generator[threading.Event]:
    """Set on Ctrl-C or SIGTERM. Started in the background by a script, Python would ignore the first."""
    stop = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        if not stop.is_set():
            console.print("Stopping …")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
