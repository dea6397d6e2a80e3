"""SIGKILL at random moments of a build, a few times. tests/cache/kill_cache.py does it a hundred times, with dvc around
it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.cache.building import engine, shelf
from pipeline.cache.format import shards
from pipeline.cache.tools import verify
from tests.cache.cache_jobs import Encoder, centred, folder_bytes, job

COUNT, VIEWS, DELAY, PART_SECONDS = 100, 2, 0.01, 0.1  # pictures, buckets of each

BUILD = f"""
import sys
from pathlib import Path
from pipeline.cache.building import engine
from pipeline.cache.format import shards
from tests.cache.cache_jobs import Encoder, centred, job
shards.ROWS_PER_SHARD = 32
engine.PART_SECONDS = {PART_SECONDS}

class Noting(Encoder):
    def __call__(self, inputs):
        result = super().__call__(inputs)
        with open("encoded", "ab") as log:
            log.write(b"".join(set(item.tobytes()[:16] for item in inputs)))
        return result

print("start", flush=True)
pictures = [centred(n // 2, 1) if n % 4 == 1 else n for n in range({COUNT})]
engine.build(job(pictures, Noting({DELAY}), views={VIEWS}), Path("out"))
"""
PICTURES = [centred(n // 2, 1) if n % 4 == 1 else n for n in range(COUNT)]


def stored() -> set[tuple[bytes, tuple[int, int]]]:
    """The rows of every file that a build left, each of which must be whole."""
    work = job(PICTURES, Encoder(), views=VIEWS)
    found = set()
    for path in work.wanted.folder.glob("[!.]*.parquet"):
        assert verify.damage(path) is None
        shard = shards.open_shard(path, shards.LATENTS)
        found |= {(row.tobytes(), tuple(group)) for row, group in zip(shard.columns["row"], shelf.groups_of(shard))}
    return found


def test_kills_lose_nothing_that_was_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 32)
    draw, kills, held = random.Random(0), 0, set()
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PIPELINE_STORE": str(tmp_path / "store"),
    }
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", BUILD], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        process.stdout.readline()
        if kills < 6:
            time.sleep(draw.uniform(0.05, 0.3))
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert held <= stored()
        held = stored()
        if process.returncode == 0:
            break
    assert process.returncode == 0 and kills
    encoded = len((tmp_path / "encoded").read_bytes()) // 16
    in_flight = (
        4 * (1 + engine._BATCHES_BEHIND) + 4 * PART_SECONDS / DELAY
    )  # the batches around the encoder, and a part
    assert VIEWS * COUNT <= encoded <= VIEWS * COUNT + kills * in_flight
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "clean"))
    engine.build(job(PICTURES, Encoder(), views=VIEWS), tmp_path / "clean out")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "clean out")
