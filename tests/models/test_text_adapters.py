"""Text encoders with adapters: outputs and gradients against PEFT's in transformers' encoders
(tests/golden/make_text_adapters.py), and the file that is written gives the same encoders when it is merged."""

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from pipeline.models import forms
from pipeline.models.adapters import attach
from pipeline.models.clip import ClipG, ClipL, FusedAttention
from pipeline.models.config import TINY, CLIPConfig
from pipeline.models.load import set_weights
from pipeline.models.with_text import part_of
from pipeline.training import weights
from pipeline.training.targets import text_targets
from pipeline.weights import ckpt
from pipeline.weights.adapters import file, kinds
from pipeline.weights.adapters.apply import adapted_texts
from pipeline.weights.diffusers import text_module
from pipeline.weights.names import PREFIX
from tests.golden import adapters_rule, rule
from tests.golden.compare import assert_close, build
from tests.project import ROOT

GOLDEN = np.load(ROOT / "tests/golden/text_adapters.npz")
IDS = [rule.ids(TINY.clip_l.vocab_size, padding) for padding in ("end", "zero")]


class Both(nn.Cell):
    """The outputs' products with the rule's numbers, and the outputs."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.clip_l, self.clip_g = encoders().values()

    def construct(self, ids_l, ids_g, along_l, along_g, along_pooled):
        small = self.clip_l(ids_l)
        large, pooled = self.clip_g(ids_g)
        total = (small * along_l).sum() + (large * along_g).sum() + (pooled * along_pooled).sum()
        return total, small, large, pooled


def encoders() -> dict[str, nn.Cell]:
    makes = {"clip_l": lambda: ClipL(TINY.clip_l), "clip_g": lambda: ClipG(TINY.clip_g)}
    return {part: build(make, PREFIX[part]) for part, make in makes.items()}


def layer(parameter: str) -> tuple[str, str, str]:
    """(encoder, transformers' name of the layer, part)"""
    module, part = kinds.apart(parameter)
    return part_of(parameter), text_module(part_of(parameter), module), part


def taught(kind: str) -> Both:
    """With the adapters' values as the rule has them."""
    both = Both()
    for part, cell in (("clip_l", both.clip_l), ("clip_g", both.clip_g)):
        of_model = {p.name: p.asnumpy() for p in cell.get_parameters()}
        attach(
            cell, forms.chosen(), kind, list(text_targets(part, TINY)), adapters_rule.RANK, adapters_rule.ALPHA, -1, 0
        )
        for parameter in cell.trainable_params():
            module, one = kinds.apart(parameter.name)
            joined, _, which = module.rpartition(".")
            if f"{joined}.in_proj_weight" in of_model and which != "out_proj":
                base = np.split(of_model[f"{joined}.in_proj_weight"], 3)["qkv".index(which[0])]
            else:
                base = of_model[f"{module}.weight"]
            values = adapters_rule.parts_of(kind, layer(parameter.name)[1], base)
            parameter.set_data(ms.Tensor(values[one].reshape(parameter.shape)))
    return both


def computed_of(kind: str) -> tuple[Both, list[ms.Tensor], dict[str, ms.Tensor]]:
    """(the network, outputs, gradients by parameter)"""
    both = taught(kind)
    shapes = {"hidden": (2, 77, 64)}, {"hidden": (2, 77, 96), "pooled": (2, 96)}
    along = [rule.normal(f"along.{name}", shape) for own in shapes for name, shape in own.items()]
    parameters = ms.ParameterTuple(both.trainable_params())
    (_, *outputs), found = ms.value_and_grad(both, None, parameters, has_aux=True)(*map(ms.Tensor, (*IDS, *along)))
    return both, outputs, dict(zip((p.name for p in parameters), found, strict=True))


def assert_pefts(kind: str, outputs: list[ms.Tensor], gradients: dict[str, ms.Tensor]) -> None:
    for name, output in zip(("clip_l.hidden", "clip_g.hidden", "clip_g.pooled"), outputs, strict=True):
        assert_close(output, GOLDEN[f"{kind}.{name}"])
    wanted = {key for key in GOLDEN if key.startswith(f"{kind}.") and not key.endswith((".hidden", ".pooled"))}
    found = {f"{kind}.{'.'.join(layer(name))}": value for name, value in gradients.items()}
    assert found.keys() == wanted
    for key, value in found.items():
        assert abs(GOLDEN[key][0]) > 0
        difference = np.abs(rule.probe(key, value.asnumpy()) - GOLDEN[key]).max()
        assert difference <= 2e-4 * GOLDEN[key][0] + 1e-4, key


@pytest.fixture(scope="module", params=["lora", "dora"])
def computed(request, device):
    return request.param, *computed_of(request.param)


def test_outputs_and_gradients_are_pefts(computed):
    kind, _, outputs, gradients = computed
    assert_pefts(kind, outputs, gradients)


def test_the_file_that_is_written_merged_is_the_same_encoder(computed, tmp_path):
    """By kohya's names, and bigG's three projections in one."""
    kind, both, outputs, _ = computed
    parameters = both.trainable_params()
    parts = dict(weights.parts(parameters, parameters, "float32"))
    layers = {kinds.apart(name)[0] for name in parts}
    assert len(layers) == 2 * 6 + 3 * 6 and {name[:9] for name in layers} == {"lora_te1_", "lora_te2_"}
    file.write(tmp_path / "a.safetensors", parts, dict.fromkeys(layers, adapters_rule.ALPHA), {})
    plain = encoders()
    for part, cell in plain.items():
        with ckpt.Writer(tmp_path / f"{part}.ckpt") as writer:
            for parameter in cell.get_parameters():
                writer.add(PREFIX[part] + parameter.name, parameter.asnumpy())
    checkpoints = tmp_path / "clip_l.ckpt", tmp_path / "clip_g.ckpt"
    merged = adapted_texts(*checkpoints, tmp_path / "a.safetensors", TINY)
    for part, cell in plain.items():
        set_weights(cell, merged, "merged", PREFIX[part], ms.float32)
    assert_close(plain["clip_l"](ms.Tensor(IDS[0])), outputs[0].asnumpy())
    for found, wanted in zip(plain["clip_g"](ms.Tensor(IDS[1])), outputs[1:], strict=True):
        assert_close(found, wanted.asnumpy())


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_joined_projections_of_the_other_kinds(device, kind):
    """Each third of the weight is changed as kinds.py says, which is LyCORIS' (test_adapters.py)."""
    attention = FusedAttention(forms.chosen(), CLIPConfig(width=16, layers=1, heads=2))
    attention.in_proj_weight.set_data(ms.Tensor(rule.normal("joined", (48, 16))))
    names = [f"{one}_proj.weight" for one in "qkv"]
    attach(attention, forms.chosen(), kind, names, 2, 1.0, -1, seed=0)
    parameters = attention.trainable_params()
    for parameter in parameters:
        parameter.set_data(ms.Tensor(rule.normal(parameter.name, parameter.shape)))
    wanted = []
    for one, weight in zip("qkv", np.split(rule.normal("joined", (48, 16)), 3), strict=True):
        own = {kinds.apart(p.name)[1]: p.asnumpy() for p in parameters if p.name.startswith(f"{one}_proj.")}
        wanted.append(kinds.changed(weight, own, 1.0))
    found = attention.adapted(attention.in_proj_weight).asnumpy()
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=1e-5, atol=1e-5)
    assert np.abs(found - rule.normal("joined", (48, 16))).max() > 0.1
