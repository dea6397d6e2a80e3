"""The index over the nodes of a Ray cluster."""

import hashlib
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.data.examine import look
from pipeline.data.index import index
from pipeline.data.sources import open_source
from pipeline.workers.crew import tasks

ray = pytest.importorskip("ray", reason="Ray is not installed here: pip install -r requirements-ray.txt")


@pytest.fixture(autouse=True, scope="module")
def _sent():
    """The nodes get no tests."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(40):
        generator = np.random.default_rng(number)
        pixels = generator.integers(0, 256, (64 + number, 96, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"caption {number}")
    (folder / "7.png").write_bytes((folder / "8.png").read_bytes()[:400])
    return folder


def test_the_nodes_give_the_bytes_of_this_computer(tmp_path, data, nodes, monkeypatch):
    found = []
    for name, cluster in (("here", None), ("nodes", nodes.address)):
        monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / f"store of {name}"))
        source = open_source(str(data))
        with tasks(SimpleNamespace(cluster=cluster), look, source) as given:
            assert (given is None) == (cluster is None)
            if given:
                monkeypatch.setattr("pipeline.data.examine.look", lambda *_: pytest.fail("looked at in this process"))
            summary = index(source, tmp_path / name, [(64, 64)], 32, None, 10**6, 0.1, 1, tasks=given)
        assert (summary.read, summary.used) == (40, 39)
        out = sorted((tmp_path / name).iterdir())
        found.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out})
    assert len(found[0]) == 7 and found[0] == found[1]


def fails(source, how: str):
    if how == "crash":
        os._exit(1)
    return source.read("nothing.png")


def test_what_goes_wrong_on_a_node_is_raised_here(data, nodes, monkeypatch):
    from pipeline.workers import tasks as module

    monkeypatch.setattr(module, "_RETRIES", 0)
    with tasks(SimpleNamespace(cluster=nodes.address), fails, open_source(str(data))) as given:
        with pytest.raises(FileNotFoundError, match="nothing.png"):
            given.submit("read").result()
        with pytest.raises(BrokenProcessPool):
            given.submit("crash").result()
