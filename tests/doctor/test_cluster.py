"""The doctor on the cluster of device.cluster."""

import re
import sys

import pytest

from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, look
from tests.doctor.doctor_samples import only
from tests.training.training_samples import params


def test_a_cluster_that_is_not_there(monkeypatch):
    from pipeline.doctor import cluster

    settings = params(**{"device.cluster": "auto"})
    monkeypatch.delitem(sys.modules, "pipeline.workers.cluster", raising=False)
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "ray", None)
        found = only(look("cluster", cluster.cluster, settings))
    assert found.state == BAD and "Ray is not installed here" in found.found and "`make repro RAY=1`" in found.found
    ray = pytest.importorskip("ray", reason="Ray is not installed here")

    def none(*given, **options):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", none)
    found = only(look("cluster", cluster.cluster, settings))
    assert found.state == BAD and "no Ray cluster answers there" in found.found and "`ray start --head" in found.found


def test_the_doctor_looks_at_each_node(nodes, monkeypatch):
    """Which has this process's packages; where it seems to have others, they are named."""
    from pipeline.doctor import cluster

    settings = params(**{"device.cluster": nodes.address})
    found = only(cluster.cluster(settings))
    assert found.state == GOOD and found.found.startswith("2 nodes, 2 workers")
    for changed, state, said in (
        ({"device.nodes": 3}, DOUBTFUL, "training has 2 ranks, with batches of 6 x 2"),
        ({"device.nodes": 3, "device.min_nodes": 3}, BAD, "2 nodes can train"),
    ):
        wanted = params(**{"device.cluster": nodes.address, "train.batch_size": 8} | changed)
        found = only(cluster.cluster(wanted))
        assert (found.state, found.found) == (state, said)
    found = cluster.cluster(params(**{"device.cluster": nodes.address, "train.source": "pictures"}))
    assert [one.state for one in found] == [DOUBTFUL] and "data.images" in found[0].found
    found = cluster.cluster(params(**{"device.cluster": nodes.address, "device.target": "CPU", "device.workers": 2}))
    assert sorted(one.found for one in found[:2]) == [
        f"{n} has 1 CPUs for 2 workers (device.workers)" for n in ("127.0.0.2", "127.0.0.3")
    ]
    monkeypatch.setattr(cluster, "pins", lambda file: [("mindspore", "2.10.0"), ("pillow", "1")])
    monkeypatch.setattr(cluster, "_here", lambda names: {"mindspore": "2.10.0", "pillow": "1.0"})
    for finding in cluster.cluster(settings):
        assert finding.state == BAD and re.match(r"127\.0\.0\.\d: pillow \d[\d.]* \(1\.0\)$", finding.found)
