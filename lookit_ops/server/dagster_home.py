"""Dagster's own home: where it keeps its runs, and the dagster.yaml that says how it works here."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from string import Template

from sqlalchemy.engine import make_url

from lookit_ops.settings import Settings

OURS = "# Dagster's instance. Written anew at each start"
"""How a dagster.yaml begins that may be overwritten."""
STORAGE_URL = "DAGSTER_STORAGE_URL"
"""The variable that dagster.yaml reads, so that no password stands in a file."""
ON_POSTGRESQL = f"""
storage:
  postgres:
    postgres_url:
      env: {STORAGE_URL}
"""
OTHER_RUNS = 4
"""Runs at once besides builds and archives: mails, cleanups, pictures."""


def prepare_dagster_home(settings: Settings) -> Path:
    """The folder that DAGSTER_HOME names, or `dagster` in our home, with a dagster.yaml; both for our children, too.

    A dagster.yaml that no longer begins as ours does is somebody's own, and stays.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or settings.home_folder / "dagster").resolve()
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists() or config.read_text().startswith(OURS):
        wanted = dagster_yaml(settings)
        if not config.exists() or config.read_text() != wanted:
            new = config.with_suffix(".new")
            new.write_text(wanted)
            new.replace(config)  # another command may be reading it
    os.environ["DAGSTER_HOME"] = str(home)
    if settings.dagster_database_url:
        # Dagster's own storage speaks psycopg 2, and with SQLAlchemy 2.1 a bare `postgresql` would mean psycopg 3.
        url = make_url(settings.dagster_database_url).set(drivername="postgresql+psycopg2")
        os.environ[STORAGE_URL] = url.render_as_string(hide_password=False)
    return home


def dagster_yaml(settings: Settings) -> str:
    """The file's text, with the numbers of the settings."""
    template = Template(files("lookit_ops").joinpath("dagster.yaml").read_text())
    text = template.substitute(
        builds_at_once=settings.builds_at_once,
        archives_at_once=settings.archives_at_once,
        at_once=settings.builds_at_once + settings.archives_at_once + OTHER_RUNS,
    )
    return text + (ON_POSTGRESQL if settings.dagster_database_url else "")
