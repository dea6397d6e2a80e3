"""Several processes of this computer fill one cache."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import progress
from pipeline.cache.building import engine
from pipeline.cache.format import shards
from pipeline.recorded import PROJECT
from pipeline.stage import StageError
from pipeline.workers import share
from pipeline.workers.crew import crew
from tests.cache.cache_jobs import Encoder, folder_bytes, job
from tests.cache.cache_workers import COUNT, ROWS_PER_SHARD, encoded, maker


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", ROWS_PER_SHARD)
    monkeypatch.setattr(share, "_LOOK_SECONDS", 0.1)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(tmp_path / "alone store"))
        engine.build(job(range(COUNT), Encoder()), tmp_path / "alone")
    return folder_bytes(tmp_path / "alone")


def build(tmp_path, workers: int, behave: str = "", pause: float = 0.002) -> engine.Report:
    def no_encoder():
        pytest.fail("this process encodes")

    with crew(SimpleNamespace(workers=workers, cluster=None), maker(tmp_path, behave, pause), {}) as found:
        return engine.build(job(range(COUNT), Encoder(), make_encoder=no_encoder), tmp_path / "out", found)


def test_any_number_of_workers_gives_the_bytes_of_one(tmp_path, alone):
    report = build(tmp_path, 3, pause=0.05)
    assert (report.encoded, report.shards_written, report.shards) == (COUNT, 8, 8)
    assert folder_bytes(tmp_path / "out") == alone
    found = encoded(tmp_path)
    assert len(found) == 3 and os.getpid() not in found
    assert sum(len(set(names)) for names in found.values()) == COUNT == len(set().union(*found.values()))


def test_one_worker_is_this_process(tmp_path):
    with crew(SimpleNamespace(workers=1, cluster=None), None, {}) as found:
        assert found is None


def test_only_what_the_store_lacks_is_encoded(tmp_path, alone):
    """Parts of shards, of which several make a unit."""
    engine.build(job(range(0, COUNT, 2), Encoder()), tmp_path / "half")
    assert build(tmp_path, 2).encoded == COUNT // 2
    assert folder_bytes(tmp_path / "out") == alone
    assert build(tmp_path, 2).encoded == 0
    (folder,) = {path.parent for path in job(range(COUNT), Encoder()).wanted.paths}
    assert not list(folder.glob("part-*"))


def test_a_dead_worker_costs_its_shard_in_flight(tmp_path, alone, caplog):
    report = build(tmp_path, 2, "dies first", 0.02)
    assert report.encoded == COUNT and folder_bytes(tmp_path / "out") == alone
    assert "a worker has ended: process" in caplog.text and "exit code -9" in caplog.text
    assert COUNT <= sum(map(len, encoded(tmp_path).values())) <= COUNT + 16


class Losing:
    """A crew of one worker, elsewhere, which has all shards in `made`; the first that is fetched is lost."""

    place = share.Place("far", 0)

    def __init__(self, wanted, made):
        self._wanted, self._made, self._lost = wanted, made, False
        self._messages = [share.Began(), share.Ready()]

    def places(self):
        return [self.place]

    def start(self, place):
        return self

    def wait(self, workers, seconds):
        return workers if self._messages else []

    def hear(self):
        return self._messages.pop(0)

    def give(self, unit):
        paths = [self._wanted.paths[piece.number] for piece in unit]
        away = [share.Away(path.name, lambda name=path.name: self._read(name)) for path in paths]
        self._messages = [sum(len(piece.lacking) for piece in unit), share.Done(away)]

    def _read(self, name):
        if not self._lost:
            self._lost = True
            raise share.Gone("far has ended")
        return np.fromfile(next(self._made.rglob(name)), np.uint8)

    def end(self):
        self._messages = [share.Began(), share.Ready()]


def test_a_shard_that_is_lost_before_it_is_fetched_is_encoded_again(tmp_path, alone, caplog):
    wanted = job(range(COUNT), Encoder()).wanted
    report = engine.build(job(range(COUNT), Encoder()), tmp_path / "out", Losing(wanted, tmp_path / "alone store"))
    assert folder_bytes(tmp_path / "out") == alone
    lost = int(wanted.bounds[1] - wanted.bounds[0])
    assert (report.shards_written, report.encoded) == (8, COUNT + lost)
    assert caplog.text.count("encoded again: far has ended") == 1


class Leaving(Losing):
    """Its only node goes with the first shard, and is there again after `looks` looks."""

    def __init__(self, wanted, made, looks):
        super().__init__(wanted, made)
        self._away, self._looks = False, looks

    def places(self):
        self._looks -= self._away
        return [] if self._away and self._looks > 0 else [self.place]

    def _read(self, name):
        self._away = True
        return super()._read(name)

    def hear(self):
        if self._away and self._looks > 0:
            raise share.Gone("far has ended")
        return super().hear()

    def wait(self, workers, seconds):
        return workers


@pytest.mark.parametrize(("looks", "ends"), [(3, True), (10**6, False)])
def test_when_the_last_node_goes_another_is_waited_for(tmp_path, alone, monkeypatch, caplog, looks, ends):
    """Not for ever."""
    monkeypatch.setattr(share, "STUCK_SECONDS", 2.0)
    monkeypatch.setattr(share, "_WAIT_SECONDS", 0.02)
    crew = Leaving(job(range(COUNT), Encoder()).wanted, tmp_path / "alone store", looks)
    if ends:
        engine.build(job(range(COUNT), Encoder()), tmp_path / "out", crew)
        assert folder_bytes(tmp_path / "out") == alone
    else:
        with pytest.raises(StageError, match="no worker is left, the last ended so: far has ended"):
            engine.build(job(range(COUNT), Encoder()), tmp_path / "out", crew)
        assert not (tmp_path / "out").exists()
    assert caplog.text.count("no node is left; waits for one, for 0.0333333 minutes at most") == 1


def test_a_worker_elsewhere_that_has_the_same_store_leaves_nothing_there(tmp_path):
    """It removes each file once it is fetched, when the store's own already lies under that name."""
    wanted = job(range(COUNT), Encoder()).wanted
    *_, done = maker(tmp_path)({}, None, True)([engine.Piece(0, np.arange(*wanted.bounds[:2]))])
    (made,) = done.result
    assert made.name == wanted.paths[0].name and made.exists() and not wanted.paths[0].exists()


def test_a_stopped_worker_is_given_up(tmp_path, alone, monkeypatch, caplog):
    monkeypatch.setattr(share, "STUCK_SECONDS", 4.0)
    build(tmp_path, 2, "stops first")
    assert folder_bytes(tmp_path / "out") == alone
    assert "it has said nothing for 0.0" in caplog.text


def test_a_slow_worker_is_waited_for(tmp_path, alone, monkeypatch):
    """Its batches together take longer than it may say nothing."""
    monkeypatch.setattr(share, "STUCK_SECONDS", 4.0)
    build(tmp_path, 2, pause=0.4)
    assert folder_bytes(tmp_path / "out") == alone


def test_workers_that_die_always_end_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(share, "_TRIES", 2)
    with pytest.raises(StageError, match="2 workers ended at the same piece of work, the last on .*exit code -9"):
        build(tmp_path, 2, "dies always")
    assert not (tmp_path / "out").exists()


def test_what_a_worker_finds_wrong_ends_the_stage(tmp_path):
    with pytest.raises(StageError, match="^a bad picture was found$"):
        build(tmp_path, 2, "fails always")
    assert not (tmp_path / "out").exists()
    assert 0 < build(tmp_path, 2).encoded < COUNT  # what was done is kept


def test_the_bar_counts_what_all_encode(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    build(tmp_path, 2, "dies first", pause=0.05)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("latents: ")]
    assert len(lines) > 3 and f"latents: 100%, {COUNT} of {COUNT}, " in lines[-1]


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        ([8], "1 node: a 8/s"),
        ([8, 7.125, 9, 1], "4 nodes: d 1/s, b 7.12/s, a 8/s, c 9/s"),
        ([8, 7, 9, 1, 8.5, 8.2], "6 nodes: d 1/s, b 7/s, e 8.5/s, c 9/s"),
    ],
)
def test_of_many_nodes_the_slowest_and_the_fastest_are_shown(rates, shown):
    assert engine._shown(dict(zip("abcdef", rates))) == shown


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # its import fails
from pipeline import params
from pipeline.stage import StageError
from pipeline.workers.crew import crew
from stages import cache_latents, cache_text, index, sample, train
device = params.load("params.yaml").device
with crew(device, None, {}) as found:
    print(found)
with crew(device.model_copy(update={"workers": 2}), print, {}) as found:
    print(len(found.places()))
try:
    with crew(device.model_copy(update={"cluster": "auto"}), None, {}):
        pass
except StageError as error:
    print(error)
print([name for name in sys.modules if name.split(".")[0] == "ray" and sys.modules[name]])
"""


def test_without_a_cluster_nothing_of_ray_is_imported():
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    none, two, said, imported = done.stdout.splitlines()
    assert (none, two, imported) == ("None", "2", "[]")
    assert "Ray is not installed here" in said and "make repro RAY=1" in said
