"""Read and compute in threads while another writes: file reads, file writes and NumPy all run beside each other."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


def ahead(items: Iterator[Item], depth: int = 8) -> Iterator[Item]:
    """The items in order, made by a thread of its own at most `depth` items ahead. Its errors are raised here."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, _END) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not _END:
                pending.append(pool.submit(next, items, _END))
                yield item
        finally:
            for future in pending:
                future.cancel()


def mapped(function: Callable[[Item], Result], items: Iterator[Item], threads: int = 2) -> Iterator[Result]:
    """function(item) of each item in order, computed by several threads. Its errors are raised here."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        for future in pending:
            yield future.result()
