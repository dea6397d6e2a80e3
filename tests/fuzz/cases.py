"""Cases one after the other, for as long as there is time."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def try_cases(check: Callable[[Path, int, int], None], seconds: float, seed: int) -> int:
    """`check(folder, seed, number)` of the numbers from 0 on, in a temporary folder, until the time is up; returns how
    many."""
    end, count = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            check(Path(folder), seed, count)
            count += 1
    return count
