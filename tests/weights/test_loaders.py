"""An adapter's file in ComfyUI and A1111: the weights that their own loaders make of files by this project's writer
(tests/golden/make_adapter_loaders.py) are those that merging gives, but for a DoRA's."""

import numpy as np
import pytest

from pipeline.models.config import SDXL_BASE
from pipeline.weights.adapters import kinds
from pipeline.weights.adapters.apply import apply
from pipeline.weights.tensor import Tensor
from tests.golden import adapters_rule, loaders_rule, rule
from tests.project import ROOT

GOLDEN = np.load(ROOT / "tests/golden/adapter_loaders.npz")
TOOLS = ("comfy", "a1111")
LAYERS = [(layer, weight) for layer, weight, _ in loaders_rule.shapes(loaders_rule.CONFIG)]


def assert_changes(changes: dict[str, np.ndarray], golden: str) -> None:
    for (layer, change), wanted in zip(changes.items(), GOLDEN[golden], strict=True):
        difference = np.abs(rule.probe(layer, change) - wanted).max()
        assert difference <= 1e-5 * wanted[0], (golden, layer, difference, wanted)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_they_make_the_weights_that_merging_makes(kind, tmp_path):
    loaders_rule.write(tmp_path / "a.safetensors", kind)
    bases = loaders_rule.weights()
    tensors = {name: Tensor("float32", value.shape, (), constant=value.tobytes()) for name, value in bases.items()}
    changed = apply(tensors, [(tmp_path / "a.safetensors", 1.0)], loaders_rule.CONFIG)
    merged = {name: tensor.array() for name, tensor in changed.items()}
    changes = {
        layer: loaders_rule.base_of(weight, merged) - loaders_rule.base_of(weight, bases) for layer, weight in LAYERS
    }
    for tool in TOOLS:
        assert_changes(changes, f"{tool}.{kind}")


def test_of_a_dora_they_make_others():
    """ComfyUI divides by the lengths of the base's rows, A1111 by those of columns; a DoRA wants the changed weight's rows
    (arXiv 2402.09353, eq. 5), as LyCORIS and PEFT have it."""
    bases, found = loaders_rule.weights(), {tool: {} for tool in TOOLS}
    for layer, weight in LAYERS:
        base = loaders_rule.base_of(weight, bases)
        parts = adapters_rule.parts_of("dora", layer, base)
        magnitude = parts.pop(kinds.MAGNITUDE)
        whole = kinds.changed(base, parts, adapters_rule.ALPHA)
        rows = np.sqrt(np.square(base.reshape(len(base), -1)).sum(1)).reshape(magnitude.shape)
        columns = np.sqrt(np.square(whole).sum(axis=(0, *range(2, whole.ndim)), keepdims=True))
        found["comfy"][layer] = whole * (magnitude / rows) - base
        found["a1111"][layer] = whole * (magnitude / columns) - base
    for tool in TOOLS:
        assert_changes(found[tool], f"{tool}.dora")


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_they_take_every_layer_of_sdxl(kind):
    """And no key is left over, or the maker ends."""
    layers = len(list(loaders_rule.shapes(SDXL_BASE)))
    assert layers == 794 + 11 * 6 + 32 * 6
    assert {tool: int(GOLDEN[f"{tool}.{kind}.layers"]) for tool in TOOLS} == dict.fromkeys(TOOLS, layers)
