"""Dagster's own home: where it keeps its runs, and the dagster.yaml that it begins with."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from lookit_ops.settings import Settings


def prepare_dagster_home(settings: Settings) -> Path:
    """The folder that DAGSTER_HOME names, or `dagster` in our home; its dagster.yaml is written if there is none."""
    home = Path(os.environ.get("DAGSTER_HOME") or settings.home_folder / "dagster").resolve()
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists():
        config.write_bytes(files("lookit_ops").joinpath("dagster.yaml").read_bytes())
    os.environ["DAGSTER_HOME"] = str(home)
    return home
