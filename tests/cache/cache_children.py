"""Cache runs as processes of their own, which may be killed.

They are forked from a small server: a fork of the test process would copy the locks of MindSpore's and Arrow's
threads."""

import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import locks
from pipeline.cache.building import engine, ranks
from pipeline.cache.format import shards
from pipeline.stage import StageError
from tests.cache.cache_jobs import Encoder, job

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def start(function, *args) -> multiprocessing.Process:
    """Run `function(*args)` in a child, with this process's store and this process's (patched) sizes of the cache."""
    patched = {
        (shards, "ROWS_PER_SHARD"): shards.ROWS_PER_SHARD,
        (engine, "PART_SECONDS"): engine.PART_SECONDS,
        (ranks, "_POLL_SECONDS"): ranks._POLL_SECONDS,
        (ranks, "START_SECONDS"): ranks.START_SECONDS,
        (ranks, "GONE_SECONDS"): ranks.GONE_SECONDS,
        (ranks, "STUCK_SECONDS"): ranks.STUCK_SECONDS,
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
    modules = {module.__name__: module for module in (shards, engine, ranks, locks)}
    for module, name, value in values:
        setattr(modules[module], name, value)
    function(*args)


def rank(
    folder: Path, number: int, world: int, count: int, dies: bool, delay: float, stops: bool, pause: float
) -> None:
    """One rank of `world` that encodes `count` pictures, each batch in `pause` seconds. It notes what it encoded; exit
    code 0, 1 (StageError) or 9 (killed)."""
    os.environ |= {"RANK_ID": str(number), "RANK_SIZE": str(world)}
    time.sleep(delay)
    encoder = Encoder(pause)

    def encode(inputs):
        if dies and encoder.calls == 2:
            os._exit(9)
        if stops and encoder.calls == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return encoder(inputs)

    try:
        report = engine.build(job(range(count), encoder, make_encoder=lambda: encode), folder / "out")
    except StageError as error:
        (folder / f"error{number}").write_text(str(error))
        os._exit(1)
    (folder / f"rank{number}").write_text(f"{report.encoded} {len(set(encoder.encoded))}")


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


def stopping(encoder: Encoder) -> Callable:
    def encode(inputs):
        print("rank 1 goes no further", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        return encoder(inputs)

    return encode


def stage() -> None:
    """As a cache stage: fills the out with three ranks, or is started by msrun as one; rank 1 fails where $FAILS is
    set, and stops where $STOPS is. Each rank notes how much it encoded."""
    shards.ROWS_PER_SHARD = 16
    ranks.STUCK_SECONDS = 5.0 if "STOPS" in os.environ else ranks.STUCK_SECONDS
    encoder = Encoder(0.002)
    with ranks.beside(3) as others:
        number, _ = ranks.from_environment()
        if number == 1 and "FAILS" in os.environ:
            raise StageError("rank 1 found a bad picture")
        if number == 1 and "STOPS" in os.environ:
            encoder = stopping(encoder)
        report = engine.build(job(range(100), encoder), Path("out"), others)
    Path(f"rank{number}").write_text(f"{report.encoded} {len(set(encoder.encoded))}")


if __name__ == "__main__":
    stage()
