"""Runs the benchmarks, as `make bench` does: ONLY=name for those whose names begin so, QUICK=1 for a small version.

What takes more than an hour runs only if ONLY is its whole name.
"""

from __future__ import annotations

import os
import sys

from benchmarks.frame import (
    LONG,
    PAGE,
    RESULTS,
    BenchmarkError,
    choose,
    load_benchmarks,
    merged,
    read_results,
    run,
    table,
    write_results,
    write_table,
)


def main(only: str, *, quick: bool) -> None:
    """Run what was chosen and write the results; those of the others stay. Raises BenchmarkError."""
    known = load_benchmarks()
    chosen = choose(known, only)
    kept = [result for result in read_results(RESULTS) if only.strip() or result.name in LONG]
    results = merged(kept, run(chosen, quick=quick, tell=lambda line: print(line, flush=True)))
    write_results(RESULTS, results)
    print(f"\n{table(results)}\n\nwritten to {os.path.relpath(RESULTS)}")
    if quick:
        print(f"{os.path.relpath(PAGE)} keeps the table of the last full run")
    else:
        write_table(PAGE, results)


if __name__ == "__main__":
    try:
        main(os.environ.get("ONLY", ""), quick=os.environ.get("QUICK", "") not in {"", "0"})
    except BenchmarkError as error:
        sys.exit(f"Error: {error}")
