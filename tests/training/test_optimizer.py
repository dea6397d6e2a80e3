"""Optimizers, clipping, EMA and learning rates against PyTorch's, transformers' and diffusers' numbers."""

import subprocess
import sys
from types import SimpleNamespace

from pipeline.device import Device

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from benchmarks import kernels as benchmark
from pipeline.models.layers import Conv, GroupNorm, LayerNorm, Linear
from pipeline.models.unet import UNet
from pipeline.planning.run import from_params
from pipeline.training import build, rates
from pipeline.training.memory import sharded
from pipeline.training.optimizers import rounding
from pipeline.training.optimizers.adafactor import Adafactor
from pipeline.training.optimizers.adamw import AdamW
from pipeline.training.optimizers.adamw8bit import AdamW8bit
from pipeline.training.optimizers.common import decays
from pipeline.training.optimizers.lion import Lion
from pipeline.training.optimizers.prodigy import FIRST, Prodigy
from pipeline.training.step import Average, Outcome, Settings, Update, average_of
from tests.golden import rule
from tests.golden import training_rule as t
from tests.golden.compare import training
from tests.models.stub_unet import StubUNet
from tests.training.documented import documented, runs
from tests.training.npu_update import SHAPES, held
from tests.training.training_samples import ROOT, UNET, params

pytestmark = pytest.mark.usefixtures("device")
DECAYED = (True, False, True)
OUTPUT = {"capture_output": True, "text": True, "check": True}


def parameters(dtype=ms.float32):
    return [Parameter(Tensor(rule.normal(f"p {s}", s)).astype(dtype), name=f"p{i}") for i, s in enumerate(t.SHAPES)]


def gradients(step):
    return tuple(Tensor(rule.normal(f"g {step} {s}", s)) for s in t.SHAPES)


def adamw(values, **changes):
    settings = {"weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-6} | changes
    return AdamW(values, DECAYED, **settings)


class Step(nn.Cell):
    """An update whose gradients come one by one: MindSpore would compile the values of a tuple's tensors into the graph,
    and so a graph for each step."""

    def __init__(self, update: Update):
        super().__init__(auto_prefix=False)
        self.update = update

    def construct(self, loss, lr, *gradients):
        return self.update(loss, gradients, lr)


def run(update: Update, steps=4, lr=1e-2) -> list[float]:
    norms = []
    average = update.ema and Average(update)
    cell = Step(update)
    for step in range(steps):
        outcome = cell(Tensor(1.0, ms.float32), Tensor(lr, ms.float32), *gradients(step))
        if average:
            average(outcome, Tensor(rates.ema_decay(step, 0.6), ms.float32))
        norms.append(Outcome(*outcome.asnumpy()).norm)
    return norms


@pytest.fixture(scope="module")
def trained():
    values = parameters()
    optimizer = adamw(values)
    update = Update(optimizer, average_of(values), Settings(max_grad_norm=2.0))
    return values, update, run(update)


def test_adamw_with_clipping_equals_pytorch(trained):
    values, _, norms = trained
    np.testing.assert_allclose(norms, training()["adamw_norms"], rtol=1e-6)
    for index, value in enumerate(values):
        np.testing.assert_allclose(value.asnumpy(), training()[f"adamw_{index}"], rtol=2e-6, atol=1e-6)


def test_the_outcome_has_prodigys_d():
    """After the update; it grows where gradients keep their direction."""
    optimizer = Prodigy(parameters(), DECAYED, 0.0, 0.9, 0.99, 1e-8)
    cell, found = Step(Update(optimizer, None, Settings(max_grad_norm=2.0))), []
    for _ in range(6):
        outcome = Outcome(*cell(Tensor(1.0, ms.float32), Tensor(1.0, ms.float32), *gradients(0)).asnumpy())
        assert outcome.d == optimizer.d.asnumpy()
        found.append(outcome.d)
    assert found == sorted(found) and found[0] == pytest.approx(FIRST) and found[-1] > 1.2 * FIRST


@pytest.mark.parametrize(("first", "equal"), [(0, True), (-1, False), (1, False)])
def test_the_npus_kernel_counts_the_updates_before(first, equal):
    for index, (shape, decayed) in enumerate(zip(t.SHAPES, DECAYED, strict=True)):
        value, m, v = rule.normal(f"p {shape}", shape).astype(np.float64), 0.0, 0.0
        for step in range(4):
            clip = min(1, 2.0 / training()["adamw_norms"][step])
            gradient = clip * rule.normal(f"g {step} {shape}", shape)
            with np.errstate(all="ignore"):
                value, m, v = documented(first + step, value, m, v, gradient, decay=0.1 if decayed else 0.0)
        assert np.allclose(value, training()[f"adamw_{index}"], rtol=2e-6, atol=1e-6) == equal


# float16 weights end within their steps, bfloat16 ones within four roundings
HALVES = {ms.float32: {"rtol": 2e-5, "atol": 2e-6}, ms.float16: {"atol": 4e-3}, ms.bfloat16: {"rtol": 2**-6}}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_the_npus_kernel_is_given_makes_adamw(monkeypatch, dtype):
    rounds_here = SimpleNamespace(on_cpu=lambda: True)  # an NPU's kernels of the rounding to bfloat16 are not here
    monkeypatch.setattr(rounding, "forms", rounds_here)
    values = parameters(dtype)
    with benchmark.npu_forms():
        update = runs(Update(adamw(values), average_of(values), Settings(max_grad_norm=2.0)))
    np.testing.assert_allclose(run(update), training()["adamw_norms"], rtol=1e-6)
    for index, value in enumerate(values):
        found = value.astype(ms.float32).asnumpy()
        np.testing.assert_allclose(found, training()[f"adamw_{index}"], **HALVES[dtype])


@pytest.mark.parametrize("half", [[], ["float16"]], ids=["float32", "float16"])
def test_the_npus_update_is_one_kernel_a_parameter(half):
    """Compiled as far as a CPU can: types and shapes are inferred, then its kernel is missing."""
    found = held(subprocess.run([sys.executable, "-m", "tests.training.npu_update", *half], cwd=ROOT, **OUTPUT).stdout)
    assert found["missing"] == "AdamW" and found["NPU"]["AdamW"] == found["CPU"]["Adam"] == len(SHAPES)
    assert not {"Adam", "ApplyProximalGradientDescent", "AllReduce"} & found["NPU"].keys()


def test_ema_with_warm_up_equals_diffusers(trained):
    for index, average in enumerate(trained[1].ema):
        np.testing.assert_allclose(average.asnumpy(), training()[f"adamw_ema_{index}"], rtol=2e-6, atol=1e-6)


def test_adafactor_equals_transformers():
    values = parameters()
    update = Update(Adafactor(values, DECAYED, 0.1), None, Settings())
    run(update)
    for index, value in enumerate(values):
        found = value.asnumpy()
        np.testing.assert_allclose(
            found.reshape(found.shape[0], -1).squeeze(),
            training()[f"adafactor_{index}"].squeeze(),
            rtol=1e-5,
            atol=1e-5,
        )


FACTORS = (0.5, 1.0, 3.0)
OPTIMIZERS = {
    "adamw": adamw,
    "adafactor": lambda values, **changes: Adafactor(values, DECAYED, 0.1, **changes),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_multiplies_a_parameters_learning_rate(name):
    values = parameters()
    run(Update(OPTIMIZERS[name](values, factors=FACTORS), None, Settings()))
    for index, factor in enumerate(FACTORS):
        alone = parameters()
        run(Update(OPTIMIZERS[name](alone), None, Settings()), lr=1e-2 * factor)
        np.testing.assert_allclose(values[index].asnumpy(), alone[index].asnumpy(), rtol=1e-6, atol=1e-7)


def test_a_factor_multiplies_prodigys_step_and_not_its_d():
    moves, ds = [], []
    for factors in (None, FACTORS):
        values = parameters()
        optimizer = Prodigy(values, DECAYED, 0.1, 0.9, 0.99, 1e-8, factors)
        before = [value.asnumpy().copy() for value in values]
        run(Update(optimizer, None, Settings()), steps=1, lr=1e5)  # d is a millionth
        moves.append([value.asnumpy() - start for value, start in zip(values, before, strict=True)])
        ds.append(float(optimizer.numerator.asnumpy()))
    for factor, plain, found in zip(FACTORS, *moves, strict=True):
        np.testing.assert_allclose(found, factor * plain, rtol=1e-4, atol=1e-6)
    assert ds[0] == ds[1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", AdamW), ("adamw8bit", AdamW8bit), ("lion", Lion), ("prodigy", Prodigy), ("adafactor", Adafactor)],
)
def test_the_key_names_the_optimizer_and_gives_it_its_numbers(device, name, kind):
    keys = {"optimizer": name, "weight_decay": 0.3, "adam_beta1": 0.8, "adam_beta2": 0.7, "adam_epsilon": 0.6}
    keys |= {"groups": [{"pattern": "time*", "learning_rate": 0.25}], "seed": 9, "weights_dtype": "bfloat16"}
    train = params(**{f"train.{key}": value for key, value in keys.items()}).train
    cell = StubUNet(UNET)
    for parameter in cell.get_parameters():
        parameter.set_dtype(ms.bfloat16)
    found = build.optimizer(cell, device, train)
    assert type(found) is kind and found.factors == (0.25, 1.0) and set(found.decay) == {0.0, 0.3}
    if kind in (AdamW8bit, Lion, Prodigy):  # AdamW's numbers change its runs in test_train.py
        assert (found.beta1, found.beta2) == (0.8, 0.7)
    if kind in (AdamW8bit, Prodigy):
        assert found.epsilon == 0.6


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"beta1": 0.5}, True),
        ({"beta2": 0.5}, True),
        ({"epsilon": 0.1}, True),
        ({"weight_decay": 0.0}, True),
        ({}, False),
    ],
)
def test_each_setting_of_adamw_counts(trained, change, differs):
    values = parameters()
    run(Update(adamw(values, **change), None, Settings(max_grad_norm=2.0)))
    assert np.allclose(values[0].asnumpy(), trained[0][0].asnumpy(), atol=1e-6) != differs


def test_the_first_step_is_bias_corrected():
    values = parameters()
    before = values[1].asnumpy().copy()
    run(Update(adamw(values, weight_decay=0.0), None, Settings()), steps=1)
    # with its correction Adam's first step is lr * sign(gradient)
    np.testing.assert_allclose(values[1].asnumpy() - before, -1e-2 * np.sign(gradients(0)[1].asnumpy()), rtol=1e-3)


def test_float16_parameters_have_float32_moments():
    values = parameters(ms.float16)
    optimizer = adamw(values)
    run(Update(optimizer, average_of(values), Settings(max_grad_norm=2.0)))
    assert {m.dtype for m in (*optimizer.moment1, *optimizer.moment2)} == {ms.float32}
    for index, value in enumerate(values):
        assert value.dtype == ms.float16
        np.testing.assert_allclose(value.asnumpy(), training()[f"adamw_{index}"], atol=4e-3)


def test_no_clipping_below_the_norm_nor_at_zero():
    whole = parameters()
    run(Update(adamw(whole), None, Settings()), steps=2)
    for limit in (0.0, 1e3):
        values = parameters()
        run(Update(adamw(values), None, Settings(max_grad_norm=limit)), steps=2)
        np.testing.assert_allclose(values[0].asnumpy(), whole[0].asnumpy(), rtol=1e-6)


class Kinds(nn.Cell):
    """Norms and layers under names that say nothing of their kind."""

    def __init__(self):
        super().__init__()
        self.in_layers = nn.SequentialCell(GroupNorm(4, 8, eps=1e-5), Conv(8, 8, 3))
        self.norm_proj = Linear(8, 8)
        self.out = nn.CellList([LayerNorm(8), Linear(8, 4, bias=False)])


def test_norms_and_biases_do_not_decay_whatever_their_names():
    cell = Kinds()
    decayed = {p.name for p, decay in zip(cell.trainable_params(), decays(cell), strict=True) if decay}
    assert decayed == {"in_layers.1.weight", "norm_proj.weight", "out.1.weight"}


def test_the_unet_decays_what_pytorch_kinds_of_module_say():
    unet = UNet(t.UNET)
    decayed = {rule.stability(p.name) for p, decay in zip(unet.trainable_params(), decays(unet), strict=True) if decay}
    assert decayed == set(training()["decayed"])


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_learning_rates_equal_diffusers(name):
    found = [rates.learning_rate(step, 12, 2e-3, name, 4) for step in range(12)]
    np.testing.assert_allclose(found, training()[f"lr_{name}"], rtol=1e-12)


def test_the_average_copies_first_and_then_warms_up_to_its_decay():
    found = [rates.ema_decay(step, 0.9) for step in range(200)]
    assert found[0] == 0 and found[1] == pytest.approx(2 / 11) and found[-1] == 0.9
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("shape", "ranks", "wanted"),
    [((8, 3), 2, True), ((8, 3), 1, False), ((8,), 2, False), ((9, 2), 2, False), ((4, 3, 3, 3), 4, True)],
)
def test_which_parameters_are_cut_into_slices(shape, ranks, wanted):
    assert sharded(shape, ranks) is wanted


@pytest.mark.parametrize(
    ("target", "optimizer", "wish", "wanted"),
    [
        ("Ascend", "adamw", "auto", True),
        ("CPU", "adamw", "auto", False),
        *(("Ascend", name, "auto", False) for name in ("adamw8bit", "lion", "prodigy", "adafactor")),
        ("Ascend", "adamw", False, False),
        ("CPU", "adamw", True, True),
    ],
)
def test_npus_share_adamws_state_by_default(target, optimizer, wish, wanted):
    """And the plan counts with it."""
    changes = {"device.target": target, "device.workers": 2, "train.optimizer": optimizer}
    p = params(**changes, **{"train.shard_optimizer": wish})
    assert build.shards(Device(target, world_size=2), p.train) is wanted is from_params(p, 10).shard_optimizer
    made = build.optimizer(Linear(3, 4), Device(target, 1, 2), p.train)
    cut = {parameter.shape: cut for parameter, cut in zip(made.parameters, made.cut, strict=True)}
    assert cut == {(4, 3): wanted, (4,): False}
