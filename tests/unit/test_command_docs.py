"""Every command of `lookit-ops` is in the operator's guide, every make target in CONTRIBUTING."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from lookit_ops.cli.main import app

ROOT = Path(__file__).resolve().parents[2]


def commands() -> set[str]:
    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():  # ty: ignore[unresolved-attribute]
        found |= {f"{name} {inner}" for inner in getattr(command, "commands", {})} or {name}
    return found


def documented() -> set[str]:
    """Commands named in the first column of the guide's table; «study list · show» names two."""
    guide = (ROOT / "docs" / "operators.md").read_text()
    found = set()
    for cell in re.findall(r"^\| (`lookit-ops .*?) \|", guide, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", cell)
        words = [
            word
            for word in first.removeprefix("lookit-ops ").split()
            if re.fullmatch("[a-z-]+", word) and not word.startswith("-")
        ]
        found.add(" ".join(words))
        found |= {f"{words[0]} {other}" for other in others if not other.startswith("-")}
    return found


def test_the_guide_names_every_command_and_no_other() -> None:
    assert documented() == commands()


def test_contributing_names_every_make_target() -> None:
    makefile, guide = (ROOT / "Makefile").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert {target for target in targets if f"`make {target}`" not in guide} == set()
