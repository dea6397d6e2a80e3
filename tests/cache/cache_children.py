"""Cache runs as processes of their own, which may be killed.

They are forked from a small server: a fork of the test process would copy the locks of MindSpore's and Arrow's
threads."""

import multiprocessing
import os
import struct
from pathlib import Path

from pipeline import locks
from pipeline.cache.building import engine
from pipeline.cache.format import shards
from tests.cache.cache_jobs import Encoder, job

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def start(function, *args) -> multiprocessing.Process:
    """Run `function(*args)` in a child, with this process's store and this process's (patched) sizes of the cache."""
    patched = {
        (shards, "ROWS_PER_SHARD"): shards.ROWS_PER_SHARD,
        (engine, "PART_SECONDS"): engine.PART_SECONDS,
        (locks, "_POLL_SECONDS"): locks._POLL_SECONDS,
    }
    values = [(module.__name__, name, value) for (module, name), value in patched.items()]
    child = _CONTEXT.Process(target=_run, args=(os.environ["PIPELINE_STORE"], values, function, args))
    child.start()
    return child


def finish(children: list[multiprocessing.Process]) -> list[int]:
    """Wait for them; -> their exit codes."""
    for child in children:
        child.join(60)
        assert child.exitcode is not None, "a child hangs"
    return [child.exitcode for child in children]


def _run(folder: str, values: list, function, args) -> None:
    os.environ["PIPELINE_STORE"] = folder
    modules = {module.__name__: module for module in (shards, engine, locks)}
    for module, name, value in values:
        setattr(modules[module], name, value)
    function(*args)


class Logging(Encoder):
    """Appends what it encodes to the file `log`, as names with the heights and widths of latents (ROW); dies before its
    call number `dies_at`."""

    ROW = 24  # bytes

    def __init__(self, log: Path, dies_at: int | None, kill: bool):
        super().__init__()
        self._log, self._dies_at, self._kill = log, dies_at, kill

    def __call__(self, inputs):
        if self.calls == self._dies_at:
            if self._kill:
                os._exit(9)
            raise RuntimeError("the encoder fails")
        result = super().__call__(inputs)
        with open(self._log, "ab") as file:
            file.write(b"".join(item.tobytes()[:16] + struct.pack("<ii", *item.shape[1:]) for item in inputs))
        return result


def killed(
    pictures: list[bytes], fingerprint: dict, out: Path, log: Path, dies_at: int, batch_size: int, views: int
) -> None:
    """A run that is killed in its encoder, unless it needs fewer calls."""
    work = job(pictures, Logging(log, dies_at, kill=True), fingerprint, batch_size=batch_size, views=views)
    engine.build(work, out)
