"""Compiled graphs from the store: taken when nothing that shapes them changed, and only then; by all ranks or none."""

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from pipeline.device import Device, cached_graphs
from pipeline.models import forms

from pipeline import locks
from pipeline import store as storage
from pipeline.stage import StageError
from pipeline.training import build
from stages import train as stage
from tests import stub_npus
from tests.test_distributed import port
from tests.test_resume import SETTINGS, ends, train
from tests.training_samples import params, write_stub, write_workspace


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
    p = params()
    keys = []
    for products in (False, True):
        monkeypatch.setattr(forms, "convolves_by_products", lambda products=products: products)
        keys.append(build.graph_key(p.model.config, Device("CPU"), p.train, [], False))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("change", [{"deterministic": False}, {"jit_level": "O1"}])
def test_other_kernels_have_other_graphs(change):
    p = params()
    keys = [
        build.graph_key(p.model.config, device, p.train, [], False)
        for device in (Device("Ascend"), Device("Ascend", **change))
    ]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("npus", "changes", "device"),
    [
        (0, {}, {"target": "CPU", "jit_level": "O0", "deterministic": True}),
        (0, {"device.deterministic": False}, {"target": "CPU", "jit_level": "O0", "deterministic": False}),
        (1, {}, {"target": "Ascend", "jit_level": "O0", "deterministic": False}),
        (1, {"device.deterministic": True}, {"target": "Ascend", "jit_level": "O0", "deterministic": True}),
        (1, {"device.jit_level": "O1"}, {"target": "Ascend", "jit_level": "O1", "deterministic": False}),
    ],
)
def test_the_kinds_of_kernels_are_of_what_a_training_is(monkeypatch, tmp_path, npus, changes, device):
    """A deterministic run that went on from another kind's state would end in other bits than an unbroken one."""
    stub_npus.show(monkeypatch, tmp_path, npus)
    found = []

    def training(paths, model, device, *_):
        found.append(device)
        raise StageError

    monkeypatch.setattr(stage.key, "training", training)
    for name in ("open_data", "count_steps"):
        monkeypatch.setattr(stage, name, lambda *_: None)
    with pytest.raises(StageError):
        stage.main(params(**{"device.target": "auto"} | changes))
    assert found == [device | {"attention": "auto"}]


def said_by_ranks(workspace, ranks):
    logs = [(workspace / f"outs/train-logs/worker_{rank}.log").read_text() for rank in range(ranks)]
    return [re.search(r"compile cache: (\w+)", log)[1] for log in logs]


def test_two_ranks_read_together_and_compile_together(workspace, tmp_path):
    arguments = ["train.steps=2", "train.validation_share=0.0", "device.workers=2", "train.batch_size=2"]
    train(workspace, tmp_path, *arguments, port())
    wanted = ends(workspace)
    assert said_by_ranks(workspace, 2) == ["writes", "writes"]
    # as when rank 1 was killed while it compiled
    (graphs,) = (tmp_path / "compile").iterdir()
    (graphs / "rank-1-is-whole").unlink()
    for what in ("writes", "reads"):
        train(workspace, tmp_path, *arguments, port())
        assert said_by_ranks(workspace, 2) == [what, what] and ends(workspace) == wanted


class Killed(Exception):
    pass


@pytest.fixture
def together(monkeypatch, tmp_path, caplog):
    """-> function of the number of ranks and the rank that is killed while it compiles: the ranks as threads, each with
    its own graphs. Gives what each did."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path))
    for name in ("RANK_ID", "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"):
        monkeypatch.setenv(name, "")
    caplog.set_level("INFO")

    def start(ranks, killed=None):
        everyone, opinions = Barrier(ranks, timeout=20), {}

        class Rank(Device):
            def all_reduce(self, values):
                opinions[self.rank] = values
                everyone.wait()
                return sum(opinions.values())

        def compile_graphs(rank):
            device = Rank("Ascend", rank, ranks)
            try:
                with cached_graphs({"ranks": ranks}, device):
                    if rank == killed:
                        raise Killed
            except Killed:
                pass

        caplog.clear()
        with ThreadPoolExecutor(ranks) as pool:
            list(pool.map(compile_graphs, range(ranks)))
        return [record.getMessage().split()[2] for record in caplog.records]

    return start


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_rank_that_was_killed_while_compiling_makes_all_compile_anew(together, ranks):
    assert together(ranks, killed=ranks - 1) == ["writes"] * ranks
    assert together(ranks) == ["writes"] * ranks
    assert together(ranks) == ["reads"] * ranks
    # a node whose own disk lost its part
    (mark,) = storage.root().glob(f"compile/*/rank-{ranks // 2}-is-whole")
    mark.unlink()
    assert together(ranks, killed=0) == ["writes"] * ranks
    assert sorted(path.name for path in storage.root().glob("compile/*/*whole")) == [
        f"rank-{rank}-is-whole" for rank in range(1, ranks)
    ]
    assert together(ranks) == ["writes"] * ranks and together(ranks) == ["reads"] * ranks


def test_no_rank_reads_while_another_finds_its_graphs_in_use(together):
    assert together(2) == ["writes"] * 2
    (folder,) = storage.root().glob("compile/*")
    with locks.attempt(f"compile-{folder.name}-1"):
        assert sorted(together(2)) == ["another", "writes"]
    assert together(2) == ["reads"] * 2


def test_ranks_agree_only_where_all_do(monkeypatch):
    assert Device("CPU").all_agree(True) and not Device("CPU").all_agree(False)
    votes = []
    monkeypatch.setattr(Device, "all_reduce", lambda self, values: values + sum(votes))
    device = Device("CPU", 0, 4)
    for others, opinion, agreed in (([1, 1, 1], True, True), ([1, 1, 1], False, False), ([1, 0, 1], True, False)):
        votes[:] = [np.array([vote], np.float32) for vote in others]
        assert device.all_agree(opinion) == agreed
