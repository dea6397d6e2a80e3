"""Compiled graphs from the store: taken when nothing that shapes them changed, and only then; by all ranks or none."""

import itertools
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

from pipeline.device import Device

import numpy as np
import pytest

from pipeline.models import forms
from pipeline.stage import StageError
from pipeline.training import build
from pipeline.training import compiled as compiled_graphs
from stages import train as stage
from tests import deletions, stub_npus
from tests.training.test_distributed import port
from tests.training.test_resume import SETTINGS, ends, train
from tests.training.training_samples import params, write_stub, write_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("compile"), buckets=((64, 64), (64, 32)))
    write_stub(root / "outs/convert/unet.ckpt")
    return root


# two buckets in training, and validation of both; the update, and weights that are exchanged for their averages
KINDS = {
    "gradients 64x64", "gradients 64x32", "update", "average", "validation 64x64", "validation 64x32",
    "average to weights", "weights back",
}  # fmt: skip
UPDATES = {"update", "average"}


def compiled(said: str) -> set[str]:
    return set(re.findall(r"graph \d+ of 8: ([a-z0-9 ]+), compiles", said))


def read(said: str) -> set[str]:
    return set(re.findall(r"graph \d+ of 8: ([a-z0-9 ]+), reads", said))


def graphs(store):
    return list(Path(store).glob("compile/*/*"))


@pytest.fixture(scope="module")
def first(workspace, tmp_path_factory):
    """A store in which a first run has left its graphs, and that run's outs, of graphs that were all compiled."""
    folder = tmp_path_factory.mktemp("store")
    said = train(workspace, folder, *SETTINGS)
    assert compiled(said) == KINDS and not read(said) and len(graphs(folder)) == 8
    return folder, ends(workspace)


@pytest.fixture
def store(first):
    return first[0]


def test_the_second_start_reads_and_gives_the_same_bits(workspace, store, tmp_path):
    """Also where the buckets come in another order, by which MindSpore numbers graphs."""
    changes = ["train.seed=5", "train.learning_rate=0.01"]
    said = train(workspace, tmp_path, *SETTINGS, *changes, "device.compile_cache=false")
    assert compiled(said) == KINDS and not graphs(tmp_path)
    wanted = ends(workspace)
    said = train(workspace, store, *SETTINGS, *changes)
    assert read(said) == KINDS and not compiled(said)
    assert ends(workspace) == wanted


def test_a_resumed_run_reads_too(workspace, first):
    store, wanted = first
    train(workspace, store, "kill=step:5", *SETTINGS, code=-9)
    said = train(workspace, store, *SETTINGS)
    assert read(said) and not compiled(said) and "goes on after step 3" in said
    assert ends(workspace) == wanted


def test_a_changed_constant_compiles_anew_and_says_what_it_took_last_time(workspace, store):
    said = train(workspace, store, *SETTINGS, "train.huber_c=0.5")
    assert compiled(said) == KINDS and not read(said)
    assert re.search(r"gradients 64x64, compiles \(\d+ s last time\)", said)


@pytest.mark.parametrize("kind", ["lion", "adamw8bit"])
def test_another_optimizer_compiles_its_update_alone(workspace, store, tmp_path, kind):
    """The bits are those of graphs that are all its own."""
    other = [f"train.optimizer={kind}", "train.adam_beta2=0.95", "train.weight_decay=0.5", "train.max_grad_norm=0.0"]
    said = train(workspace, tmp_path, *SETTINGS, *other, "device.compile_cache=false")
    assert compiled(said) == KINDS
    wanted = ends(workspace)
    said = train(workspace, store, *SETTINGS, *other)
    assert compiled(said) == UPDATES and read(said) == KINDS - UPDATES
    assert ends(workspace) == wanted


def test_a_graph_is_compiled_when_its_bucket_is_first_met(workspace, tmp_path):
    said = train(workspace, tmp_path, "train.steps=1", "train.validation_share=0.0", "train.batch_size=4")
    (gradients,) = {line for line in re.findall(r"graph 1 of 3: (gradients 64x\d\d), compiles", said)}
    assert len(graphs(tmp_path)) == 2 and gradients


def test_a_damaged_graph_is_compiled_anew(workspace, first):
    store, wanted = first
    for kind, file in (("gradients-64x32", "graph.mindir"), ("update", "about.json")):
        for folder in graphs(store):
            if folder.name.startswith(kind):
                content = bytearray((folder / file).read_bytes())
                content[len(content) // 2] ^= 1
                (folder / file).unlink()
                (folder / file).write_bytes(content)
    said = train(workspace, store, *SETTINGS)
    assert compiled(said) == {"gradients 64x32", "update"} and ends(workspace) == wanted
    assert read(train(workspace, store, *SETTINGS)) == KINDS


def test_the_key_of_the_graphs_knows_the_form_of_convolutions(monkeypatch):
    """A graph of one form under the other's key would compute nonsense without an error."""
    p = params()
    keys = []
    for products in (False, True):
        monkeypatch.setattr(forms, "convolves_by_products", lambda products=products: products)
        keys.append(graph_keys(p, Device("CPU")))
    assert all(one != other for one, other in zip(*keys, strict=True))


@pytest.mark.parametrize("change", [{"deterministic": False}, {"jit_level": "O1"}])
def test_other_kernels_have_other_graphs(change):
    p = params()
    found = graph_keys(p, Device("Ascend")), graph_keys(p, Device("Ascend", **change))
    assert all(one != other for one, other in zip(*found, strict=True))


def test_a_schedule_of_the_huber_loss_is_a_constant_of_its_graph():
    """Its thresholds are of the noise schedule, which is no setting of training."""
    v = {"diffusion.prediction": "v", "train.loss_type": "huber", "train.huber_schedule": "snr"}
    found = [
        graph_keys(params(**v, **{"diffusion.zero_terminal_snr": rescaled}), Device("CPU"))
        for rescaled in (False, True)
    ]
    assert all(one != other for one, other in zip(*found, strict=True))
    v["train.huber_schedule"] = "constant"
    found = [
        graph_keys(params(**v, **{"diffusion.zero_terminal_snr": rescaled}), Device("CPU"))
        for rescaled in (False, True)
    ]
    assert found[0] == found[1]


def graph_keys(p, device):
    return build.graph_keys(p.model.config, device, p.train, build.settings(device, p.diffusion, p.train))


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
    for name, value in (("open_data", None), ("count_steps", (4, 1))):
        monkeypatch.setattr(stage, name, lambda *_, value=value: value)
    with pytest.raises(StageError):
        stage.main(params(**{"device.target": "auto"} | changes))
    assert found == [device | {"attention": "auto"}]


def test_two_ranks_read_together_and_compile_together(workspace, tmp_path):
    arguments = ["train.steps=2", "train.validation_share=0.0", "device.workers=2", "train.batch_size=2"]

    def what() -> list[set[str]]:
        logs = [(workspace / f"outs/train-logs/worker_{rank}.log").read_text() for rank in range(2)]
        return [set(re.findall(r"graph \d of 3: ([a-z]+).*, (compiles|reads)", log)) for log in logs]

    train(workspace, tmp_path, *arguments, port())
    wanted = ends(workspace)
    assert what() == 2 * [{("gradients", "compiles"), ("update", "compiles")}]
    # as when rank 1 was killed while it compiled
    for folder in graphs(tmp_path):
        if folder.name.startswith("update") and folder.name.endswith("rank-1"):
            shutil.rmtree(folder)
    train(workspace, tmp_path, *arguments, port())
    assert what() == 2 * [{("gradients", "reads"), ("update", "compiles")}]
    assert ends(workspace) == wanted


@pytest.fixture
def together(monkeypatch, tmp_path, caplog):
    """-> function of the number of ranks: the ranks as threads, each with its own graphs, of which nothing is really
    compiled. Gives what each did."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    for name in ("RANK_ID", "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH", "MS_DEV_FORCE_USE_COMPILE_CACHE"):
        monkeypatch.setenv(name, "")
    caplog.set_level("INFO")

    def start(ranks, agrees=True):
        everyone, opinions, next_number = Barrier(ranks, timeout=20), {}, itertools.count()

        class Rank(Device):
            def all_reduce(self, values):
                opinions[self.rank] = values
                everyone.wait()
                return sum(opinions.values())

        def run(rank):
            # where MindSpore's cache of this rank is
            cell = SimpleNamespace(compile=lambda: found(rank))
            keys = compiled_graphs.GraphKeys({"ranks": ranks}, {"ranks": ranks})
            compiled_graphs.Compiler(keys, Rank("Ascend", rank, ranks), 1)(cell, "update", together=agrees)

        def found(rank):
            (tmp_path / f"ms/rank_{rank}/graph_cache/compile_cache_{rank}.mindir").write_bytes(b"graph %d" % rank)

        folder = SimpleNamespace(name=str(tmp_path / "ms"))
        monkeypatch.setattr(compiled_graphs, "_folder", lambda: folder)
        monkeypatch.setattr(compiled_graphs, "_next_number", next_number)
        caplog.clear()
        with ThreadPoolExecutor(ranks) as pool:
            list(pool.map(run, range(ranks)))
        messages = [record.getMessage() for record in caplog.records]
        return sorted(re.findall(r"update, (\w+) ", " ".join(messages).replace("compiles", "compiles ")))

    return start


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_without_all_graphs_compile_all(together, ranks, tmp_path):
    assert "compiles" in together(ranks)
    assert together(ranks).count("reads") == ranks
    (graph,) = tmp_path.glob(f"store/compile/*/*-rank-{ranks // 2}")
    shutil.rmtree(graph)
    assert together(ranks).count("compiles") == ranks
    assert together(ranks).count("reads") == ranks
    shutil.rmtree(graph)
    assert together(ranks, agrees=False).count("reads") == ranks - 1


def test_the_store_may_be_deleted_at_any_moment(together):
    """Then the graph is compiled, and kept where the store is whole again."""
    moment = count = 0
    while moment <= count:
        together(1)
        count = deletions.run(lambda: together(1), at=moment)
        together(1)
        assert "reads" in together(1), moment
        moment += 1
    assert count > 5


def test_ranks_agree_only_where_all_do(monkeypatch):
    assert Device("CPU").all_agree(True) and not Device("CPU").all_agree(False)
    votes = []
    monkeypatch.setattr(Device, "all_reduce", lambda self, values: values + sum(votes))
    device = Device("CPU", 0, 4)
    for others, opinion, agreed in (([1, 1, 1], True, True), ([1, 1, 1], False, False), ([1, 0, 1], True, False)):
        votes[:] = [np.array([vote], np.float32) for vote in others]
        assert device.all_agree(opinion) == agreed


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", "lion"), ("adam_beta1", 0.8), ("adam_beta2", 0.9), ("adam_epsilon", 1e-6), ("weight_decay", 0.0),
        ("max_grad_norm", 0.5), ("ema", True),
    ],
)  # fmt: skip
def test_what_the_gradients_do_not_depend_on(key, value, ranks):
    """With several ranks they are summed in parts that the optimizer wants."""
    device = Device("CPU", world_size=ranks)
    before, after = (graph_keys(params(**changes), device) for changes in ({}, {f"train.{key}": value}))
    assert before.update != after.update and (before.network == after.network) == (ranks == 1)
