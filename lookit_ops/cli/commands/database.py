"""`lookit-ops db`: the schema of the database."""

from __future__ import annotations

import typer

from lookit_ops.cli.options import services
from lookit_ops.cli.show import console, plain

app = typer.Typer(help="The database.", no_args_is_help=True)


@app.callback()
def database() -> None:
    """The database."""


@app.command()
def upgrade() -> None:
    """Create the schema, or bring it up to date; safe to run at every start."""
    outside = services()
    outside.upgrade_database()
    # Masked twice: SQLAlchemy hides the password before the host only, and it may also stand in the query.
    url = outside.redact(outside.engine.url.render_as_string(hide_password=True))
    console.print(f"The database {plain(url)} is up to date.", soft_wrap=True)
