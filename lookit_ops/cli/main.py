"""The entry of `lookit-ops`: puts the commands together and turns errors into sentences."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from typing import NoReturn

import typer
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from domain.db import SQLITE_BUSY_TIMEOUT
from domain.errors import DomainError, InvalidRequest
from ember_build.errors import BuildError
from lookit_ops.cli.commands import (
    builds,
    cleanup,
    database,
    deployments,
    mails,
    permissions,
    serve,
    studies,
    videos,
    workflow,
)
from lookit_ops.cli.options import open_until_the_end
from lookit_ops.cli.show import ToErrors, errors, plain
from lookit_ops.redaction import Redactor
from lookit_ops.server.dagster_processes import NO_NEWS
from lookit_ops.settings import load_settings
from lookit_ops.storage.errors import StorageError

_NO_SCHEMA = re.compile(r"no such (table|column)|\b(relation|column) .* does not exist")
_LOCKED = re.compile("database is locked|database table is locked")

app = typer.Typer(
    help="Operate the studies of the platform: builds, videos, workflow, permissions, mails.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(database.app, name="db")
app.add_typer(studies.app, name="study")
for command in (deployments.deployments, deployments.rollback, deployments.prune):
    builds.app.command()(command)
app.add_typer(builds.app, name="build")
app.add_typer(cleanup.app, name="cleanup")
app.add_typer(videos.app, name="videos")
app.add_typer(mails.app, name="mail")
app.add_typer(permissions.app, name="permission")
app.add_typer(workflow.app, name="workflow")
app.command("demo")(serve.demo)
app.command("dev")(serve.dev)
app.command("up")(serve.up)
app.command("serve")(serve.serve)


def main() -> None:
    """Run a command. A person's mistake ends with status 1 and one sentence; a bug with its traceback."""
    logging.lastResort = ToErrors(logging.WARNING)
    warnings.filterwarnings("ignore", NO_NEWS)
    try:
        _check_arguments(sys.argv[1:])
        with open_until_the_end:
            app()
    except (DomainError, BuildError, StorageError) as error:
        _end(str(error))
    except IntegrityError:
        raise  # whatever a person may do wrong is refused before it comes to that: a bug
    except DBAPIError as error:
        _end(_about_the_database(error))
    except OSError as error:
        _end(_about_the_machine(error))


def _end(sentence: str) -> NoReturn:
    errors.print(f"[bold red]Error:[/] {plain(sentence)}", soft_wrap=True)
    sys.exit(1)


def _check_arguments(arguments: list[str]) -> None:
    """Refuse bytes that are no text: neither database can hold them. Raises InvalidRequest."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"the argument {argument!r} is not text in UTF-8; type it again") from None


def _about_the_database(error: DBAPIError) -> str:
    cause = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
    if isinstance(error, DataError):
        return f"the database refuses a value: {cause}"
    settings = load_settings()
    url = make_url(settings.database).render_as_string(hide_password=True)
    sentence = f"the database {url} cannot be used: {cause}; check LOOKIT_DATABASE_URL"
    if _LOCKED.search(cause):
        sentence = (
            f"another program holds the write lock of the database {url} ({cause}), and kept it for longer than"
            f" {SQLITE_BUSY_TIMEOUT.total_seconds():.0f} s; try again, or end that program"
        )
    if _NO_SCHEMA.search(cause):
        sentence = (
            f"the database {url} does not have this version's schema ({cause}): run `lookit-ops db upgrade`, if it is"
            f" the one that you mean (LOOKIT_HOME is {settings.home_folder})"
        )
    return Redactor(settings.secrets())(sentence)


def _about_the_machine(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    if not error.filename:
        return f"this machine refuses what the command needs: {what}"
    return (
        f"{error.filename} cannot be used: {what}; check LOOKIT_HOME and the other folders of the"
        " settings, and who may write there"
    )


if __name__ == "__main__":
    main()
