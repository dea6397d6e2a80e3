"""A cache job for workers, in processes of this computer or on the nodes of a cluster, some of which go wrong. Each says
where it is, what device it was given, and how often it made its encoder."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from pipeline import store
from pipeline.cache.building import engine
from pipeline.cache.format import shards
from pipeline.stage import StageError
from pipeline.workers.crew import Files
from pipeline.workers.share import Work
from tests.cache.cache_jobs import Encoder, job

COUNT, ROWS_PER_SHARD = 100, 16


class Noting(Encoder):
    """Appends the names of what it encodes to a file of this process in `folder`. behave, at the third batch:
    kills or stops this process if it is the `first` of all or `always`, or finds the picture broken."""

    def __init__(self, folder: Path, pause: float, behave: str):
        super().__init__(pause)
        self._folder, self._behave = folder, behave

    def __call__(self, inputs):
        while (self._folder / "hold").exists():
            time.sleep(0.1)
        if self.calls == 2 and self._behave:
            what, when = self._behave.split()
            if what == "fails":
                raise StageError("a bad picture was found")
            if when == "always" or _is_first(self._folder / "went wrong"):
                os.kill(os.getpid(), {"dies": signal.SIGKILL, "stops": signal.SIGSTOP}[what])
        result = super().__call__(inputs)
        with open(self._folder / f"encoded-{os.getpid()}", "ab") as file:
            file.write(b"".join(dict.fromkeys(item.tobytes()[:16] for item in inputs)))
        return result


def _is_first(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def make(folder: Path, behave: str, pause: float, key: str, files: Files, source: None, away: bool) -> Work:
    shards.ROWS_PER_SHARD = ROWS_PER_SHARD
    encoder, made = Noting(folder, pause, behave), []

    def make_encoder() -> Encoder:
        made.append(encoder)
        given = {name: os.environ.get(name) for name in ("ASCEND_RT_VISIBLE_DEVICES", "DEVICE_ID")}
        if (ray := sys.modules.get("ray")) and ray.is_initialized():
            given |= {"node": ray.get_runtime_context().get_node_id()}
        with store.atomic(folder / f"worker-{os.getpid()}") as temporary:
            temporary.write_text(json.dumps(given | {"encoders": len(made)}))
        return encoder

    return engine.worker(
        lambda files, source: job(range(COUNT), encoder, make_encoder=make_encoder), key, files, source, away
    )


def maker(folder: Path, behave: str = "", pause: float = 0.002) -> partial:
    """What `crew` takes, for the rows of this process's job."""
    return partial(make, folder, behave, pause, job(range(COUNT), Encoder()).wanted.key)


def encoded(folder: Path) -> dict[int, list[bytes]]:
    """What each process encoded."""
    found = {}
    for path in folder.glob("encoded-*"):
        data = path.read_bytes()
        found[int(path.name.split("-")[1])] = [data[i : i + 16] for i in range(0, len(data), 16)]
    return found


def workers(folder: Path) -> dict[int, dict]:
    """What each process that made an encoder was given, and how many it made."""
    return {int(path.name.split("-")[1]): json.loads(path.read_text()) for path in folder.glob("worker-*")}
