"""Every optimizer against its peers' numbers (golden/make_optimizers.py), and on bfloat16 weights: small parameters, and
one graph for all, since compilation is what takes time."""

from pathlib import Path

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from pipeline.training.optimizers.adafactor import Adafactor
from pipeline.training.optimizers.adamw import AdamW
from pipeline.training.optimizers.adamw8bit import AdamW8bit, dynamic_map
from pipeline.training.optimizers.lion import Lion
from pipeline.training.optimizers.prodigy import FIRST, Prodigy
from pipeline.training.optimizers.rounding import Rounding
from tests.golden import optimizers_rule as o
from tests.golden import rule

pytestmark = pytest.mark.usefixtures("device")
COMMON = o.DECAYED, o.WEIGHT_DECAY
ADAM = *COMMON, *o.BETAS, o.EPSILON
MAKE = {
    "adamw": lambda p: AdamW(p, *ADAM, o.FACTORS),
    "adamw8bit": lambda p: AdamW8bit(p, *ADAM, o.FACTORS),
    "lion": lambda p: Lion(p, *COMMON, *o.BETAS, o.FACTORS),
    "prodigy": lambda p: Prodigy(p, *ADAM),
}
HALF = MAKE | {"adafactor": lambda p: Adafactor(p, *COMMON)}
RATES = {"prodigy": o.PRODIGY_RATE}  # the others' is o.RATE


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden/optimizers.npz") as file:
        return dict(file)


class Step(nn.Cell):
    """A step of all optimizers. Gradients come one by one: MindSpore would compile the values of a tuple's tensors into
    the graph, and so a graph for each step."""

    def __init__(self, optimizers: list):
        super().__init__(auto_prefix=False)
        self.optimizers = nn.CellList(optimizers)
        self.counts = [len(optimizer.parameters) for optimizer in optimizers]

    def construct(self, rates, *gradients):
        done, first, place = rates, 0, 0
        for optimizer, count in zip(self.optimizers, self.counts):
            done = ops.depend(done, optimizer(gradients[first : first + count], ops.depend(rates, done)[place]))
            first, place = first + count, place + 1
        return done


class All:
    """Every optimizer on parameters of its own, float32 and ("half") bfloat16."""

    def __init__(self):
        names = [*HALF, *(f"half {name}" for name in HALF)]
        self.optimizers = {name: HALF[name.removeprefix("half ")](_parameters(name)) for name in names}
        self.step = Step(list(self.optimizers.values()))

    def values(self, name: str) -> list[np.ndarray]:
        """The parameters in the rule's order, which is that of their names."""
        given = sorted(self.optimizers[name].parameters, key=lambda p: p.name)
        return [p.asnumpy().astype(np.float32) for p in given]

    def run(self, first: int, stop: int, rate: float = o.RATE) -> None:
        rates = [RATES.get(name.removeprefix("half "), o.RATE) * rate / o.RATE for name in self.optimizers]
        for number in range(first, stop):
            gradients = []
            for name, optimizer in self.optimizers.items():
                found = o.gradients(number, self.values(name))
                gradients += [Tensor(found[int(p.name[-1])]) for p in optimizer.parameters]
            self.step(Tensor(np.array(rates, np.float32)), *gradients)

    def kept(self) -> list[Parameter]:
        states = [p for optimizer in self.optimizers.values() for p, _ in optimizer.state()]
        return states + [p for optimizer in self.optimizers.values() for p in optimizer.parameters]

    def restore(self, held: list[np.ndarray]) -> None:
        for parameter, value in zip(self.kept(), held, strict=True):
            parameter.set_data(Tensor(value.astype(np.float32)).astype(parameter.dtype))


def _parameters(name: str) -> list[Parameter]:
    dtype = ms.bfloat16 if name.startswith("half") else ms.float32
    return [Parameter(Tensor(value).astype(dtype), name=f"{name} {n}") for n, value in enumerate(o.values())]


@pytest.fixture(scope="module")
def trained(device):
    """(all after their steps, what they kept at the start and half-way)"""
    every, held = All(), []
    for first, stop in ((0, o.STEPS // 2), (o.STEPS // 2, o.STEPS)):
        held.append([p.asnumpy().copy() for p in every.kept()])
        every.run(first, stop)
    return every, held


def close(found: list[np.ndarray], golden: dict, name: str, tolerance: float) -> None:
    for index, value in enumerate(found):
        wanted, size = golden[f"{name}_{index}"], np.abs(golden[f"{name}_{index}"] - o.values()[index]).max()
        np.testing.assert_allclose(value, wanted, atol=tolerance * size, rtol=0, err_msg=f"{name} {index}")


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_it_equals_its_peer(trained, golden, name):
    """AdamW with learning rates by group: PyTorch's. Lion: lion-pytorch's."""
    close(trained[0].values(name), golden, name, 1e-5)


def test_adamw8bit_equals_bitsandbytes(trained, golden):
    every = trained[0].optimizers["adamw8bit"]
    close(trained[0].values("adamw8bit")[:3], golden, "adamw8bit", 1e-5)  # less than 4096 numbers: not in 8 bits
    found, wanted = trained[0].values("adamw8bit")[3], golden["adamw8bit_3"]
    # a number in the middle between two codes may get the other one
    same = np.isclose(found, wanted, atol=1e-5, rtol=0)
    assert same.mean() > 0.998 and np.abs(found - wanted).max() < 0.01
    for number, codes, largest in ((1, every.codes1, every.largest1), (2, every.codes2, every.largest2)):
        differs = codes[0].asnumpy().reshape(-1)[: wanted.size] != golden[f"adamw8bit_state{number}"].reshape(-1)
        assert differs.mean() < 0.002
        np.testing.assert_allclose(largest[0].asnumpy()[:, 0], golden[f"adamw8bit_absmax{number}"], rtol=1e-4)
    # bitsandbytes' own quantization is approximate; 8 bits are not float32
    assert np.abs(found - golden["bitsandbytes_3"]).max() < 0.02
    assert np.abs(golden["adamw_3"] - found).max() > 10 * np.abs(found - wanted)[same].max()


def test_the_map_is_bitsandbytes(golden):
    np.testing.assert_allclose(dynamic_map(True), golden["signed"], rtol=1e-6, atol=0)
    np.testing.assert_allclose(dynamic_map(False), golden["unsigned"], rtol=1e-6, atol=0)


def test_prodigy_equals_prodigyopt(trained, golden):
    """Within what float32 leaves of the first weights' distance while d is a millionth of them."""
    every, _ = trained
    close(every.values("prodigy"), golden, "prodigy", 0.01)
    assert golden["prodigy_d"][-1] > 1e4 * golden["prodigy_d"][0]
    np.testing.assert_allclose(every.optimizers["prodigy"].d.asnumpy(), golden["prodigy_d"][-1], rtol=0.005)


def test_the_state_is_all_that_is_kept(trained):
    """What a state holds brings back the same bits: no moment, counter or random number stands elsewhere."""
    every, (_, half) = trained
    ended = [p.asnumpy().copy() for p in every.kept()]
    every.restore(half)
    every.run(o.STEPS // 2, o.STEPS)
    for parameter, wanted in zip(every.kept(), ended, strict=True):
        np.testing.assert_array_equal(parameter.asnumpy(), wanted, err_msg=parameter.name)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion", "adafactor"])
def test_bfloat16_weights_end_around_float32s(trained, name):
    """None of them goes its own way: the mean over 4270 of them is as good as float32's."""
    for index in (2, 3):
        found, wanted = (trained[0].values(kind)[index] for kind in (f"half {name}", name))
        moved = np.abs(wanted - o.values()[index]).mean()
        assert np.abs(found - wanted).mean() < 0.2 * moved
    assert abs((found - wanted).mean()) < 0.002


def test_prodigy_finds_float32s_rate_for_bfloat16_weights(device):
    """Where they are many: its first steps are a millionth, which few weights are moved by, by chance, and the estimate is a
    sum over those. (Of the 4270 above it may stay where it begins.)"""
    shape, scale, goal = (600, 500), 0.02, 0.02 * rule.normal("goal", (600, 500))
    start = (scale * rule.normal("start", shape)).astype(np.float32)
    both = [Prodigy([Parameter(Tensor(start).astype(dtype), name="p")], [False], 0.0, *o.BETAS, o.EPSILON)
            for dtype in (ms.float32, ms.bfloat16)]  # fmt: skip
    step = Step(both)
    for number in range(o.STEPS):
        noise = 0.3 * scale * rule.normal(f"noise {number}", shape)
        now = [optimizer.parameters[0].asnumpy().astype(np.float32) for optimizer in both]
        step(Tensor(np.ones(2, np.float32)), *(Tensor((value - goal + noise).astype(np.float32)) for value in now))
    wanted, found = (float(optimizer.d.asnumpy()) for optimizer in both)
    assert wanted > 1e3 * FIRST and found == pytest.approx(wanted, rel=0.05)
    value, half = (optimizer.parameters[0].asnumpy().astype(np.float32) for optimizer in both)
    assert np.abs(half - value).mean() < 0.1 * np.abs(value - start).mean()


def test_small_updates_reach_bfloat16_weights(trained):
    """A twentieth of the last place each step: to the nearest nothing would ever change."""
    every, (start, _) = trained
    for parameter, value in zip(every.kept(), start, strict=True):
        parameter.set_data(Tensor(value.astype(np.float32)).astype(parameter.dtype))
    before = every.values("half lion")[3]
    every.run(0, 20, rate=1e-4)
    moved, wanted = every.values("half lion")[3] - before, every.values("lion")[3] - o.values()[3]
    assert 0.9 < (moved * np.sign(wanted)).mean() / np.abs(wanted).mean() < 1.1
    assert np.abs(wanted).max() < 3e-3


class Rounded(nn.Cell):
    def __init__(self, like: Parameter):
        super().__init__(auto_prefix=False)
        self.rounding = Rounding([like], seed=3)

    def construct(self, values, update):
        bits, half = self.rounding.bits(update), values.shape[0] // 2
        return (
            self.rounding(values, bits, 100).astype(ms.float32),
            self.rounding(values[half:], bits, 100 + half).astype(ms.float32),
        )


def test_rounding_is_right_on_average_and_the_same_on_any_number_of_ranks(device):
    exact = np.array([0.7, -1.3e-3, 1.0 - 2.0**-10, 1.0 + 2.0**-9, -0.5, 3.0, 0.0, 1e30], np.float32)
    values = exact.repeat(2000)
    lower = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)  # towards 0
    upper = ((values.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    cell = Rounded(Parameter(Tensor(values).astype(ms.bfloat16), name="like"))
    draws = []
    for update in (1, 2, 70000):
        whole, second = (found.asnumpy() for found in cell(Tensor(values), Tensor(update, ms.float32)))
        np.testing.assert_array_equal(whole[len(values) // 2 :], second)  # another rank's slice
        up = np.where(values == lower, 0.0, (values - lower) / (upper - lower))
        assert ((whole == lower) | ((whole == upper) & (up > 0))).all()
        found = (whole != lower).reshape(len(exact), -1).mean(1)
        chance = up.reshape(len(exact), -1)[:, 0]
        np.testing.assert_allclose(found, chance, atol=0.045)  # four standard deviations of 2000 draws
        draws.append(whole)
    again = cell(Tensor(values), Tensor(1, ms.float32))[0].asnumpy()
    np.testing.assert_array_equal(again, draws[0])
    ups = [(draw != lower)[:2000] - (values - lower)[0] / (upper - lower)[0] for draw in draws]
    for one, other in ((0, 1), (0, 2), (1, 2)):  # updates are independent, and neighbours
        assert abs(np.corrcoef(ups[one], ups[other])[0, 1]) < 0.09
    assert abs(np.corrcoef(ups[0][1:], ups[0][:-1])[0, 1]) < 0.09
