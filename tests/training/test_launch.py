"""pipeline/training/launch.py: each run of one training in its turn, however its ranks were started. That ranks train is
in tests/training/test_distributed.py."""

import signal
import socket
import threading
import time

import pytest

from pipeline import locks
from pipeline.stage import UNDER_STAGE, StageError
from pipeline.training import launch
from tests.training.training_samples import params

MSRUN = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "4", "MS_SCHED_HOST": "10.0.0.1", "MS_SCHED_PORT": "8118"}
SCHEDULER = MSRUN | {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prterun-7"}
TABLE = {"RANK_TABLE_FILE": "/etc/table.json", "RANK_SIZE": "8"}
NODES = {"device.workers": 2, "device.nodes": 2, "device.master": "10.0.0.1:8118"}


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.02)
    for name in {*MSRUN, *MPIRUN, *TABLE, "RANK_ID", "OMPI_COMM_WORLD_RANK", UNDER_STAGE}:
        monkeypatch.delenv(name, raising=False)


def started(monkeypatch, environment, settings):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return params(**settings).device


@pytest.mark.parametrize(
    ("environment", "settings", "ranks", "first"),
    [
        ({}, {}, 1, True),
        ({"RANK_SIZE": "3"}, {}, 1, True),  # of another program
        ({}, NODES, 4, True),
        ({}, NODES | {"device.node_rank": 1}, 4, False),
        (MSRUN | {"RANK_ID": "0"}, {}, 4, True),
        (MSRUN | {"RANK_ID": "1"}, {}, 4, False),
        (SCHEDULER, {}, 4, False),
        (MPIRUN | {"OMPI_COMM_WORLD_RANK": "0"}, {}, 2, True),
        (MPIRUN | {"OMPI_COMM_WORLD_RANK": "1"}, {}, 2, False),
        (TABLE | {"RANK_ID": "7"}, {}, 8, False),
    ],
)
def test_how_many_ranks_there_are_and_which_is_the_first(monkeypatch, environment, settings, ranks, first):
    device = started(monkeypatch, environment, settings)
    assert (launch.world_size(device), launch.first(device)) == (ranks, first)


def waits(device, seconds: float) -> tuple[bool, threading.Thread]:
    """Whether a process that asks for its turn does not get it in so long, and the thread in which it asks."""
    got = threading.Event()

    def ask():
        with launch.turn("t", device):
            got.set()

    thread = threading.Thread(target=ask)
    thread.start()
    return not got.wait(seconds), thread


@pytest.mark.parametrize(
    ("environment", "settings", "own"),
    [
        ({}, NODES | {"device.node_rank": 1}, "10.0.0.1:8118"),
        (MSRUN | {"RANK_ID": "1"}, {}, "10.0.0.1:8118"),
        (SCHEDULER, {}, "10.0.0.1:8118"),
        (MPIRUN | {"OMPI_COMM_WORLD_RANK": "1"}, {}, "prterun-7"),
        (TABLE | {"RANK_ID": "7"}, {}, "/etc/table.json"),
    ],
)
def test_further_ranks_and_nodes_wait_for_other_runs_and_not_for_their_own(monkeypatch, environment, settings, own):
    device = started(monkeypatch, environment, settings)
    for job, wanted in (("another", True), (own, False)):
        with locks.lock("train-t", "trains the same", job):
            waited, thread = waits(device, 0.4 if wanted else 20)
        thread.join(20)
        assert waited is wanted and not thread.is_alive()
    assert not locks.held("train-t")


@pytest.mark.parametrize(
    ("environment", "settings", "own"),
    [
        ({}, {}, ""),
        ({}, NODES, "10.0.0.1:8118"),
        (MSRUN | {"RANK_ID": "0"}, {}, "10.0.0.1:8118"),
        (MPIRUN | {"OMPI_COMM_WORLD_RANK": "0"}, {}, "prterun-7"),
    ],
)
def test_the_first_holds_the_lock_under_the_name_of_its_run(monkeypatch, environment, settings, own):
    device = started(monkeypatch, environment, settings)
    with locks.lock("train-t", "trains the same", own):  # of a run of the same name too: there is one first
        waited, thread = waits(device, 0.4)
    thread.join(20)
    assert waited and not thread.is_alive()
    with launch.turn("t", device):
        assert locks.held("train-t") and (not own or locks.holder("train-t").job == own)


def test_ranks_that_the_stage_started_are_under_its_lock(monkeypatch):
    device = started(monkeypatch, MSRUN | {"RANK_ID": "0", UNDER_STAGE: "1"}, {})
    with locks.lock("train-t", "trains the same", "PID 1"), launch.turn("t", device):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"device.master": "no-such-host.invalid:8118"},
            "no address of no-such-host.invalid is known on this computer",
        ),
        ({"device.master": f"{'a' * 70}:8118"}, "no address of aaa"),
        ({"device.master": "203.0.113.7:8118"}, "cannot listen there: it is no address of this computer"),  # RFC 5737
        ({"device.nodes": 2, "device.node_rank": 1, "device.master": "own-name:8118"}, "own-name means 127.0.1.1 on"),
    ],
)
def test_a_master_at_which_ranks_cannot_meet_stops_before_they_start(monkeypatch, tmp_path, settings, said):
    resolve = socket.getaddrinfo
    own = {"own-name": "127.0.1.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: resolve(own.get(host, host), *args, **more))
    monkeypatch.setattr(launch, "command", lambda *_: pytest.fail("was started"))
    with pytest.raises(StageError, match=said) as error:
        launch.start(params(**{"device.workers": 2} | settings).device, [], tmp_path / "logs")
    assert str(error.value).startswith(f"device.master is {settings['device.master']}, and ")
    assert "wanted an address of node 0" in str(error.value)


def test_a_port_that_another_process_has(monkeypatch):
    monkeypatch.setattr(launch, "_PORT_WAIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        device = params(**{"device.master": f"127.0.0.1:{server.getsockname()[1]}"}).device
        with pytest.raises(StageError, match="another process has this port"):
            launch.check_master(device)
    launch.check_master(device)


def test_a_node_other_than_the_first_asks_for_no_address_of_its_own():
    launch.check_master(params(**{"device.nodes": 2, "device.node_rank": 1, "device.master": "203.0.113.7:1"}).device)


@pytest.mark.parametrize(
    ("code", "said", "error"),
    [
        (-9, "graph 1 of 3", launch.RankKilled),
        (1, "Traceback (most recent call last)", StageError),
        (-6, "train.py: step 1: the loss is nan", StageError),  # of the other rank, which waited for this one
    ],
)
def test_a_rank_that_a_signal_ended_is_no_fault_of_the_trainings(tmp_path, monkeypatch, code, said, error):
    """By what msrun says of it."""
    told = f"Worker process 7 exit with exception. Error code: {code}."
    line = ["sh", "-c", f"echo '{said}' > {tmp_path}/worker_0.log; echo '{told}'; sleep 1; exit 1"]
    monkeypatch.setattr(launch, "command", lambda *_: line)
    with pytest.raises(StageError, match="a training process failed") as found:
        launch.ranks(params().device, ["stages/train.py"], tmp_path)
    assert type(found.value) is error


def test_a_run_is_ended_where_sigint_is_blocked(tmp_path, monkeypatch):
    """As it is in Ray's processes, whose children inherit that."""
    told = "Worker process 7 exit with exception. Error code: 1."
    monkeypatch.setattr(launch, "command", lambda *_: ["sh", "-c", f"echo '{told}'; exec sleep 100"])
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    begun = time.monotonic()
    try:
        with pytest.raises(StageError, match="a training process failed"):
            launch.ranks(params().device, ["stages/train.py"], tmp_path)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert time.monotonic() - begun < 50
