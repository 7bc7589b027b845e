"""Bytes become lines, however they were cut into pieces."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ember_build.output import Lines


def lines_of(*pieces: bytes) -> list[str]:
    said: list[str] = []
    lines = Lines(said.append)
    for piece in pieces:
        lines.add(piece)
    lines.close()
    return said


def test_a_line_break_of_two_characters_may_be_cut_in_two() -> None:
    assert lines_of(b"one\r", b"\ntwo\r\n", b"\n") == ["one", "two", ""]


@given(st.text("ab\r\n", max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_the_cuts_do_not_matter(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[begin:end] for begin, end in itertools.pairwise(places)]
    assert lines_of(*pieces) == lines_of(data)
