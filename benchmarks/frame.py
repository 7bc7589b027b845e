"""The frame of all benchmarks: how they are named, measured in turn with their peers, and written down."""

from __future__ import annotations

import importlib
import json
import pkgutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import benchmarks

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "latest.json"
PAGE = FOLDER.parent / "docs" / "performance.md"
BEGIN = "<!-- results: written by `make bench` -->"
END = "<!-- end of results -->"
QUICK_NOTE = "quick run"
LONG = frozenset({"queue.busy_day"})
"""What takes more than an hour, and is left out unless it is asked for by its whole name."""
_RATE = "/s"
_DIGITS = 4


class BenchmarkError(Exception):
    """A benchmark cannot be chosen, or did not do what it was to measure. The message is for the terminal."""


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the results: medians of ours and the peer's. A ratio above 1 means that ours is better."""

    name: str
    unit: str
    """A rate ends in "/s", and more of it is better; of everything else (seconds, bytes) less is better."""
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None
    runs: int
    """How often each side was measured."""
    spread: float | None
    """(largest - smallest) / median of the repetitions; of ours or the peer's, whichever is worse. None where a median
    is zero."""
    note: str

    @classmethod
    def of(
        cls, name: str, unit: str, ours: Sequence[float], peer: Sequence[float], peer_name: str | None, note: str = ""
    ) -> Result:
        """The result of these measurements; an empty `peer` means that there is none."""
        mine = statistics.median(ours)
        theirs = statistics.median(peer) if peer else None
        return cls(
            name=name,
            unit=unit,
            ours=_rounded(mine),
            peer=None if theirs is None else _rounded(theirs),
            peer_name=peer_name if peer else None,
            ratio=None if theirs is None else _rounded(mine / theirs if unit.endswith(_RATE) else theirs / mine),
            runs=len(ours),
            spread=_spread([values for values in (ours, peer) if values]),
            note=note,
        )


Benchmark = Callable[[bool], Iterable[Result]]
"""Gets whether to be quick, and yields a result for each of its rows."""

_benchmarks: dict[str, Benchmark] = {}


def benchmark(name: str) -> Callable[[Benchmark], Benchmark]:
    """Register a benchmark; its rows are called `name` or `name.something`."""

    def register(function: Benchmark) -> Benchmark:
        _benchmarks[name] = function
        return function

    return register


def compare(
    name: str,
    unit: str,
    ours: Callable[[], float],
    peer: Callable[[], float] | None,
    *,
    runs: int,
    peer_name: str | None = None,
    note: str = "",
) -> Result:
    """Measure both sides in turn, each going first every other time, so that a machine's moods meet both alike."""
    mine: list[float] = []
    theirs: list[float] = []
    sides = [(ours, mine), *([(peer, theirs)] if peer else [])]
    for run in range(runs):
        for measure, values in sides if run % 2 == 0 else reversed(sides):
            values.append(measure())
    return Result.of(name, unit, mine, theirs, peer_name, note)


def load_benchmarks() -> dict[str, Benchmark]:
    """Every benchmark of this package by name, in alphabetical order."""
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name != "__main__":
            importlib.import_module(f"benchmarks.{module.name}")
    return dict(sorted(_benchmarks.items()))


def choose(known: dict[str, Benchmark], only: str) -> dict[str, Benchmark]:
    """The benchmarks whose names begin with `only`, all if it is empty; of the LONG ones the one that it names in full.

    Raises BenchmarkError for none.
    """
    wanted = only.strip()
    chosen = {
        name: function
        for name, function in known.items()
        if name.startswith(wanted) and (name not in LONG or name == wanted)
    }
    if not chosen:
        raise BenchmarkError(f"no benchmark's name begins with {only!r}; there are: {', '.join(known)}")
    return chosen


def run(chosen: dict[str, Benchmark], *, quick: bool, tell: Callable[[str], None]) -> list[Result]:
    """Run the benchmarks one after the other."""
    results: list[Result] = []
    for name, function in chosen.items():
        tell(f"{name} …")
        for result in function(quick):
            marked = replace(result, note="; ".join(filter(None, [QUICK_NOTE, result.note]))) if quick else result
            tell(f"  {result.name}: {_shown(result.ours)} {result.unit}, {_judged(result)}")
            results.append(marked)
    return results


def merged(old: Sequence[Result], new: Sequence[Result]) -> list[Result]:
    """The old results with the new ones in the places of those of the same name, and the others after them."""
    by_name = {result.name: result for result in (*old, *new)}
    return list(by_name.values())


def read_results(path: Path) -> list[Result]:
    """The results of an earlier run; none if there was none."""
    return [Result(**row) for row in json.loads(path.read_text("utf-8"))] if path.exists() else []


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Replace the file of results at once."""
    _replace(path, json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False) + "\n")


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    head = ("benchmark", "unit", "ours", "peer", "ratio", "runs", "spread", "the peer", "note")
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"]
    for result in results:
        cells = (
            f"`{result.name}`",
            result.unit,
            _shown(result.ours),
            _shown(result.peer),
            _shown(result.ratio),
            str(result.runs),
            "–" if result.spread is None else f"{result.spread:.0%}",
            result.peer_name or "–",
            result.note,
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def write_table(page: Path, results: Sequence[Result]) -> None:
    """Put the table between the markers of a page; the rest of it is written by hand. Raises BenchmarkError."""
    text = page.read_text("utf-8") if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BenchmarkError(f"{page} has no place for the table: write {BEGIN} and, below it, {END}")
    _replace(page, f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(path)


def _spread(sides: Iterable[Sequence[float]]) -> float | None:
    medians = [(statistics.median(values), values) for values in sides]
    if any(median == 0 for median, _ in medians):
        return None
    return round(max((max(values) - min(values)) / abs(median) for median, values in medians), 3)


def _rounded(value: float) -> float:
    """To as many digits as mean something."""
    return float(f"{value:.{_DIGITS}g}")


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _judged(result: Result) -> str:
    if result.peer is None:
        return "no peer"
    return f"{_shown(result.ratio)} times as good as the peer ({_shown(result.peer)})"
