"""What a run says is kept in bounded memory, redacted, from any thread, and never ends the run it tells of."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookit_ops.redaction import MASK, Redactor
from lookit_ops.runs.log_buffer import Transcript, TranscriptHandler

NOTES = 120
"""Characters for the lines that say what was left out."""


def transcript(head: int = 40, tail: int = 40, secrets: tuple[str, ...] = ()) -> Transcript:
    return Transcript(Redactor(secrets), head=head, tail=tail)


@given(lines=st.lists(st.text(max_size=300)), head=st.integers(1, 200), tail=st.integers(1, 200))
def test_whatever_is_said_the_transcript_stays_bounded(lines: list[str], head: int, tail: int) -> None:
    kept = transcript(head, tail)
    for line in lines:
        kept.add(line)
    assert len(kept.text()) <= head + tail + NOTES
    assert len(kept.tail(1)) <= max(head, tail + NOTES)


@given(lines=st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n"), max_size=9), max_size=60))
def test_head_and_tail_are_kept_word_for_word_and_the_rest_is_counted(lines: list[str]) -> None:
    kept = transcript()
    for line in lines:
        kept.add(line)
    text = kept.text()
    gap = re.search(r"^\[… ([\d,]+) lines left out …]$", text, re.MULTILINE)
    if gap is None:
        assert text == "\n".join(lines)
    else:
        before, after = text[: gap.start()], text[gap.end() :].removeprefix("\n")
        head, tail = before.removesuffix("\n").split("\n"), after.split("\n")
        assert lines[: len(head)] == head
        assert lines[-len(tail) :] == tail
        assert int(gap[1].replace(",", "")) == len(lines) - len(head) - len(tail)


def test_what_fits_is_kept_whole() -> None:
    kept = transcript(100, 100)
    for number in range(10):
        kept.add(f"line {number}")
    assert kept.text() == "\n".join(f"line {number}" for number in range(10))
    assert kept.tail(2) == "line 8\nline 9"
    assert kept.tail(99) == kept.text()


def test_a_long_run_keeps_its_beginning_and_its_end() -> None:
    kept = transcript()
    for number in range(1000):
        kept.add(f"line {number}")
    text = kept.text()
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 998\nline 999")
    assert "lines left out" in text


def test_one_line_without_an_end_is_cut_and_says_so() -> None:
    kept = transcript(1000, 1000)
    as_kept = kept.add("a" * 500_000 + "z")
    assert len(as_kept) < 1000 + NOTES
    assert as_kept.startswith("aaa")
    assert as_kept.endswith("z")
    assert "characters left out" in as_kept
    assert kept.text() == as_kept


def test_secrets_are_masked_before_anything_is_kept_or_cut() -> None:
    kept = transcript(20, 20, secrets=("hunter2-hunter2",))
    assert kept.add("x hunter2-hunter2") == f"x {MASK}"
    assert "hunter2" not in kept.text()
    assert kept.redacted("hunter2-hunter2!") == f"{MASK}!"
    kept.add("1234 hunter2-hunter2 and more that is too long to be kept")
    assert "hunter" not in kept.text()


def test_many_threads_lose_no_line() -> None:
    kept = transcript(1_000_000, 10)
    with ThreadPoolExecutor(8) as threads:
        for number in range(2000):
            threads.submit(kept.add, f"line {number}")
    assert sorted(kept.text().split("\n")) == sorted(f"line {number}" for number in range(2000))


@pytest.fixture
def logger() -> logging.Logger:
    logger = logging.Logger("lookit_ops.test", logging.DEBUG)
    logger.propagate = False
    return logger


def test_log_lines_go_into_the_transcript_and_on_to_the_run_page(logger: logging.Logger) -> None:
    kept, seen = transcript(10_000, 10_000, secrets=("hunter2",)), []
    logger.addHandler(TranscriptHandler(kept, lambda level, text: seen.append((level, text))))
    logger.warning("password %s", "hunter2")
    logger.debug("not worth a line")
    try:
        raise ValueError("hunter2 is wrong")
    except ValueError:
        logger.exception("it broke")
    assert seen == [(logging.WARNING, f"password {MASK}"), (logging.ERROR, "it broke")]
    assert f"WARNING lookit_ops.test: password {MASK}" in kept.text()
    assert f"ValueError: {MASK} is wrong" in kept.text()
    assert "not worth" not in kept.text()


def test_a_log_line_that_cannot_be_shown_does_not_end_the_run(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def refuse(_level: int, _text: str) -> None:
        raise RuntimeError("the run page is gone")

    kept = transcript(1000, 1000)
    logger.addHandler(TranscriptHandler(kept, refuse))
    logger.warning("still here")
    logger.warning("%d is no number", "x")
    assert "still here" in kept.text()
