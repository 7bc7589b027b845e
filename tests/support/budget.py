"""How much of what a property test could try it tries: a part in `make test`, all of it in `make soak`."""

from __future__ import annotations

import os

import pytest

IS_SOAK = os.environ.get("SOAK") == "1"
"""Whether this is `make soak`."""

budgeted = pytest.mark.budgeted
"""Marks tests whose number of examples grows in `make soak`."""


def examples(in_soak: int) -> int:
    """Return how many examples to try: a third of them in `make test`."""
    return in_soak if IS_SOAK else max(5, in_soak // 3)
