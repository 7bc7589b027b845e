"""What all messages have in common: settings are named as the operator types them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookit_ops.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
NAMES = re.compile(rf"(?<![\w.])({'|'.join(name for name in Settings.model_fields if '_' in name)})(?![\w(=])")
ALSO_OTHER_THINGS = {
    "player_repo_url": "a key of a study's metadata, too",
}


def texts(source: str) -> Iterator[tuple[int, str]]:
    """All literal texts of a module that have more than one word, but for docstrings."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
            continue
        if " " in node.value.strip():
            yield node.lineno, node.value


def named_wrongly(source: str) -> list[str]:
    return [
        f"line {line}: {match[1]}"
        for line, text in texts(source)
        for match in NAMES.finditer(text)
        if match[1] not in ALSO_OTHER_THINGS
    ]


MODULES = [
    path for package in ("domain", "ember_build", "lookit_ops") for path in sorted((ROOT / package).rglob("*.py"))
]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_name_settings_as_the_operator_types_them(module: Path) -> None:
    assert named_wrongly(module.read_text()) == []


def test_a_setting_named_otherwise_is_found() -> None:
    assert named_wrongly('raise ValueError(f"set github_token for {host}")') == ["line 1: github_token"]
    assert named_wrongly(f'raise ValueError("set {PREFIX}GITHUB_TOKEN, please")') == []
