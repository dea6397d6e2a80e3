"""The store is deleted while a stage runs, before each thing that the stage does with it: the outs are those of an
undisturbed run. tests/training/test_train_deleted.py does it to training."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline import locks, store
from pipeline.cache.building import engine
from pipeline.cache.format import fingerprint, shards
from pipeline.cache.tools.collect import collect
from pipeline.data import memo
from pipeline.data.index import index
from pipeline.data.sources import open_source
from pipeline.workers import share
from pipeline.workers.crew import crew
from tests import deletions
from tests.cache import cache_workers
from tests.cache.cache_jobs import Encoder, folder_bytes, job

COUNT = 40


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 16)
    monkeypatch.setattr(engine, "PART_SECONDS", 0.0)
    monkeypatch.setattr(memo, "_SETTLED_NS", -(10**15))


def at_every_moment(tmp_path, work, out, before=lambda: None, step: int = 1) -> None:
    """`work` makes the folder `out`; it is run with the store deleted before each of its events."""

    def prepare():
        for folder in (out, tmp_path / "store"):
            shutil.rmtree(folder, ignore_errors=True)
        before()

    prepare()
    count = deletions.run(work)
    wanted = folder_bytes(out)
    assert count > 1
    for moment in range(0, count, step):
        prepare()
        deletions.run(work, at=moment)
        assert folder_bytes(out) == wanted, f"deleted before event {moment} of {count}"


@pytest.mark.parametrize("known", [[], range(0, COUNT, 2), range(COUNT)], ids=["cold", "half", "warm"])
def test_a_cache_stage(tmp_path, known):
    def before():
        if known:
            engine.build(job(known, Encoder()), tmp_path / "before")

    at_every_moment(
        tmp_path, lambda: engine.build(job(range(COUNT), Encoder()), tmp_path / "out"), tmp_path / "out", before, 7
    )


def test_the_index(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/{number}.png")

    def work():
        index(open_source(str(tmp_path / "data")), tmp_path / "out", [(64, 64)], 32, None, 10**6, 0.0, 1)

    at_every_moment(tmp_path, work, tmp_path / "out", step=3)
    at_every_moment(tmp_path, work, tmp_path / "out", work, step=3)  # with a memo


def test_the_hash_of_a_file(tmp_path):
    def work():
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/hash").write_text(fingerprint.file_hash(__file__))

    at_every_moment(tmp_path, work, tmp_path / "out")
    at_every_moment(tmp_path, work, tmp_path / "out", lambda: fingerprint.file_hash(__file__))  # known


def test_collecting_garbage(tmp_path):
    outs = {"latents": tmp_path / "latents", "text": tmp_path / "text"}

    def before():
        for numbers in (range(20), range(20, 40), range(30, 50)):
            engine.build(job(numbers, Encoder()), tmp_path / "before")
        (tmp_path / "out").mkdir()

    at_every_moment(tmp_path, lambda: collect(outs, keep=1), tmp_path / "out", before, 2)


def test_a_cache_stage_beside_which_garbage_is_collected(tmp_path, monkeypatch):
    """Also what the stage is about to link goes."""
    outs = {"latents": tmp_path / "latents", "text": tmp_path / "text"}
    monkeypatch.setattr(locks, "held", lambda name: False)
    engine.build(job(range(COUNT), Encoder()), tmp_path / "out")
    wanted, link, calls = folder_bytes(tmp_path / "out"), store.link, []

    def linked_late(source, target):
        calls.append(source)
        if len(calls) == 2:
            collect(outs, keep=0)
        link(source, target)

    monkeypatch.setattr(store, "link", linked_late)
    engine.build(job(range(COUNT), Encoder()), tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == wanted and len(calls) > 4


def test_workers_that_fill_a_cache(tmp_path, monkeypatch):
    """The store goes while they work, and once more when one of them has ended."""
    monkeypatch.setattr(share, "_LOOK_SECONDS", 0.1)
    with monkeypatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(tmp_path / "alone store"))
        engine.build(job(range(cache_workers.COUNT), Encoder()), tmp_path / "alone")
    fill = cache_workers.maker(tmp_path, pause=0.1)
    with crew(SimpleNamespace(workers=2, cluster=None), fill, {}) as found, ThreadPoolExecutor(1) as behind:
        built = behind.submit(engine.build, job(range(cache_workers.COUNT), Encoder()), tmp_path / "out", found)
        for least in (20, 60):
            while sum(map(len, cache_workers.encoded(tmp_path).values())) < least:
                time.sleep(0.05)
            shutil.rmtree(tmp_path / "store", ignore_errors=True)
        assert built.result(60).encoded > cache_workers.COUNT
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "alone")
