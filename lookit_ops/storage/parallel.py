"""Several acts at once in a few threads, where the first error stops the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Result = TypeVar("Result")


def in_parallel(acts: Sequence[Callable[[], Result]], most: int) -> Iterator[tuple[int, Result]]:
    """The place and the result of each act as it is done, in this thread; at most `most` are under way at once.

    After an error of one, or when the caller stops asking, no further act is begun, and those under way are waited for;
    but not after an interruption of this thread, which must end at once: the caller ends them.
    """
    pool = ThreadPoolExecutor(max(1, most), thread_name_prefix="storage")
    begun = {pool.submit(act): place for place, act in enumerate(acts)}
    wait = True
    try:
        for done in as_completed(begun):
            yield begun[done], done.result()
    except (Exception, GeneratorExit):
        raise
    except BaseException:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
