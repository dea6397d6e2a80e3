"""Training on the nodes of a Ray cluster, which are raylets of this computer with a store each, on the stub of the UNet."""

import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.stage import StageError
from pipeline.training.layout import Layout, layout, split
from stages import train as stage
from tests.training.test_distributed import SETTINGS, TWO_SHARDED, port
from tests.training.test_live_runs import SETTINGS as WITH_PICTURES
from tests.training.test_live_runs import with_pictures
from tests.training.test_resume import ends, start, train
from tests.training.training_samples import ROOT, params, share_graphs, write_stub, write_workspace

ray = pytest.importorskip("ray", reason="Ray is not installed here: pip install -r requirements-ray.txt")


TWO = [
    *("device.workers=2", "train.batch_size=2", "train.gradient_accumulation_steps=2", "train.shard_optimizer=true"),
    *("train.checkpointing_steps=2", "train.steps=12"),  # so that a state is seen before the end
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("on_nodes"), count=30, buckets=((64, 64), (64, 32)))
    write_stub(root / "outs/convert/unet.ckpt")
    return root


@pytest.fixture(scope="module")
def unbroken(workspace, graphs, tmp_path_factory):
    """Two ranks of this computer."""
    train(workspace, share_graphs(tmp_path_factory.mktemp("unbroken"), graphs), *SETTINGS, *TWO, port())
    return ends(workspace)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, graphs):
    """The node where the stage begins, whose Ray has the stage's store and is started beside one that is Ray's head alone;
    a second node; and start(address, store) for more. Each has a store of its own."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # for rank_on_stub.py; the project's code comes by Ray
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests/training/one_computer'}")
        first = {"num_cpus": 0, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.2"}
        cluster = Cluster(initialize_head=True, head_node_args={**first, "include_dashboard": False})

        def start(address, store):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PIPELINE_STORE", str(share_graphs(store, graphs)))
                return cluster.add_node(num_cpus=1, object_store_memory=100 << 20, node_ip_address=address)

        cluster.start = start
        cluster.own, cluster.store = (tmp_path_factory.mktemp(name) / "store" for name in ("own", "second"))
        cluster.first = start("127.0.0.2", cluster.own)
        start("127.0.0.3", cluster.store)
        yield cluster
    cluster.shutdown()


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ([8, 8, 8], Layout(2, 8, 4, 1)),
        ([8], Layout(1, 8, 4, 2)),
        ([8, 7], Layout(1, 8, 4, 2)),  # 7 on each do not divide 64
        ([4, 4], Layout(2, 4, 4, 2)),
        ([2, 2, 1], Layout(2, 2, 4, 4)),
        ([3], Layout(1, 2, 4, 8)),
        ([1], Layout(1, 1, 4, 16)),
    ],
)
def test_the_ranks_that_are_left_share_the_batch_evenly(places, wanted):
    settings = params(**{"train.batch_size": 4, "device.workers": 8, "device.nodes": 2, "device.cluster": "auto"})
    found = layout(settings.device, settings.train, places)
    assert found == wanted
    train = split(settings, found).train
    assert found.ranks * train.batch_size * train.gradient_accumulation_steps == 64


def test_a_sink_is_left_where_steps_are_accumulated():
    sink = {"device.sink_size": 10, "device.target": "Ascend", "index.buckets": False}
    settings = params(**sink | {"device.workers": 2, "device.cluster": "auto"})
    assert split(settings, Layout(1, 2, 4, 1)).device.sink_size == 10
    assert split(settings, Layout(1, 1, 4, 2)).device.sink_size == 0


def left(store):
    """What trainings have left in a node's store."""
    return {path for pattern in ("train/*", "trained/*", "nodes/train-*") for path in store.glob(pattern)}


def test_nodes_read_the_pictures_themselves(tmp_path, graphs, cluster):
    """A rank each on the node where the stage began and on another, to the end."""
    workspace, settings = with_pictures(tmp_path / "live"), [*WITH_PICTURES, *TWO_SHARDED, "train.steps=2"]
    train(workspace, share_graphs(tmp_path / "here", graphs), *settings, port())
    here, before = ends(workspace), left(cluster.store)
    settings += ["device.nodes=2", "device.min_nodes=2", "device.workers=1", f"device.cluster={cluster.address}"]
    train(workspace, cluster.own, *settings)
    assert ends(workspace) == here
    assert left(cluster.store) == before and not list(cluster.own.glob("nodes/train-*"))


def test_what_a_rank_finds_wrong_ends_the_stage_and_names_its_node(workspace, tmp_path, cluster):
    settings = ["train.learning_rate=1000000.0", "train.weight_decay=0.0", f"device.cluster={cluster.address}"]
    said = train(workspace, tmp_path / "store", *SETTINGS, *TWO, *settings, code=1)
    assert re.search(r"training_samples.py: 127\.0\.0\.[23]: a training process failed", said)
    assert "Its samples (content hashes" in said and said.count("2 ranks on") == 1
    assert not (workspace / "outs/train/weights").exists()


def test_what_the_nodes_cannot_do_is_said_before_they_are_asked(workspace, tmp_path, cluster):
    settings = ["train.precision=bfloat16", "device.target=auto", f"device.cluster={cluster.address}"]
    said = train(workspace, tmp_path / "store", *SETTINGS, *settings, code=1)
    assert "train.precision: bfloat16 needs an Ascend NPU and no node of the cluster has one" in said


def test_as_many_nodes_are_waited_for_as_are_wanted(monkeypatch, caplog):
    from pipeline.training import on_nodes

    nodes, ended, answers = ["a", "b", "c"], [], iter([1, 1, 2])
    here = [on_nodes._Here(name, places, None) for name, places in zip(nodes, (1, 2, 2), strict=True)]
    monkeypatch.setattr(on_nodes, "_asked", lambda device: here)
    monkeypatch.setattr(on_nodes, "_answers", lambda asked, device: asked[: next(answers)])
    monkeypatch.setattr(on_nodes, "_end", lambda nodes: ended.append([node.name for node in nodes]))
    monkeypatch.setattr(on_nodes, "_LOOK_SECONDS", 0.0)
    with on_nodes._gathered(
        params(**{"device.min_nodes": 2, "device.nodes": 2, "device.cluster": "auto"}).device
    ) as found:
        assert [node.name for node in found] == ["b", "a"] and ended == [nodes, nodes]
    assert ended == [nodes] * 3 and caplog.text.count("waits for nodes: 1 answer, device.min_nodes is 2") == 1


@pytest.mark.parametrize(
    ("images", "there"),
    [("s3://bucket/{0..9}.tar", "s3://bucket/{0..9}.tar"), ("my.urls", "pictures.urls"), ("images", "HERE/images")],
)
def test_where_nodes_look_for_the_pictures(tmp_path, monkeypatch, images, there):
    """A list of URLs comes to them; a disk that they do not have is said."""
    monkeypatch.chdir(tmp_path)
    settings = params(**{"data.images": images, "train.source": "pictures"})
    given, files = stage._for_nodes(settings)
    assert given.data.images == there.replace("HERE", str(tmp_path))
    assert files.get("pictures.urls") == (Path(images) if images.endswith(".urls") else None)
    if images == "images":
        from pipeline.training.node import Node

        prepare = Node.__ray_metadata__.modified_class.prepare
        monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
        sent = SimpleNamespace(unpack=lambda: ({}, None))
        with pytest.raises(StageError, match=f"this node does not see data.images, {tmp_path}/images: give a URL"):
            prepare(SimpleNamespace(), sent, "name", None, given.model_dump(), given.device)


def test_nodes_train_together_and_one_that_dies_does_not_end_the_run(workspace, tmp_path, cluster, unbroken):
    """A rank each on the node where the stage began and on another; when the first dies, on the other and one that joins.
    No state is lost with it: it is in the store of the node where the stage began."""
    before, own = left(cluster.store), cluster.own
    shutil.rmtree(own / "train", ignore_errors=True)
    settings = ["device.nodes=2", "device.min_nodes=2", "device.workers=1", f"device.cluster={cluster.address}"]
    run, slices = start(workspace, own, *SETTINGS, *TWO, *settings), {"0-of-2.ckpt", "1-of-2.ckpt"}
    until = time.monotonic() + 300
    while not list(own.glob("train/*/step-*")) or not slices <= {path.name for path in own.glob("train/*/slices-*/*")}:
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.1)
    assert not (workspace / "outs/train/weights").exists()
    assert not list(cluster.store.glob("train/*/step-*"))
    curves = (workspace / "outs/train/live/log.jsonl").read_text()
    cluster.remove_node(cluster.first, allow_graceful=False)
    joined = tmp_path / "joined"
    cluster.start("127.0.0.4", joined)
    said = run.wait()
    assert run.returncode == 0, said
    assert "2 ranks on 127.0.0.2, 127.0.0.3, each with batches of 2 x 2" in said and "127.0.0.2 is lost" in said
    assert "2 ranks on 127.0.0.3, 127.0.0.4" in said and "goes on after step" in said
    assert "train/loss" in curves
    assert ends(workspace) == unbroken
    assert not list(own.glob("train/*/s*-*"))  # a finished run's states
    assert left(cluster.store) == before and not left(joined)
