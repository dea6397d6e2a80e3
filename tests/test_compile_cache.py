"""Compiled graphs from the store: taken when nothing that shapes them changed, and only then."""

import pytest
from pipeline.device import Device
from pipeline.models import kernels
from pipeline.params import load

from pipeline.stage import PROJECT
from pipeline.training import build
from tests.test_resume import SETTINGS, ends, train
from tests.training_samples import write_stub, write_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("compile"), buckets=((64, 64), (64, 32)))
    write_stub(root / "outs/convert/unet.ckpt")
    return root


@pytest.fixture(scope="module")
def store(workspace, tmp_path_factory):
    """A store in which a first run has left its graphs."""
    folder = tmp_path_factory.mktemp("store")
    assert "compile cache: writes" in train(workspace, folder, *SETTINGS)
    return folder


# another seed meets the buckets in another order, which MindSpore's own numbering of graphs would confuse
@pytest.mark.parametrize("change", ["train.seed=5", "train.learning_rate=0.01"])
def test_the_second_start_reads_and_gives_the_same_bits(workspace, store, tmp_path, change):
    assert "compile cache" not in train(workspace, tmp_path, *SETTINGS, change, "device.compile_cache=false")
    wanted = ends(workspace)
    assert "compile cache: reads" in train(workspace, store, *SETTINGS, change)
    assert ends(workspace) == wanted


def test_a_resumed_run_reads_too(workspace, store, tmp_path):
    train(workspace, tmp_path, *SETTINGS, "device.compile_cache=false")
    wanted = ends(workspace)
    train(workspace, store, "kill=step:5", *SETTINGS, code=-9)
    said = train(workspace, store, *SETTINGS)
    assert "compile cache: reads" in said and "goes on after step 3" in said
    assert ends(workspace) == wanted


def test_a_changed_constant_compiles_anew(workspace, store):
    assert "compile cache: writes" in train(workspace, store, *SETTINGS, "train.weight_decay=0.5")


def test_what_a_killed_run_left_is_not_read(workspace, store, tmp_path):
    train(workspace, tmp_path, *SETTINGS)
    wanted = ends(workspace)
    (graphs,) = (tmp_path / "compile").iterdir()
    (graphs / "rank-0-is-whole").unlink()
    file = graphs / "rank_0/graph_cache/compile_cache_1.mindir"
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:1000])
    assert "compile cache: writes" in train(workspace, tmp_path, *SETTINGS)
    assert ends(workspace) == wanted


def test_the_key_of_the_graphs_knows_the_form_of_convolutions(monkeypatch):
    """A graph of one form under the other's key would compute nonsense without an error."""
    params = load(PROJECT / "params.yaml")
    keys = []
    for products in (False, True):
        monkeypatch.setattr(kernels, "convolves_by_products", lambda products=products: products)
        keys.append(build.graph_key(params.model.config, Device("CPU"), params.train, [], False))
    assert keys[0] != keys[1]
