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
from pathlib import Path

from pipeline import store
from pipeline.stage import StageError

log = logging.getLogger(__name__)

START_SECONDS = 120.0  # how long a rank may take to start before rank 0 counts it as gone
_POLL_SECONDS = 0.5
_LOG_SECONDS = 60.0
_ATTEMPTS = 20
_SHOWN = 25  # lines of a failed rank's output


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


@contextlib.contextmanager
def beside(workers: int) -> Iterator[Callable[[], set[int]]]:
    """Run this stage as rank 0 and `workers` - 1 further processes of it as the other ranks, unless something else has
    started it as one of several. Gives a function of the ranks that have failed up to now.

    Raises StageError with the end of what a failed one wrote."""
    if workers == 1 or from_environment()[1] > 1:
        yield set
        return
    command = [sys.executable, "-m", sys.modules["__main__"].__spec__.name]
    os.environ |= {"RANK_ID": "0", "RANK_SIZE": str(workers)}
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, workers)]
        children = [
            subprocess.Popen(command, env={**os.environ, "RANK_ID": str(rank)}, stdout=log, stderr=log)
            for rank, log in enumerate(logs, 1)
        ]
        for child in children:
            stack.callback(child.kill)
        failure = None
        try:
            yield lambda: {rank for rank, child in enumerate(children, 1) if child.poll()}
        except StageError as error:
            failure = error
        else:
            for child in children:
                child.wait()
        for rank, (child, log) in enumerate(zip(children, logs, strict=True), 1):
            if child.poll():
                log.seek(0)
                said = log.read().decode(errors="replace").splitlines()[-_SHOWN:]
                text = "\n".join([f"rank {rank} of {workers} failed with exit code {child.returncode}:", *said])
                raise StageError(text) from failure
        if failure:
            raise failure


@contextlib.contextmanager
def claim(key: str, rank: int) -> Iterator[None]:
    """Hold the part of the work on `key` that is this rank's. Raises store.Busy when another process has it."""
    with contextlib.ExitStack() as stack:
        for attempt in range(_ATTEMPTS):
            try:
                stack.enter_context(store.lock(_lock(key, rank)))
                break
            except store.Busy:  # perhaps only rank 0, looking whether this rank is alive
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.05)
        yield


def wait_for(paths: list[Path], key: str, world: int, failed: Callable[[], set[int]]) -> None:
    """Return when all files are there. Raises StageError when one is missing and the rank that owes it is gone.

    paths: file of shard i, which rank i % world writes. failed: as `beside` gives it."""
    started = logged = time.monotonic()
    seen: set[int] = {0}
    while True:
        alive = {rank for rank in range(1, world) if store.held(_lock(key, rank))}
        seen |= alive
        ended = seen | failed()
        # After the locks: a rank that ended in between has left its files.
        missing = {index % world for index, path in enumerate(paths) if not path.exists()}
        if not missing:
            return
        late = time.monotonic() - started > START_SECONDS
        gone = sorted(rank for rank in missing - alive if rank in ended or late)
        if gone:
            count = sum(not path.exists() for path in paths)
            raise StageError(
                f"{count} of {len(paths)} shards are missing and rank {', '.join(map(str, gone))} of {world} is gone; "
                "the others' work is kept: run again, with any number of ranks"
            )
        if time.monotonic() - logged > _LOG_SECONDS:
            logged = time.monotonic()
            log.info("waiting for rank %s", ", ".join(map(str, sorted(missing))))
        time.sleep(_POLL_SECONDS)


def _lock(key: str, rank: int) -> str:
    return f"cache-{key}-rank{rank}"
