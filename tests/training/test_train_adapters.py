"""The train stage's run with adapters, on the stub of the UNet: what is trained, and that every setting counts."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from pipeline import store
from pipeline.training import build
from pipeline.weights import ckpt, safetensors
from pipeline.weights.adapters import kinds
from tests.training.test_train import base_outcome, same, stubbed, train, workspace
from tests.training.training_samples import CONFIG, params

__all__ = ["stubbed", "train", "workspace"]  # fixtures
LORA = {"train.adapter": "lora", "train.ema": True, "train.ema_decay": 0.5, "train.validation_share": 0.2}
LAYERS = {"conv", "out_1", "text", "label", "time"}  # of the stub, as kohya calls them
FEW_GRAPHS = {"train.adapter": "lora"}
CHANGES = {
    "adapter": ("dora", FEW_GRAPHS),
    "rank": (2, FEW_GRAPHS),
    "alpha": (4.0, FEW_GRAPHS),
    "adapter_targets": (["out.*"], FEW_GRAPHS),
    "lokr_factor": (2, {"train.adapter": "lokr"}),
    "seed": (1, FEW_GRAPHS),
    "groups": ([{"pattern": "out.*", "learning_rate": 0.1}], FEW_GRAPHS),
    "save_dtype": ("float16", FEW_GRAPHS),
}


@pytest.fixture
def adapt(train):
    return lambda **changes: train(**LORA | changes)


@pytest.mark.parametrize("key", CHANGES)
def test_no_setting_is_ignored(train, key):
    value, base = CHANGES[key]
    assert train(**(base | {f"train.{key}": value})) != base_outcome(train, base)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_adapter_is_all_that_is_written_and_learns(train, kind, tmp_path):
    found = train(**LORA | {"train.adapter": kind, "train.learning_rate": 1e-2})
    assert {name.removeprefix("lora_unet_").partition(".")[0] for name in found.weights} == LAYERS
    for which in (found.weights, found.ema):
        assert which.keys() == found.weights.keys()
        moved = [name for name, value in which.items() if name.endswith(kinds.UP) or "w2" in name and value.any()]
        assert all(which[name].any() for name in moved) and moved
    assert not same(found.weights, found.ema)
    folder = tmp_path / "out/weights"
    assert {path.name for path in folder.iterdir()} == {"adapter.safetensors", "run.json"}  # outcome() took the EMA's
    losses = [row["validation/loss"] for row in found.rows if "validation/loss" in row]
    assert losses[-1] < losses[0]
    metadata = safetensors.metadata(folder / "adapter.safetensors")
    assert metadata["ss_network_dim"] == "4" and metadata["ss_steps"] == "4" and metadata["ss_network_alpha"] == "2.0"


def test_weights_in_between_say_their_own_step(adapt, tmp_path):
    found = adapt(**{"train.save_interval": 2, "train.save_dtype": "float16", "train.keep_best": True})
    assert set(found.between) == {"step-00000002", "step-00000004", "adapter_best"}
    for step in (2, 4):
        metadata = safetensors.metadata(tmp_path / f"out/weights/step-{step:08d}.safetensors")
        assert metadata["ss_steps"] == str(step)
    assert same(found.between["step-00000004"], found.ema)
    assert {value.dtype for value in found.between["step-00000002"].values()} == {np.dtype(np.float16)}


def test_frozen_groups_have_no_adapter(adapt):
    found = adapt(**{"train.groups": [{"pattern": "out.*", "freeze": True}]})
    assert {name.removeprefix("lora_unet_").partition(".")[0] for name in found.weights} == LAYERS - {"out_1"}


@pytest.mark.parametrize(
    ("precision", "weights_dtype", "expected"),
    [("float32", "float32", ms.float32), ("float32", "bfloat16", ms.bfloat16), ("float16", "float32", ms.float16)],
)
def test_the_base_is_in_half_precision(stubbed, workspace, device, precision, weights_dtype, expected):
    settings = params(**{"train.adapter": "lora", "train.precision": precision, "train.weights_dtype": weights_dtype})
    cell = build.unet(CONFIG, device, settings.train, workspace / "outs/convert/unet.ckpt")
    dtypes = {p.name: p.dtype for p in cell.get_parameters()}
    assert {dtype for name, dtype in dtypes.items() if name.endswith(".gamma")} == {ms.float32}
    assert {dtypes[f"{name}.weight"] for name in ("conv", "text", "time")} == {expected}
    assert {p.dtype for p in cell.trainable_params()} == {ms.float32}


def test_half_precision_trains(adapt):
    found = adapt(**{"train.precision": "float16", "train.learning_rate": 1e-2})
    losses = [row["validation/loss"] for row in found.rows if "validation/loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])  # dora: test_resume.py and test_distributed.py
def test_a_longer_run_goes_on_and_ends_in_the_same_bits(adapt, kind):
    long = {"train.adapter": kind, "train.steps": 6, "train.save_interval": 3}
    whole = adapt(**long)
    for name in ("train", "trained"):
        store.remove(store.root() / name)
    adapt(**long | {"train.steps": 4, "train.keep_state": True})
    extended = adapt(**long)
    assert extended == replace(whole, saved=extended.saved, kept=extended.kept)


def test_a_state_holds_the_adapter_alone(adapt):
    adapt(**{"train.keep_state": True})
    (state,) = (store.root() / "train").glob("*/step-*/state.ckpt")
    names = {name for name in ckpt.read(state)}
    assert "conv.weight" not in names and "conv.lora_up.weight" in names and "moment1.conv.lora_up.weight" in names


def test_nothing_of_the_base_moves(adapt, workspace, tmp_path, monkeypatch):
    made = []
    unet = build.unet
    monkeypatch.setattr(build, "unet", lambda *args: made.append(unet(*args)) or made[-1])
    adapt(**{"train.weight_decay": 0.5})
    before = ckpt.read(workspace / "outs/convert/unet.ckpt")
    for parameter in made[-1].get_parameters():
        if not parameter.requires_grad:
            stored = before[f"model.diffusion_model.{parameter.name}"].array()
            np.testing.assert_array_equal(parameter.asnumpy(), stored)
