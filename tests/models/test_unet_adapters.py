"""A UNet with adapters in all its layers: output and gradients against PEFT's (LoRA, DoRA) and LyCORIS' (LoHa, LoKr) in
diffusers' UNet (tests/golden/make_unet_adapters.py), and the file that is written gives the same UNet when merged."""

from dataclasses import replace

from pipeline.device import Device

import mindspore as ms
import numpy as np
import pytest

from pipeline.diffusion import conditioning
from pipeline.models import forms
from pipeline.models.adapters import attach
from pipeline.models.config import TINY
from pipeline.models.load import set_weights
from pipeline.models.unet import ResBlock, TransformerBlock, UNet
from pipeline.training import build as training_build
from pipeline.training import weights
from pipeline.training.targets import targets
from pipeline.weights import ckpt
from pipeline.weights.adapters import file, kinds
from pipeline.weights.adapters.apply import adapted_unet
from pipeline.weights.names import PREFIX
from tests.golden import adapters_rule, rule
from tests.golden.compare import assert_close, build
from tests.project import ROOT
from tests.training.training_samples import params

GOLDEN = np.load(ROOT / "tests/golden/unet_adapters.npz")
CONFIG = replace(TINY, unet=adapters_rule.UNET)
SHAPE = (rule.BATCH, 4, *rule.LATENT)


def unet() -> UNet:
    return build(lambda: UNet(CONFIG.unet), PREFIX["unet"])


def inputs() -> tuple[ms.Tensor, ...]:
    pooled = rule.normal("pooled", (rule.BATCH, CONFIG.unet.vector_dim - 6 * 256))
    return (
        ms.Tensor(rule.normal("x", SHAPE)),
        ms.Tensor(rule.TIMESTEPS, ms.int32),
        ms.Tensor(rule.normal("context", (rule.BATCH, 77, CONFIG.unet.context_dim))),
        ms.Tensor(conditioning.vector(pooled, np.array(rule.TIME_IDS))),
    )


def adapted(kind: str) -> UNet:
    """With the adapters' values as the rule has them."""
    cell = unet()
    bases = {p.name.removesuffix(".weight"): p.asnumpy() for p in cell.get_parameters()}
    chosen = targets({p.name: p.shape for p in cell.get_parameters()}, ["*"], ())
    attach(cell, forms.chosen(), kind, chosen, adapters_rule.RANK, adapters_rule.ALPHA, adapters_rule.FACTOR, 0)
    for parameter in cell.trainable_params():
        layer, part = kinds.apart(parameter.name)
        values = adapters_rule.parts_of(kind, layer, bases[layer])[part]
        parameter.set_data(ms.Tensor(values.reshape(parameter.shape)))
    return cell


@pytest.fixture(scope="module", params=kinds.KINDS)
def computed(request, device):
    """(kind, the UNet, its output, gradients by parameter)"""
    cell = adapted(request.param)
    parameters = cell.trainable_params()

    def loss(dout, *given):
        output = cell(*given)
        return (output * dout).sum(), output

    ms.set_context(mode=ms.PYNATIVE_MODE)  # four graphs of so many layers would take minutes to compile
    try:
        function = ms.value_and_grad(loss, None, parameters, has_aux=True)
        (_, output), found = function(ms.Tensor(rule.normal("dout", SHAPE)), *inputs())
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    return request.param, cell, output, dict(zip((p.name for p in parameters), found, strict=True))


def test_output_and_gradients_are_those_of_peft_and_lycoris(computed):
    kind, _, output, gradients = computed
    assert_close(output, GOLDEN[f"{kind}.output"])
    wanted = dict(zip(GOLDEN[f"{kind}.names"].tolist(), GOLDEN[f"{kind}.gradients"], strict=True))
    assert {f"{kind}.{name}" for name in gradients} == set(wanted)
    largest = max(length for length, _ in wanted.values())
    for name, gradient in gradients.items():
        key = f"{kind}.{name}"
        difference = np.abs(rule.probe(key, gradient.asnumpy()) - wanted[key]).max()
        assert difference <= 2e-4 * max(wanted[key][0], 1e-3 * largest), (key, difference, wanted[key])


def test_the_file_that_is_written_merged_is_the_same_unet(computed, checkpoint, tmp_path):
    kind, cell, output, _ = computed
    parameters = cell.trainable_params()
    parts = dict(weights.parts(parameters, parameters, "float32"))
    layers = {kinds.apart(name)[0] for name in parts}
    file.write(tmp_path / "a.safetensors", parts, dict.fromkeys(layers, adapters_rule.ALPHA), {})
    plain = unet()
    merged = adapted_unet(checkpoint, tmp_path / "a.safetensors", CONFIG)
    set_weights(plain, merged, "merged", PREFIX["unet"], ms.float32)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        found = plain(*inputs())
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert_close(found, output.asnumpy())


@pytest.fixture(scope="module")
def checkpoint(device, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "unet.ckpt"
    with ckpt.Writer(path) as writer:
        for parameter in unet().get_parameters():
            writer.add(PREFIX["unet"] + parameter.name, parameter.asnumpy())
    return path


@pytest.mark.parametrize(("kind", "checkpointing"), [("none", True), ("lora", True), ("dora", True), ("lora", False)])
def test_blocks_are_computed_again_with_their_adapters(device, checkpoint, kind, checkpointing):
    """train.gradient_checkpointing on an NPU; test_unet.py has the gradients."""
    settings = {"train.adapter": kind, "train.gradient_checkpointing": checkpointing}
    cell = training_build.unet(CONFIG, Device("Ascend"), params(**settings).train, checkpoint)
    blocks = [one for _, one in cell.cells_and_names() if isinstance(one, (ResBlock, TransformerBlock))]
    assert all(("output_recompute" in one.get_flags()) == checkpointing for one in blocks)
    inside = [one for block in blocks for _, one in block.cells_and_names()]
    own = [one for one in inside if type(one).__module__ == attach.__module__]
    assert len(own) > len(blocks) or kind == "none"
    # the scope is what MindSpore knows them by
    assert {(one.get_scope() or "").startswith("recompute_") for one in inside} == {checkpointing}


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_a_cpu_keeps_the_blocks_and_says_so(device, checkpoint, kind, caplog):
    """MindSpore saves no memory there by computing them again, and some networks it cannot compile then: "Graph cycle
    exists"."""
    settings = {"train.adapter": kind, "train.gradient_checkpointing": True}
    with caplog.at_level("INFO"):
        cell = training_build.unet(CONFIG, device, params(**settings).train, checkpoint)
    assert not any("output_recompute" in one.get_flags() for _, one in cell.cells_and_names())
    assert "train.gradient_checkpointing: not on this CPU" in caplog.text
