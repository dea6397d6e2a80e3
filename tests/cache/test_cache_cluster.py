"""The caches on a Ray cluster of two nodes, which are raylets of this computer."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline import progress, store
from pipeline.cache.building import engine
from pipeline.cache.format import shards
from pipeline.stage import PROJECT, StageError
from pipeline.workers import share
from pipeline.workers.crew import crew
from pipeline.workers.share import Done
from tests.cache import cache_jobs, cache_workers
from tests.cache.cache_jobs import Encoder, folder_bytes, job
from tests.cache.cache_workers import COUNT, ROWS_PER_SHARD, encoded, maker, workers

ray = pytest.importorskip("ray", reason="Ray is not installed here: pip install -r requirements-ray.txt")


@pytest.fixture(autouse=True, scope="module")
def _sent():
    """The nodes get no tests."""
    for module in (cache_jobs, cache_workers, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", ROWS_PER_SHARD)
    monkeypatch.setattr(share, "_LOOK_SECONDS", 0.2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(folder / "store"))
        patch.setattr(shards, "ROWS_PER_SHARD", ROWS_PER_SHARD)
        engine.build(job(range(COUNT), Encoder()), folder / "out")
    return folder_bytes(folder / "out")


def device(cluster, target: str = "auto", workers: int = 1) -> SimpleNamespace:
    return SimpleNamespace(workers=workers, cluster=cluster.address, target=target)


def build(tmp_path, cluster, behave: str = "", pause: float = 0.002) -> engine.Report:
    def no_encoder():
        pytest.fail("this process encodes")

    with crew(device(cluster), maker(tmp_path, behave, pause), {}) as found:
        return engine.build(job(range(COUNT), Encoder(), make_encoder=no_encoder), tmp_path / "out", found)


def test_the_nodes_give_the_bytes_of_one_process(tmp_path, nodes, alone, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    report = build(tmp_path, nodes, pause=0.2)
    assert (report.encoded, report.shards_written, report.shards) == (COUNT, 8, 8)
    assert folder_bytes(tmp_path / "out") == alone
    found = encoded(tmp_path)
    assert os.getpid() not in found
    assert sum(len(set(names)) for names in found.values()) == COUNT == len(set().union(*found.values()))
    made = workers(tmp_path)
    assert made.keys() == found.keys() and {one["encoders"] for one in made.values()} == {1}
    assert {one["node"] for one in made.values()} == {node.node_id for node in nodes.list_all_nodes()}
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("latents: ")][-1]
    assert f"latents: 100%, {COUNT} of {COUNT}, " in last and re.search(r"nodes?: 127\.0\.0\.\d .*/s", last)
    assert build(tmp_path, nodes).encoded == 0


def test_deaths_cost_shards_in_flight_and_a_node_that_joins_gets_work(tmp_path, nodes, alone, caplog):
    """A worker is killed, then its whole node, while a third one joins, whose two workers have an NPU each."""

    with crew(device(nodes), maker(tmp_path, "dies first", pause=0.4), {}) as found, ThreadPoolExecutor(1) as behind:
        built = behind.submit(engine.build, job(range(COUNT), Encoder()), tmp_path / "out", found)
        while not (tmp_path / "went wrong").exists() and not built.done():
            time.sleep(0.1)
        # In this thread, as Ray wants it.
        (tmp_path / "hold").touch()
        third = nodes.add_node(
            num_cpus=1, object_store_memory=100 << 20, node_ip_address="127.0.0.4", resources={"NPU": 2},
            env_vars={"DEVICE_ID": "5"},
        )  # fmt: skip
        second = next(node for node in nodes.list_all_nodes() if node.node_ip_address == "127.0.0.3")
        nodes.remove_node(second, allow_graceful=False)
        try:
            until = time.monotonic() + 120
            while len(joined := [one for one in workers(tmp_path).values() if one["node"] == third.node_id]) < 2:
                assert not built.done() and time.monotonic() < until
                time.sleep(0.1)
        finally:
            (tmp_path / "hold").unlink()
        report = built.result(300)
    assert {one["ASCEND_RT_VISIBLE_DEVICES"] for one in joined} == {"0", "1"}
    assert {one["DEVICE_ID"] for one in joined} == {None}
    assert report.shards_written == 8 and folder_bytes(tmp_path / "out") == alone
    # a shard that was made and not yet fetched goes with its node
    again = [record for record in caplog.records if record.getMessage().startswith("encoded again: ")]
    assert COUNT <= report.encoded <= COUNT + ROWS_PER_SHARD * len(again)
    assert "a worker has ended: The actor died" in caplog.text


def test_what_a_node_finds_wrong_ends_the_stage_and_names_it(tmp_path, nodes):
    with pytest.raises(StageError, match=r"^127\.0\.0\.[234]: a bad picture was found$"):
        build(tmp_path, nodes, "fails always")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", ["auto", "Ascend"])
def test_no_cpu_takes_over_when_the_last_npu_is_lost(nodes, monkeypatch, asked):
    """Its last bits are others. When the NPU is there again it has work again."""
    from pipeline.workers import cluster

    alive = []
    monkeypatch.setattr(ray, "nodes", lambda: [
        {"NodeName": name, "NodeID": name, "Alive": name in alive, "Resources": {"CPU": 8.0} | npus}
        for name, npus in (("head", {}), ("npus", {"NPU": 2.0}))
    ])  # fmt: skip
    monkeypatch.setattr(ray, "put", lambda made: made)
    alive[:] = "head", "npus"
    actors = cluster.Actors(device(nodes, asked), None)
    both = actors.places()
    assert [place.node for place in both] == ["npus", "npus"]
    alive.remove("npus")
    assert actors.places() == []
    alive.append("npus")
    assert actors.places() == both
    alive.remove("npus")
    if asked == "auto":
        assert cluster.target(device(nodes, asked)) == "CPU"
    else:
        with pytest.raises(StageError, match="no node of the cluster has the resource NPU"):
            cluster.target(device(nodes, asked))


@dataclass(frozen=True)
class Elsewhere:
    """A folder of pictures that no node sees under its name."""

    place: str
    root: str = "/not/on/this/node"

    def read(self, path: str) -> bytes:
        return (Path(self.place) / path).read_bytes()


def make(files, source, away):
    def work(unit: str):
        made = store.root() / "made"
        made.write_bytes(source.read(unit) + files["weights"].read_bytes())
        yield 1
        yield Done([made])

    return work


def listening(pid: int) -> set:
    return {one.laddr for one in psutil.Process(pid).net_connections("inet") if one.status == psutil.CONN_LISTEN}


def test_pictures_come_by_way_of_the_first_node(tmp_path, nodes):
    """Through Ray's connections: our code listens at no port."""
    before = len(listening(os.getpid()))
    for name in ("a", "b", "weights"):
        (tmp_path / name).write_text(name)
    with crew(device(nodes), make, {"weights": tmp_path / "weights"}, Elsewhere(str(tmp_path))) as found:
        results = share.share(found, ["a", "b"], lambda *_: None)
        made = [next(results)[0].read().tobytes()]
        started = {process.pid: process.name() for process in psutil.Process().children(recursive=True)}
        ours = {pid: name for pid, name in started.items() if name.startswith(("ray::_First", "ray::_Actor"))}
        assert {"ray::_First", "ray::_Actor"} <= {name.partition(".")[0] for name in ours.values()}
        # by which Ray calls them
        assert [len(listening(pid)) for pid in (*ours, os.getpid())] == [1] * len(ours) + [before + 1]
        at = {one.ip for pid, name in started.items() if name == "raylet" for one in listening(pid)}
        assert at and at <= {"::", "0.0.0.0"}  # docs/cluster.md says so, whatever address they were given
        made += [file.read().tobytes() for (file,) in results]
        assert sorted(made) == [b"aweights", b"bweights"]
        with pytest.raises(StageError, match="No such file.*/c'"):
            list(share.share(found, ["c"], lambda *_: None))


CODE = """
import shutil, sys
from types import SimpleNamespace
from pipeline.workers.crew import tasks

def edited(source):
    import pipeline.npu, stages.index
    return pipeline.npu.EDITED, pipeline.npu.__file__, stages.index.__file__

with tasks(SimpleNamespace(cluster=sys.argv[1]), edited, SimpleNamespace(root="")) as given:
    for folder in ("pipeline", "stages"):
        shutil.rmtree(folder)  # as on a node that does not see this computer's disk
    print(*given.submit().result(), sep="\\n")
"""


def test_the_nodes_run_the_code_of_the_project_where_the_stage_began(tmp_path, nodes):
    """And not that of their own working folder, which has this project's."""
    for folder in ("pipeline", "stages"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "pipeline/npu.py", "a") as file:
        file.write("EDITED = 'edited'\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", CODE, nodes.address]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found, *files = done.stdout.split()
    assert found == "edited" and not any(Path(file).is_relative_to(PROJECT) for file in files)


def test_who_does_not_have_the_clusters_token_is_refused(nodes):
    code = "import sys\nfrom pipeline.workers import cluster\nwith cluster.connected(sys.argv[1]):\n    pass"
    environment = {**os.environ, "RAY_AUTH_TOKEN": "f" * 32, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    command = [sys.executable, "-c", code, nodes.address]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300)
    assert "Authentication token is missing or incorrect" in done.stderr
    assert f"StageError: device.cluster is {nodes.address}, and no Ray cluster answers there" in done.stderr


def test_a_cluster_that_does_not_answer_is_said(monkeypatch):
    from pipeline.workers import cluster

    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "1")
    monkeypatch.setattr(cluster.ray, "init", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("nobody listens")))
    with pytest.raises(
        StageError, match="device.cluster is auto, and no Ray cluster answers there .nobody listens.*ray"
    ):
        with cluster.connected("auto"):
            pass


def test_an_address_where_nobody_listens_is_said_at_once():
    from pipeline.workers import cluster

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(StageError, match=f"device.cluster is {address}, and no Ray.*refused.*RAY_AUTH_MODE=token"):
            with cluster.connected(address):
                pass


@pytest.mark.parametrize(
    ("target", "npus", "places"),
    [("auto", (2, 0), ["a0", "a1"]), ("auto", (0, 0), ["a0", "a1", "a2", "b0", "b1", "b2"]), ("CPU", (2, 0), 6),
     ("Ascend", (1, 1), ["a0", "b0"]), ("Ascend", (0, 0), None), ("CPU", None, None), ("auto", None, None)],
)  # fmt: skip
def test_where_workers_can_be(monkeypatch, target, npus, places):
    """npus: of both nodes, which have no CPUs either where it is None."""
    from pipeline.workers import cluster

    listed = [
        {
            "Alive": alive,
            "NodeID": name,
            "NodeName": name,
            "Resources": ({"CPU": 4.0} if npus else {"memory": 1.0}) | ({"NPU": float(count)} if count else {}),
        }
        for name, count, alive in zip(("a", "b", "dead"), (*(npus or (0, 0)), 8), (True, True, False), strict=True)
    ]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: listed)
    monkeypatch.setattr(cluster.ray, "put", lambda value: value)
    device = SimpleNamespace(target=target, workers=3)
    if places is None:
        resources = {"Ascend": "NPU", "CPU": "CPU", "auto": "NPU or CPU"}[target]
        with pytest.raises(StageError, match=f"is {target}, and no node of the cluster has the resource {resources}:"):
            cluster.Actors(device, make)
    else:
        names = [f"{place.node}{place.number}" for place in cluster.Actors(device, make).places()]
        assert names == places or len(names) == places
