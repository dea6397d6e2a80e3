"""The arithmetic of adapters against LyCORIS' and PEFT's (tests/golden/make_adapters.py)."""

import numpy as np
import pytest

from pipeline.weights.adapters import kinds
from tests.golden import adapters_rule as rule
from tests.golden.rule import probe
from tests.project import ROOT

GOLDEN = np.load(ROOT / "tests/golden/adapters.npz")
CASES = [(kind, layer) for kind in kinds.KINDS for layer in rule.LAYERS]


@pytest.mark.parametrize(("kind", "layer"), CASES)
def test_the_merged_weight_is_lycoris(kind, layer):
    merged = kinds.changed(rule.weight(layer), rule.parts(kind, layer), rule.ALPHA)
    key = f"{kind}.{layer}.merged"
    np.testing.assert_allclose(probe(key, merged), GOLDEN[key], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize(("kind", "layer"), CASES)
def test_an_adapter_starts_with_the_weight_itself(kind, layer):
    weight, shape = rule.weight(layer), rule.LAYERS[layer]
    shapes = kinds.shapes(kind, shape, rule.RANK, rule.FACTOR)
    parts = {part: kinds.start(layer, part, own, weight, seed=0) for part, own in shapes.items()}
    assert {part: value.shape for part, value in parts.items()} == shapes
    assert {value.dtype for value in parts.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(kinds.changed(weight, parts, rule.ALPHA), weight, rtol=1e-6)
    assert sum(not value.any() for value in parts.values()) == 1  # and the gradient of that one is not zero
    other_seed = {part: kinds.start(layer, part, own, weight, seed=1) for part, own in shapes.items()}
    again = {part: kinds.start(layer, part, own, weight, seed=0) for part, own in shapes.items()}
    drawn = [part for part, value in parts.items() if value.any() and part != kinds.MAGNITUDE]
    for part in drawn:
        np.testing.assert_array_equal(again[part], parts[part])
        assert (other_seed[part] != parts[part]).any()
        assert (kinds.start("another", part, shapes[part], weight, seed=0) != parts[part]).any()


def test_the_first_values_have_the_spread_of_torchs():
    """kaiming_uniform_ with a = sqrt(5) is uniform up to 1 / sqrt(inputs)."""
    down = kinds.start("x", kinds.DOWN, (64, 32, 3, 3), np.zeros((8, 32, 3, 3)), seed=3)
    bound = (32 * 9) ** -0.5
    assert 0.99 * bound < np.abs(down).max() <= bound and abs(down.std() - bound / 3**0.5) < 0.01 * bound


@pytest.mark.parametrize(
    ("number", "factor", "expected"),
    [(127, -1, (1, 127)), (128, -1, (8, 16)), (250, 4, (2, 125)), (250, 8, (5, 50)), (360, 16, (15, 24)),
     (360, -1, (18, 20)), (512, 16, (16, 32)), (1024, 4, (4, 256)), (1280, -1, (32, 40)), (16, 8, (2, 8))],
)  # fmt: skip
def test_split(number, factor, expected):
    """As LyCORIS' factorization gives them."""
    assert kinds.split(number, factor) == expected


def test_a_strength_scales_the_change():
    weight = rule.weight("linear")
    for kind in kinds.KINDS:
        parts = rule.parts(kind, "linear")
        whole, half = (kinds.changed(weight, parts, rule.ALPHA, strength) for strength in (1.0, 0.5))
        np.testing.assert_allclose(half - weight, (whole - weight) / 2, atol=1e-6)


def test_without_an_alpha_it_is_the_rank():
    weight, parts = rule.weight("linear"), rule.parts("lora", "linear")
    expected = weight + parts[kinds.UP] @ parts[kinds.DOWN]
    np.testing.assert_allclose(kinds.changed(weight, parts, None), expected, rtol=1e-5, atol=1e-6)
