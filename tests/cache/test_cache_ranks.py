"""Several ranks fill one cache."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import locks, progress
from pipeline.cache.building import engine, ranks
from pipeline.cache.format import shards
from pipeline.stage import StageError
from tests.cache import cache_children
from tests.cache.cache_children import finish
from tests.cache.cache_jobs import Encoder, folder_bytes, job

COUNT = 100
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 16)
    monkeypatch.setattr(ranks, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(ranks, "START_SECONDS", 2.0)
    monkeypatch.setattr(ranks, "GONE_SECONDS", 0.5)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.02)
    for name in ("RANK_ID", "RANK_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def start(tmp_path, rank: int, world: int, dies=False, delay=0.0, stops=False, pause=0.002):
    return cache_children.start(cache_children.rank, tmp_path, rank, world, COUNT, dies, delay, stops, pause)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(tmp_path / "alone store"))
        engine.build(job(range(COUNT), Encoder()), tmp_path / "alone")
    return folder_bytes(tmp_path / "alone")


@pytest.mark.parametrize("world", [2, 3, 11])
def test_any_number_of_ranks_gives_the_bytes_of_one(tmp_path, alone, world):
    assert finish([start(tmp_path, rank, world, delay=0.01 * (rank % 3)) for rank in range(world)]) == [0] * world
    assert folder_bytes(tmp_path / "out") == alone
    counts = [[int(n) for n in (tmp_path / f"rank{rank}").read_text().split()] for rank in range(world)]
    assert sum(encoded for encoded, _ in counts) == COUNT
    assert all(encoded == distinct for encoded, distinct in counts)


def test_a_dead_rank_costs_its_shards_and_a_second_run_finishes_them(tmp_path, alone):
    assert finish([start(tmp_path, rank, 2, dies=rank == 1) for rank in range(2)]) == [1, 9]
    assert "4 of 8 shards are missing and rank 1 of 2 is gone" in (tmp_path / "error0").read_text()
    assert not (tmp_path / "out").exists()
    encoder = Encoder()
    report = engine.build(job(range(COUNT), encoder), tmp_path / "out")
    assert 0 < report.encoded < COUNT and report.shards_written == 4
    assert folder_bytes(tmp_path / "out") == alone


def test_a_rank_that_never_starts_is_named(tmp_path):
    assert finish([start(tmp_path, 0, 2)]) == [1]
    assert "rank 1 of 2 is gone" in (tmp_path / "error0").read_text()


def test_a_late_rank_is_waited_for(tmp_path, alone):
    assert finish([start(tmp_path, 0, 2), start(tmp_path, 1, 2, delay=0.5)]) == [0, 0]
    assert folder_bytes(tmp_path / "out") == alone


def test_the_same_rank_twice_waits_and_finds_its_shards(tmp_path, alone):
    """Two queue tasks, of two ranks each."""
    first = [start(tmp_path, rank, 2, delay=0.2) for rank in range(2)]
    (tmp_path / "second").mkdir()
    second = [start(tmp_path / "second", rank, 2, delay=0.4) for rank in range(2)]
    assert finish(first + second) == [0] * 4
    for folder in (tmp_path, tmp_path / "second"):
        assert folder_bytes(folder / "out") == alone
    counts = [
        int((folder / f"rank{rank}").read_text().split()[0])
        for folder in (tmp_path, tmp_path / "second")
        for rank in range(2)
    ]
    assert counts[0] and counts[1] and counts[2:] == [0, 0]


def test_a_stopped_rank_is_named_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "STUCK_SECONDS", 3.0)
    children = [start(tmp_path, 0, 2), start(tmp_path, 1, 2, stops=True)]
    try:
        assert finish(children[:1]) == [1]
        said = (tmp_path / "error0").read_text()
        assert (
            f"rank 1 of 2 (PID {children[1].pid} on {socket.gethostname()}) is alive and has done nothing for" in said
        )
        assert not (tmp_path / "out").exists()
    finally:
        children[1].kill()
        children[1].join()
    report = engine.build(job(range(COUNT), Encoder()), tmp_path / "out")
    assert 0 < report.encoded < COUNT and report.shards_written == 4  # what rank 0 did is kept


def test_a_slow_rank_is_waited_for(tmp_path, monkeypatch, alone):
    """Its batches together take longer than a rank may do nothing."""
    monkeypatch.setattr(ranks, "STUCK_SECONDS", 3.0)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.01)
    assert finish([start(tmp_path, 0, 2), start(tmp_path, 1, 2, pause=0.4)]) == [0, 0]
    assert folder_bytes(tmp_path / "out") == alone


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, (0, 1)),
        ({"RANK_ID": "3", "RANK_SIZE": "8"}, (3, 8)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK_ID": "0"}, (0, 1)),
    ],
)
def test_the_rank_comes_from_the_launcher(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.from_environment() == expected


@pytest.mark.parametrize(
    "environment", [{"RANK_SIZE": "2"}, {"RANK_ID": "2", "RANK_SIZE": "2"}, {"RANK_ID": "x", "RANK_SIZE": "2"}]
)
def test_a_broken_launch_is_an_error(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StageError, match="RANK_ID"):
        ranks.from_environment()


def run(command: list[str], folder, **environment) -> subprocess.CompletedProcess:
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=folder, env=os.environ | paths | environment, capture_output=True, text=True, timeout=60
    )


def check_three_ranks(tmp_path, alone):
    counts = [[int(n) for n in (tmp_path / f"rank{rank}").read_text().split()] for rank in range(3)]
    assert sum(encoded for encoded, _ in counts) == COUNT and all(encoded > 0 for encoded, _ in counts)
    assert folder_bytes(tmp_path / "out") == alone


def test_a_stage_starts_its_ranks_itself(tmp_path, alone):
    done = run([sys.executable, "-m", "tests.cache.cache_children"], tmp_path)
    assert done.returncode == 0, done.stderr
    check_three_ranks(tmp_path, alone)


def test_a_rank_that_the_stage_started_and_that_fails_is_quoted(tmp_path):
    done = run([sys.executable, "-m", "tests.cache.cache_children"], tmp_path, FAILS="1")
    assert done.returncode == 1
    assert "rank 1 of 3 failed with exit code 1:" in done.stderr and "rank 1 found a bad picture" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_rank_that_the_stage_started_and_that_stops_is_quoted(tmp_path):
    done = run([sys.executable, "-m", "tests.cache.cache_children"], tmp_path, STOPS="1")
    assert done.returncode == 1
    assert "rank 1 of 3 (PID" in done.stderr and "has done nothing for" in done.stderr
    assert "rank 1 goes no further" in done.stderr.split("The last that it said:")[1]
    assert not (tmp_path / "out").exists()


def test_msrun_may_start_them(tmp_path, alone):
    """Its scheduler runs the script too, as rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    msrun = [str(Path(sys.executable).parent / "msrun"), "--worker_num=3", "--local_worker_num=3", "--join=True"]
    script = str(ROOT / "tests/cache/cache_children.py")
    done = run([*msrun, f"--master_port={port}", f"--log_dir={tmp_path / 'logs'}", script], tmp_path)
    assert done.returncode == 0, done.stderr
    check_three_ranks(tmp_path, alone)


def test_the_bar_of_rank_0_counts_what_all_encode(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    other = start(tmp_path, 1, 2, pause=0.1)
    monkeypatch.setenv("RANK_ID", "0")
    monkeypatch.setenv("RANK_SIZE", "2")
    report = engine.build(job(range(COUNT), Encoder()), tmp_path / "out")
    assert finish([other]) == [0] and report.encoded < COUNT
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("latents: ")]
    assert f"latents: 100%, {COUNT} of {COUNT}, " in lines[-1]
    waited = [line for line in lines if f" of {COUNT}, " in line and f", {COUNT} of" not in line]
    assert any(int(line.split()[2]) > report.encoded for line in waited)  # while rank 0 itself has nothing to do
