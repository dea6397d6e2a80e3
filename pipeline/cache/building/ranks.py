"""Several processes that fill one cache together. They never wait for each other while encoding: each takes the shards
whose number is its own modulo their number, and rank 0 puts the out together from the files in the store."""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import locks, progress
from pipeline.stage import StageError

log = logging.getLogger(__name__)

START_SECONDS = 120.0  # how long a rank may take to start before rank 0 counts it as gone
STUCK_SECONDS = 1800.0  # how long a rank may do nothing; a batch takes a second, the first one with compilation minutes
GONE_SECONDS = 3.0  # a rank whose lock was free for this long has ended; one whose lock was deleted puts it back sooner
_POLL_SECONDS = 0.5
_LOG_SECONDS = 60.0
_SHOWN = 25  # lines of a failed rank's output
_SHOWN_BYTES = 1 << 14


def from_environment() -> tuple[int, int]:
    """(rank, world size): RANK_ID and RANK_SIZE as msrun sets them, or Open MPI's variables, else (0, 1).

    Ends the process when it is msrun's scheduler, which runs the script too and says that it is rank 0."""
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        raise SystemExit(0)
    for rank_name, size_name in (("RANK_ID", "RANK_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")):
        if size_name in os.environ:
            try:
                rank, size = int(os.environ[rank_name]), int(os.environ[size_name])
            except (KeyError, ValueError):
                raise StageError(
                    f"{size_name} is set, so {rank_name} and {size_name} must both be whole numbers"
                ) from None
            if not 0 <= rank < size:
                raise StageError(f"{rank_name}={rank} is not in 0..{size - 1} ({size_name}={size})")
            return rank, size
    return 0, 1


@dataclass(frozen=True)
class Others:
    """What is known of the other ranks by who started them; by default nothing."""

    failed: Callable[[], set[int]] = set  # those that have ended with an error
    finished: Callable[[], set[int]] = set  # those that have ended well
    said: Callable[[int], str] = lambda rank: ""  # the end of what a rank wrote


UNKNOWN = Others()


@contextlib.contextmanager
def beside(workers: int) -> Iterator[Others]:
    """Run this stage as rank 0 and `workers` - 1 further processes of it as the other ranks, unless something else has
    started it as one of several.

    Raises StageError with the end of what a failed one wrote."""
    if workers == 1 or from_environment()[1] > 1:
        yield UNKNOWN
        return
    command = [sys.executable, "-m", sys.modules["__main__"].__spec__.name]
    # Each has an NPU of its own, where there are some: an exported DEVICE_ID would send all to one.
    os.environ |= {"RANK_ID": "0", "RANK_SIZE": str(workers), "DEVICE_ID": "0"}
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, workers)]
        children = [
            subprocess.Popen(
                command, env={**os.environ, "RANK_ID": str(rank), "DEVICE_ID": str(rank)}, stdout=output, stderr=output
            )
            for rank, output in enumerate(outputs, 1)
        ]
        for child in children:
            stack.callback(child.wait)  # after its end, so that no zombie stays
            stack.callback(child.kill)

        def said(rank: int) -> str:
            output = outputs[rank - 1].fileno()
            end = os.pread(output, _SHOWN_BYTES, max(0, os.fstat(output).st_size - _SHOWN_BYTES))
            return "\n".join(end.decode(errors="replace").splitlines()[-_SHOWN:])

        def ended(well: bool) -> set[int]:
            codes = {rank: child.poll() for rank, child in enumerate(children, 1)}
            return {rank for rank, code in codes.items() if code is not None and (code == 0) == well}

        failure = None
        try:
            yield Others(lambda: ended(well=False), lambda: ended(well=True), said)
            for rank, child in enumerate(children, 1):
                _wait_for_end(child, rank)
        except StageError as error:
            failure = error
        for rank in sorted(ended(well=False)):
            code = children[rank - 1].returncode
            raise StageError(f"rank {rank} of {workers} failed with exit code {code}:\n{said(rank)}") from failure
        if failure:
            raise failure


def _wait_for_end(child: subprocess.Popen, rank: int) -> None:
    """The out is there, so nothing is lost with a rank that does not end."""
    try:
        child.wait(STUCK_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("rank %d (PID %d) has done its work and does not end; it is killed", rank, child.pid)
        child.kill()
        child.wait()
        child.returncode = 0


@contextlib.contextmanager
def claim(key: str, rank: int) -> Iterator[Callable[[int, int], None]]:
    """Hold the part of the work on `key` that is this rank's; wait while another process has it. Gives a function to
    call when the work got on, with the rows that are done and that it is to do."""
    with locks.lock(_lock(key, rank), "fills the same cache") as progressed:
        yield progressed


class Counter:
    """What the progress bar of a rank counts: its own rows, and on rank 0 those of all."""

    def __init__(self, bar: progress.Bar, key: str, rank: int, world: int, progressed: Callable[[int, int], None]):
        self._bar, self._progressed = bar, progressed
        self._others = {other: _lock(key, other) for other in range(1, world)} if rank == 0 else {}
        self._counts = {rank: (0, 0)}  # rank -> rows that are done, and that it is to do
        self._rank, self._looked = rank, 0.0

    def expect(self, rows: int) -> None:
        self._count(0, rows)

    def add(self, rows: int) -> None:
        self._count(rows, 0)

    def look(self) -> None:
        """See how far the others are, and show it."""
        if time.monotonic() - self._looked > _POLL_SECONDS:
            self._looked = time.monotonic()
            for rank, name in self._others.items():
                # of a lock that nobody holds the file tells of an earlier run, or of what was seen before
                if locks.held(name) and (holder := locks.holder(name)) is not None:
                    self._counts[rank] = holder.done, holder.total
        done, total = map(sum, zip(*self._counts.values(), strict=True))
        self._bar.total = total
        self._bar.update(max(0, done - self._bar.n))

    def finish(self) -> None:
        """All rows are there, also those of which a rank had no time to tell."""
        self._bar.update(self._bar.total - self._bar.n)

    def _count(self, done: int, total: int) -> None:
        before = self._counts[self._rank]
        self._counts[self._rank] = mine = before[0] + done, before[1] + total
        self._progressed(*mine)
        self.look()


def wait_for(
    paths: list[Path],
    key: str,
    world: int,
    mine: set[int],
    deleted: Callable[[], bool],
    others: Others,
    look: Callable[[], None] = lambda: None,
) -> set[int]:
    """Return no ranks when all files are there; or those whose files went with a store that was deleted and which do
    not make them again: the ranks `mine`, whose shards this process makes, and ranks that have ended.

    Raises StageError when a file is missing and the rank that owes it is gone, or has done nothing for STUCK_SECONDS.

    paths: file of shard i, which rank i % world writes. deleted: whether the store was deleted since the ranks
    began. look: called now and then."""
    started = logged = time.monotonic()
    seen: dict[int, float] = {}  # when a rank was last seen to hold its lock
    moved: dict[int, tuple[float | None, float]] = {}  # what its lock says of its progress, and since when
    while True:
        look()
        now = time.monotonic()
        for rank in set(range(world)) - mine:
            name = _lock(key, rank)
            if locks.held(name):
                seen[rank] = now
                if (last := locks.progress(name)) != moved.get(rank, (None, 0))[0] or rank not in moved:
                    moved[rank] = last, now
        alive = {rank for rank, last in seen.items() if now - last < GONE_SECONDS}
        failed, finished = others.failed(), others.finished()
        # After the locks: a rank that ended in between has left its files.
        missing = {index % world for index, path in enumerate(paths) if not path.exists()}
        if not missing or missing & mine:
            return missing & mine
        late = now - started > START_SECONDS
        gone = {rank for rank in missing - finished if rank in failed or rank not in alive and (rank in seen or late)}
        lost = missing & finished | (gone - failed if deleted() else set())
        if lost:
            return lost
        if gone:
            count = sum(not path.exists() for path in paths)
            raise StageError(
                f"{count} of {len(paths)} shards are missing and rank {_listed(gone)} of {world} is gone; "
                "the others' work is kept: run again, with any number of ranks"
            )
        for rank in missing & alive:
            if now - moved[rank][1] > STUCK_SECONDS:
                raise StageError(_stuck(key, rank, world, now - moved[rank][1], others))
        if now - logged > _LOG_SECONDS:
            logged = now
            log.warning("waiting for rank %s", _listed(missing))
        time.sleep(_POLL_SECONDS)


def _stuck(key: str, rank: int, world: int, seconds: float, others: Others) -> str:
    words = others.said(rank)
    return (
        f"rank {rank} of {world} ({locks.holder(_lock(key, rank)) or 'PID unknown'}) is alive and has done nothing for "
        f"{seconds / 60:.3g} minutes. What all ranks have encoded is kept: end that process where it still runs, and "
        f"run again" + (f". The last that it said:\n{words}" if words else "")
    )


def _listed(found: set[int]) -> str:
    return ", ".join(map(str, sorted(found)))


def _lock(key: str, rank: int) -> str:
    return f"cache-{key}-rank{rank}"
