"""The NPU's form of layers, networks and training step on a CPU: compiled as far as a CPU's kernels go, its primitives
compared with those that have an aclnn kernel, and run with stand-ins for the kernels that a CPU lacks."""

import ast
import collections
import json
import os
import subprocess
import sys
from math import prod

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from benchmarks import liveness
from pipeline.models import forms, layers
from pipeline.models.clip import ClipG, ClipL
from pipeline.models.config import TINY, UNetConfig
from pipeline.models.cpu import layers as cpu_layers
from pipeline.models.unet import UNet
from pipeline.models.vae import VAEDecoder, VAEEncoder
from pipeline.params import Train
from pipeline.planning.device import ROUNDING, TEMPORARIES
from pipeline.stage import PROJECT
from pipeline.training import memory
from pipeline.weights.adapters import kinds
from tests.golden import rule
from tests.golden.compare import assert_close, assert_gradients, build, golden, unet_inputs
from tests.golden.make_aclnn import ACLNN
from tests.models.test_text_adapters import assert_pefts, computed_of
from tests.training.npu_update import MANY, held

pytestmark = pytest.mark.usefixtures("device")

# The first kernel of each graph that a CPU lacks, forward and, but for what only runs forward, backward.
STOPS = {
    "Linear": None,
    "Linear without bias": None,
    "Conv": "Conv2DExt",
    "Conv with stride": "Conv2DExt",
    "Conv by a kernel of 1": "Conv2DExt",
    "Conv that pads unevenly": "Conv2DExt",
    "GroupNorm": None,
    "LayerNorm": "LayerNormExt",
    "SiLU": None,
    "GELU": "GeluExt",
    "GEGLU": "SplitTensor",
    "AddToChannels": None,
    "UpsampleNearest": "UpsampleNearest2D",  # in bfloat16
    "Embedding": None,
    "AtLargest": "IndexSelect",
    "plain": None,
    "tiled": "SliceExt",
    "flash float16": "FlashAttentionScore",
    "flash bfloat16": "FlashAttentionScore",
    "flash_padded float16": "FlashAttentionScore",
    "flash_padded bfloat16": "FlashAttentionScore",
    "VAEEncoder": "Conv2DExt",
    "VAEDecoder": "Conv2DExt",
    "ClipL": "LayerNormExt",
    "ClipG": "LayerNormExt",
    "VAEEncoder in bfloat16": "Conv2DExt",
    "ClipL in bfloat16": "Embedding",
    "ClipG in bfloat16": "Embedding",
    "UNet": "Dense",  # in bfloat16
    "UNet, recomputed": "Dense",
    "UNet in float32": "Conv2DExt",
    "training step": "Conv2DExt",
    "gradients": "Conv2DExt",
    "gradients in bfloat16": "ReduceMean",  # the stub's own
    "gradients of the tiny model": "Conv2DExt",
    "gradients, recomputed": "Conv2DExt",
    "gradients of a LoRA, recomputed": "Conv2DExt",
    "gradients by Huber, constant": "Conv2DExt",
    "gradients by Huber, exponential": "Conv2DExt",
    "gradients by Huber, snr": "Conv2DExt",
    "micro-batch": "Conv2DExt",
    "update": "AdamW",
    "update in bfloat16": "AdamW",
    "boundary": "AdamW",
    "boundary of Adafactor": None,
    "average": None,
    "average to weights": "Clone",
    "weights back": None,
    "validation": "Conv2DExt",
} | dict.fromkeys(kinds.KINDS, "Conv2DExt")  # adapters in a convolution, and in a linear layer behind it
# Primitives without an aclnn kernel, how many, and why they may stay:
# AddN: one of (b, 4 model_channels), the gradient of the time embedding, which all residual blocks take; and one of the
# loss, whose difference is squared.
# ReduceMean: two of the loss, b numbers and b times a latent's; one of the stub of the UNet. Adafactor's: two of a
# matrix and one that all parameters have.
# Assign: a copy on the device, of the averaged weights, of totals that are set to zero and of scalars; AssignAdd, to
# totals and counters. TensorMove: of scalars that are changed in place. StridedSlice: of one number of six.
# TensorToScalar: the learning rate, which the host gives AdamW's kernel with each launch.
LOSS = {"AddN": 1, "ReduceMean": 3}
SCALED = {"Assign": 5, "AssignAdd": 4, "TensorMove": 4, "TensorToScalar": 1}  # with a loss scale
PARAMETERS = 12  # of the stub of the UNet
MAY_STAY = {
    "UNet, recomputed": {"AddN": 1},
    "UNet in float32": {"AddN": 1},
    "training step": {"AddN": 2, "ReduceMean": 2, **SCALED},
    "gradients": LOSS,
    "gradients in bfloat16": LOSS,
    "gradients of the tiny model": {"AddN": 2, "ReduceMean": 2},
    "gradients, recomputed": {"AddN": 2, "ReduceMean": 2},
    "gradients of a LoRA, recomputed": {"AddN": 1, "ReduceMean": 2},  # the time embedding is frozen
    "gradients by Huber, constant": LOSS,
    "gradients by Huber, exponential": LOSS,
    "gradients by Huber, snr": LOSS,
    "micro-batch": LOSS | {"AssignAdd": PARAMETERS + 1},
    "update": SCALED,
    "update in bfloat16": {"Assign": 1, "AssignAdd": 1, "TensorToScalar": 1},
    "boundary": SCALED | {"Assign": 5 + PARAMETERS + 1},
    "boundary of Adafactor": {"Assign": 47, "AssignAdd": 4, "TensorMove": 4, "ReduceMean": 27},
    "average": {"Assign": PARAMETERS, "StridedSlice": 1},
    "average to weights": {"Assign": PARAMETERS},
    "weights back": {"Assign": PARAMETERS},
    "validation": {"ReduceMean": 2},
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What tests/models/npu_form.py found."""
    folder = tmp_path_factory.mktemp("npu_form")  # MindSpore leaves files where it fails
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "tests.models.npu_form"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def aclnn():
    head, *lines = ACLNN.read_text().splitlines()
    assert head.startswith(f"# MindSpore {ms.__version__}:"), "run python -m tests.golden.make_aclnn"
    return {line.split()[0] for line in lines}


def test_compilation_stops_at_the_first_kernel_that_a_cpu_lacks(compiled):
    assert {name: found["stop"] for name, found in compiled.items()} == STOPS


def test_every_layer_is_compiled(compiled):
    """Also one that will be added."""
    classes = {name for name, kind in vars(layers).items() if getattr(kind, "__module__", "") == layers.__name__}
    classes = {name for name in classes if isinstance(getattr(layers, name), type)}
    assert classes == {name for found in compiled.values() for name in found["layers"]} and "Fork" in classes


def test_primitives_have_aclnn_kernels(compiled, aclnn):
    assert not {"Conv2D", "BiasAdd", "BiasAddGrad", "LayerNorm", "LayerNormGrad", "Split", "AddN"} & aclnn
    without = {
        name: {kind: count for kind, count in found["primitives"].items() if kind not in aclnn}
        for name, found in compiled.items()
    }
    assert {name: kinds for name, kinds in without.items() if kinds} == MAY_STAY


def test_what_of_a_step_waits_for_the_device(compiled):
    """The host reads whether scaled gradients are finite, to branch; and gives AdamW's kernel the rate as a number."""
    waits = {
        name: (found["primitives"].get("TensorToScalar", 0), found["branches"]) for name, found in compiled.items()
    }
    assert {name: wait for name, wait in waits.items() if any(wait)} == {
        "training step": (1, 1),
        "training step of text": (1, 1),
        "update": (1, 1),
        "boundary": (1, 1),
        "boundary of Adafactor": (0, 1),
        "update in bfloat16": (1, 0),
    }


def test_weights_are_exchanged_for_their_averages_on_the_device(compiled):
    """A copy of each is kept, and nothing else is copied."""
    assert compiled["average to weights"]["primitives"] == {"Clone": PARAMETERS, "Assign": PARAMETERS}
    assert compiled["weights back"]["primitives"] == {"Assign": PARAMETERS}


# Kernels by part. Who changes them says why, and where they are the tiny model's counts those of the full size anew, with
# benchmarks/full_graph.py --npu, for planning/duration.py.
BUDGET = {
    "gradients of the tiny model": {"forward": 1003, "backward": 1277, "update": 1003},
    # the others are of the stub of the UNet, with its 12 parameters; "backward" is what stands in no scope
    "gradients": {"forward": 34, "backward": 26, "update": 22},
    "update": {"update": 71, "backward": 5},
    "micro-batch": {"forward": 34, "backward": 39},
    "boundary": {"update": 111, "backward": 5},
    "average": {"backward": 51},
}
# The commonest of the tiny model's.
KINDS = {
    "Cast": 1005,
    "SumExt": 607,
    "Mul": 538,
    "MatMul": 348,
    "Add": 175,
    "Dense": 87,
    "SiLUGrad": 54,
    "Conv2DExt": 51,
}


def test_the_kernels_of_an_npus_step_keep_to_their_budget(compiled):
    assert {name: compiled[name]["parts"] for name in BUDGET} == BUDGET
    found = collections.Counter(compiled["gradients of the tiny model"]["primitives"])
    assert dict(found.most_common(len(KINDS))) == KINDS


def test_blocks_are_no_shared_subgraphs():
    """By lazy_inline, which does nothing on a CPU: an NPU would compile other graphs than are compiled here. MindSpore's
    front end refuses ours where they are recomputed ("The k_fg ... should have primal part", recompute.cc)."""
    found = [file for file in (PROJECT / "pipeline").rglob("*.py") if "lazy_inline" in file.read_text(encoding="utf-8")]
    assert found == []


def test_the_memory_of_an_npus_gradients_is_what_the_plan_says(compiled):
    """By both orders of its kernels: as MindSpore lists them, and as its runtime runs them."""
    size = 32, 8  # SIDE and BATCH of tests/models/npu_form.py, whose UNET this is too
    small = UNetConfig(16, (1, 2), (0, 1), context_dim=24, vector_dim=40, head_dim=16, num_res_blocks=1, norm_groups=4)
    planned = liveness.planned(TINY.unet, *size, False, False)
    for found in compiled["gradients of the tiny model"]["peaks"]:
        assert found == pytest.approx(planned, rel=0.05)
    planned = liveness.planned(small, *size, True, False)
    listed, run = compiled["gradients, recomputed"]["peaks"]
    assert run == pytest.approx(planned, rel=0.05) and planned < listed < liveness.planned(small, *size, False, False)
    listed, run = compiled["gradients of a LoRA, recomputed"]["peaks"]
    assert run < liveness.planned(small, *size, True, True) < listed


def test_the_backward_pass_is_there(compiled):
    held = compiled["training step"]["primitives"]
    for forward, backward in (
        ("Conv2DExt", "ConvolutionGrad"),
        ("LayerNormExt", "LayerNormGradExt"),
        ("GroupNorm", "GroupNormGrad"),
        ("GeluExt", "GeluGradExt"),
        ("FlashAttentionScore", "FlashAttentionScoreGrad"),
        ("UpsampleNearest2D", "UpsampleNearest2DGrad"),
    ):
        assert held[forward] == held[backward] > 0, forward


def test_nothing_is_transposed_for_flash_attention(compiled):
    """Nor for products: what is left is each SpatialTransformer's way from maps to tokens and back, forward and
    backward."""
    for name in ("flash float16", "flash_padded bfloat16"):
        assert "Transpose" not in compiled[name]["primitives"]
    attentions = compiled["training step"]["primitives"]["FlashAttentionScore"]
    assert compiled["training step"]["primitives"]["Transpose"] == 4 * attentions / 2
    assert compiled["UNet in float32"]["primitives"]["Transpose"] > 4 * attentions


def test_gelu_is_one_kernel_of_halves(compiled):
    assert "Erf" not in compiled["GEGLU"]["primitives"] and compiled["GEGLU"]["primitives"]["GeluExt"] == 1


class _Gelu(nn.Cell):
    def construct(self, x, approximate):
        return ops.gelu(x, approximate=approximate)


@pytest.fixture
def stand_ins(monkeypatch):
    """Kernels that a CPU has for those that it lacks: the older ones, with the same documented meaning."""

    def conv2d(x, weight, bias, stride, padding):
        return ops.conv2d(x, weight, bias, stride, "pad", padding)

    def layer_norm(x, shape, gamma, beta, eps):
        return ops.LayerNorm(-1, -1, eps)(x, gamma, beta)[0]

    def index_select(x, axis, index):
        return ops.gather(x, index, axis)

    def halves(x):
        return ops.Split(-1, 2)(x)

    for function in (conv2d, layer_norm):
        monkeypatch.setattr(layers.F, function.__name__, function)
    monkeypatch.setattr(ms.mint, "index_select", index_select)
    monkeypatch.setattr(layers, "halves", halves)
    monkeypatch.setattr(ops.auto_generate, "GeluExt", _Gelu)


def test_unet_gradients_equal_diffusers(stand_ins):
    prefix = "model.diffusion_model."
    unet = build(lambda: UNet(rule.MINI, layers=layers), prefix)
    inputs = unet_inputs(rule.MINI, "mini")
    output = assert_gradients(unet, inputs, (rule.BATCH, 4, *rule.LATENT), prefix, "mini", "unet")
    assert_close(output, golden("mini")["unet"])


def test_vae_equals_diffusers(stand_ins):
    prefix = "first_stage_model."
    encoder = build(lambda: VAEEncoder(TINY.vae, layers=layers), prefix)
    assert_close(encoder(ms.Tensor(rule.normal("pixels", (rule.BATCH, 3, *rule.PIXELS)))), golden("tiny")["moments"])
    decoder = build(lambda: VAEDecoder(TINY.vae, layers=layers), prefix)
    pixels = decoder(ms.Tensor(rule.normal("latents", (rule.BATCH, 4, *rule.LATENT))))
    assert_close(pixels[:, :, ::4, ::4], golden("tiny")["pixels"])


def test_text_encoders_equal_transformers(stand_ins):
    clip_l = build(lambda: ClipL(TINY.clip_l, layers=layers), "conditioner.embedders.0.")
    assert_close(clip_l(ms.Tensor(rule.ids(TINY.clip_l.vocab_size, "end"))), golden("tiny")["clip_l"])
    clip_g = build(lambda: ClipG(TINY.clip_g, layers=layers), "conditioner.embedders.1.")
    hidden, pooled = clip_g(ms.Tensor(rule.ids(TINY.clip_g.vocab_size, "zero")))
    assert_close(hidden, golden("tiny")["clip_g"])
    assert_close(pooled, golden("tiny")["pooled"])


@pytest.mark.parametrize(
    "make",
    [
        lambda form: UNet(TINY.unet, layers=form),
        lambda form: VAEEncoder(TINY.vae, layers=form),
        lambda form: VAEDecoder(TINY.vae, layers=form),
        lambda form: ClipL(TINY.clip_l, layers=form),
        lambda form: ClipG(TINY.clip_g, layers=form),
    ],
)
def test_both_forms_have_the_same_parameters(make):
    own, other = make(layers), make(cpu_layers)
    assert [(p.name, p.shape) for p in own.get_parameters()] == [(p.name, p.shape) for p in other.get_parameters()]
    assert layers.norm_parameters(own) == layers.norm_parameters(other) != set()


def test_the_form_is_chosen_when_a_cell_is_made():
    """And not in its construct, nor in what that calls."""
    chosen, others = 0, []
    for file in sorted(set((PROJECT / "pipeline").rglob("*.py")) - {PROJECT / "pipeline/models/forms.py"}):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inits = {node for init in ast.walk(tree) if getattr(init, "name", "") == "__init__" for node in ast.walk(init)}
        for node in ast.walk(tree):
            if getattr(node, "attr", getattr(node, "value", "")) in ("on_cpu", "device_target"):
                chosen += node in inits
                others += [] if node in inits else [f"{file.relative_to(PROJECT)}:{node.lineno}"]
    assert chosen >= 7 and not others


def test_both_forms_have_the_same_layers():
    """One is not asked for what only the other has."""
    names = {name for name in vars(cpu_layers) if name[0].isupper()} - {"Convolution"} | {"linear", "make_attention"}
    assert len(names) > 12 and all(hasattr(layers, name) for name in names)


@pytest.mark.parametrize("form", [layers, cpu_layers])
def test_sum_of_squares(form):
    draw = np.random.default_rng(0)
    arrays = [draw.standard_normal(shape).astype(np.float32) for shape in ((7,), (5, 3), (8, 4, 3, 3), (1,))]
    arrays.append(arrays[1].astype(np.float16))
    found = form.SumOfSquares()(tuple(map(ms.Tensor, arrays))).asnumpy()
    np.testing.assert_allclose(found, sum((a.astype(np.float64) ** 2).sum() for a in arrays), rtol=1e-6)


# Primitives of the optimizers' updates of three parameters without an aclnn kernel, and how many; as above, and
# StridedSlice of prodigy's two sums.
UPDATES_MAY_STAY = {
    "adamw": {"Assign": 1, "AssignAdd": 1, "TensorToScalar": 1},
    "adamw8bit": {"Assign": 9, "AssignAdd": 1},
    "lion": {"Assign": 4, "AssignAdd": 1},
    "prodigy": {"Assign": 12, "AssignAdd": 1, "TensorMove": 2, "StridedSlice": 2},
    "adafactor": {"Assign": 6, "AssignAdd": 1, "ReduceMean": 9},
}
# All their kernels, most of which round to bfloat16.
UPDATES_BUDGET = {"adamw": 124, "adamw8bit": 205, "lion": 152, "prodigy": 237, "adafactor": 204}


def test_every_optimizer_compiles_for_an_npu(aclnn):
    """On bfloat16 weights, up to the first kernel that this CPU lacks."""
    command = [sys.executable, "-m", "tests.training.npu_update", "optimizers"]
    found = held(subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout)
    assert set(found) == set(Train.model_fields["optimizer"].annotation.__args__)
    for name, update in found.items():
        assert update["missing"] == "BitwiseXorTensor", name  # of the rounding
        without = {kind: count for kind, count in update["kinds"].items() if kind not in aclnn}
        assert without == UPDATES_MAY_STAY[name] and sum(update["kinds"].values()) <= UPDATES_BUDGET[name], name
        # a parameter that was read before and after its update would be copied
        # but for numbers by themselves: prodigy's, whose d the step's outcome has
        assert update["moves"] == ([4, 4] if name == "prodigy" else []), name
        assert update["kinds"]["InplaceCopy"] == 3, name
        # one bucket after the other: what does not wait for its turn, all eight weights would have at once
        arrays = 1 + TEMPORARIES[name] + ROUNDING["bfloat16"]
        assert update["peak"] <= 1000 + 4 * (memory.rounding_numbers(MANY) + arrays * prod(MANY[0])), name


# Text encoders that are trained: whole ones, bigG with adapters in its joined projections, and a step of both.
STOPS |= dict.fromkeys(
    ["ClipL, trained", "ClipG, trained", *(f"ClipG, {kind}" for kind in kinds.KINDS)], "LayerNormExt"
)
STOPS |= {"training step of text": "Embedding"}  # bigG's, in bfloat16
MAY_STAY |= {
    "training step of text": {"AddN": 1, "ReduceMean": 2, **SCALED}
    | {
        "StridedSlice": 6,  # of ids, and of a caption's first and last token where it has several chunks
        "StridedSliceGrad": 2,  # of these tokens
        "ExpandDims": 1,  # of b numbers
    }
}


def test_the_backward_pass_of_text_encoders_is_there(compiled):
    for name, embeddings in (("ClipL, trained", 1), ("ClipG, trained", 1), ("training step of text", 2)):
        found = compiled[name]["primitives"]
        assert found["LayerNormExt"] >= found["LayerNormGradExt"] > 0, name  # bigG's are frozen in the step
        assert found["Embedding"] == embeddings and found["EmbeddingDenseBackward"] == 1, name
    large = compiled["ClipG, trained"]["primitives"]
    assert large["LayerNormExt"] == large["LayerNormGradExt"] and large["GeluExt"] == large["GeluGradExt"] == 2
    assert large["IndexSelect"] == large["InplaceIndexAddExt"] == 1
    for kind in kinds.KINDS:
        found = compiled[f"ClipG, {kind}"]["primitives"]
        assert "EmbeddingDenseBackward" not in found and found["MatMul"] > large["MatMul"] // 2, kind


def test_a_step_of_text_encoders_copies_no_weights(compiled):
    """Nor is any summed over a caption's chunks; only scalars are moved, as in the UNet's step."""
    found, plain = (compiled[name]["primitives"] for name in ("training step of text", "training step"))
    assert found["TensorMove"] == plain["TensorMove"]
    assert found["AddN"] == 1  # of the loss


def test_text_encoders_with_adapters_have_pefts_gradients(stand_ins, monkeypatch):
    monkeypatch.setattr(forms, "chosen", lambda: layers)
    _, outputs, gradients = computed_of("lora")
    assert_pefts("lora", outputs, gradients)
