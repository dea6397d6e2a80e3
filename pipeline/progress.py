"""Progress of what takes long: a bar with rate and estimate on a terminal, a line now and then in a log.

tqdm counts, estimates and draws. Where stderr is no terminal (DVC's output in a file, a queue's logs, msrun's), what it
draws becomes lines without carriage returns: one when some seconds have gone, more at longer intervals, one at the
end."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import ClassVar, TextIO
from weakref import WeakSet

from tqdm import tqdm

SHORT_SECONDS = 5.0  # what takes less leaves no line in a log
LINE_SECONDS = 30.0  # between two lines
_FLASH_SECONDS = 0.5  # what takes less is not drawn on a terminal
_LINE = "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt}, {rate_fmt}, {elapsed} gone, {remaining} left{postfix}"


class Bar(tqdm):
    """A bar of tqdm's: `update(n)` when the work got on, `set_postfix(…, refresh=False)` for what stands behind it.

    The rate is that of the last while, of an `uneven` work that of all the time: its pauses come again."""

    monitor_interval = 0  # no thread that redraws
    all_open: ClassVar[WeakSet["Bar"]] = WeakSet()

    def __init__(self, total: int, unit: str, desc: str, done: int = 0, leave: bool = True, uneven: bool = False):
        self.lines = not sys.stderr.isatty()
        super().__init__(
            total=total, initial=done, desc=desc, leave=leave, file=_Lines(sys.stderr) if self.lines else sys.stderr,
            unit=unit, unit_scale=unit == "B", smoothing=0 if uneven else 0.1, miniters=1, dynamic_ncols=not self.lines,
            delay=SHORT_SECONDS if self.lines else _FLASH_SECONDS, mininterval=SHORT_SECONDS if self.lines else 0.2,
            bar_format=_LINE if self.lines else None, position=0 if self.lines else None,
        )  # fmt: skip
        self.all_open.add(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.lines:
            self.mininterval = LINE_SECONDS
            if self.n == self.total and not self.disable:  # `close` writes the last line
                return True
        return super().display(msg, pos)

    def skip(self, count: int) -> None:
        """So many were done before: they stand in no rate."""
        self.n, self.initial, self.last_print_n = self.n + count, self.initial + count, self.last_print_n + count

    def close(self) -> None:
        self.all_open.discard(self)
        super().close()


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """What is done in the block stands in no open bar's rate, estimate and time: a compilation comes once. A block in such
    a block is a part of it."""
    starts = {bar: (bar.start_t, bar.last_print_t) for bar in Bar.all_open}
    begin = time.time()
    try:
        yield
    finally:
        seconds = time.time() - begin
        for bar, (start, last) in starts.items():
            bar.start_t, bar.last_print_t = start + seconds, max(bar.last_print_t, last + seconds)


def close() -> None:
    """Close the bars that an error left open, so that its message stands on a line of its own."""
    for bar in list(Bar.all_open):
        bar.close()


class _Lines:
    """Where tqdm draws for a log."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> None:
        if text := " ".join(text.split()):
            self._file.write(f"{text}\n")

    def flush(self) -> None:
        self._file.flush()
