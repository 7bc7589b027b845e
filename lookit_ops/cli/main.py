"""The entry of `lookit-ops`: puts the commands together and turns errors into sentences."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape
from sqlalchemy.exc import OperationalError, ProgrammingError

from domain.errors import DomainError
from ember_build.errors import BuildError
from lookit_ops.cli import builds, database, mails, permissions, serve, studies, workflow
from lookit_ops.cli.options import open_until_the_end
from lookit_ops.cli.show import errors
from lookit_ops.storage.experiments import StorageError

app = typer.Typer(
    help="Operate the studies of the platform: builds, workflow, permissions, mails.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(database.app, name="db")
app.add_typer(studies.app, name="study")
app.add_typer(builds.app, name="build")
app.add_typer(mails.app, name="mail")
app.add_typer(permissions.app, name="permission")
app.add_typer(workflow.app, name="workflow")
app.command("demo")(serve.demo)
app.command("dev")(serve.dev)
app.command("serve")(serve.serve)


def main() -> None:
    """Run a command. A person's mistake ends with status 1 and one sentence; a bug with its traceback."""
    try:
        with open_until_the_end:
            app()
    except (DomainError, BuildError, StorageError) as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}")
        sys.exit(1)
    except (OperationalError, ProgrammingError) as error:
        errors.print(f"[bold red]Error:[/] {escape(_about_the_database(error))}")
        sys.exit(1)


def _about_the_database(error: OperationalError | ProgrammingError) -> str:
    cause = str(error.orig).strip().splitlines()[0]
    if "no such table" in cause or "does not exist" in cause:
        return f"the database has not the schema of this version ({cause}): run `lookit-ops db upgrade`"
    return f"the database cannot be used: {cause}; check LOOKIT_DATABASE_URL"


if __name__ == "__main__":
    main()
