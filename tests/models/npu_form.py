"""Compiles the NPU's form of layers, networks and a training step's gradients on a CPU: python -m tests.models.npu_form

Writes to its output, as JSON, for each case what stopped its compilation (a kernel that a CPU lacks; null if nothing
did), how often each primitive is in its graph before MindSpore selects kernels, how many kernels each part has
(benchmarks/kernels.py), how many branches, and the memory at its fullest by both orders of its kernels
(benchmarks/liveness.py). The dumps that this is read from are switched on by variables that MindSpore reads once."""

import collections
import dataclasses
import json
import os
import re
import sys
import tempfile
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory()
DUMPS = Path(FOLDER.name)
os.environ |= {
    "MS_DEV_SAVE_GRAPHS": "1",
    "MS_DEV_SAVE_GRAPHS_PATH": str(DUMPS),
    "MS_DEV_DUMP_IR_PASSES": "backend_pass",
}

import pipeline.device  # noqa: E402

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import nn  # noqa: E402

from benchmarks import kernels as benchmark  # noqa: E402
from benchmarks import liveness  # noqa: E402
from pipeline.models import layers  # noqa: E402
from pipeline.models.adapters import attach  # noqa: E402
from pipeline.models.attention import TiledAttention  # noqa: E402
from pipeline.models.clip import ClipG, ClipL  # noqa: E402
from pipeline.models.config import TINY, CLIPConfig, UNetConfig  # noqa: E402
from pipeline.models.unet import UNet, recompute_blocks  # noqa: E402
from pipeline.models.vae import VAEDecoder, VAEEncoder  # noqa: E402
from pipeline.models.with_text import WithText  # noqa: E402
from pipeline.training.optimizers.adafactor import Adafactor  # noqa: E402
from pipeline.training.optimizers.adamw import AdamW  # noqa: E402
from pipeline.training.optimizers.common import decays  # noqa: E402
from pipeline.training.step import (  # noqa: E402
    Accumulate,
    Apply,
    Average,
    Boundary,
    Gradients,
    SampleLoss,
    Settings,
    TrainStep,
    Update,
    average_of,
)
from pipeline.training.targets import targets, text_targets  # noqa: E402
from pipeline.training.validation import _PutBack, _Replace  # noqa: E402
from pipeline.weights.adapters import kinds  # noqa: E402
from pipeline.weights.adapters.extract import TARGETS  # noqa: E402
from tests.models.stub_unet import StubUNet  # noqa: E402

BATCH, SIDE = 8, 32  # of the latents of whole networks, whose memory is looked at
UNET = UNetConfig(16, (1, 2), (0, 1), context_dim=24, vector_dim=40, head_dim=16, num_res_blocks=1, norm_groups=4)


def array(*shape, dtype=ms.float32) -> ms.Tensor:
    return ms.Tensor(np.random.default_rng(0).standard_normal(shape, np.float32)).astype(dtype)


SCALAR = ms.Tensor(0.5, ms.float32)
IDS = ms.Tensor(np.arange(2 * 77, dtype=np.int32).reshape(2, 77))


def qkv(dtype, keys: int = 77) -> tuple:
    return array(2, 24, 64, dtype=dtype), array(2, keys, 64, dtype=dtype), array(2, keys, 64, dtype=dtype)


def unet(attention: str, dtype: ms.Type, **options) -> tuple:
    cell = UNet(UNET, attention, dtype, layers=layers, **options)
    inputs = array(2, 4, 8, 8), ms.Tensor([3, 871], ms.int32), array(2, 77, UNET.context_dim), array(2, UNET.vector_dim)
    return cell, inputs


def half(cell: nn.Cell, dtype: ms.Type = ms.float16) -> nn.Cell:
    """With all weights but the norms' in this dtype, as frozen ones are."""
    norms = layers.norm_parameters(cell)
    for parameter in cell.get_parameters():
        if parameter.name not in norms:
            parameter.set_dtype(dtype)
    return cell


def lora() -> nn.Cell:
    """A UNet of frozen halves whose transformers have a LoRA, with gradient checkpointing."""
    network = half(unet("flash", ms.float16)[0])
    chosen = targets({p.name: p.shape for p in network.get_parameters()}, TARGETS, ())
    attach(network, layers, "lora", chosen, rank=2, alpha=1.0, factor=-1, seed=0)
    recompute_blocks(network)
    return network


class Adapted(nn.Cell):
    """A linear layer and a convolution with an adapter each, frozen in half precision."""

    def __init__(self, kind: str):
        super().__init__()
        self.conv, self.linear = layers.Conv(8, 12, 3), layers.Linear(12, 16)
        half(self)
        attach(self, layers, kind, ["conv.weight", "linear.weight"], rank=2, alpha=1.0, factor=-1, seed=0)

    def construct(self, x):
        y = self.conv(x)
        return self.linear(y.reshape(*y.shape[:2], -1).swapaxes(1, 2))


# name -> (cell, inputs)
ADAPTERS = {kind: lambda kind=kind: (Adapted(kind), (array(2, 8, 6, 4, dtype=ms.float16),)) for kind in kinds.KINDS}
LAYERS = {
    "Linear": lambda: (layers.Linear(8, 6), (array(2, 3, 8),)),
    "Linear without bias": lambda: (layers.Linear(8, 6, bias=False), (array(2, 3, 8),)),
    "Conv": lambda: (layers.Conv(4, 6, 3), (array(2, 4, 8, 6),)),
    "Conv with stride": lambda: (layers.Conv(4, 6, 3, stride=2), (array(2, 4, 8, 6),)),
    "Conv by a kernel of 1": lambda: (layers.Conv(4, 6, 1), (array(2, 4, 8, 6),)),
    "Conv that pads unevenly": lambda: (layers.Conv(4, 6, 3, 2, (0, 1, 0, 1)), (array(2, 4, 8, 6),)),
    "GroupNorm": lambda: (layers.GroupNorm(2, 4, 1e-5), (array(2, 4, 8, 6, dtype=ms.float16),)),
    "LayerNorm": lambda: (layers.LayerNorm(8), (array(2, 3, 8, dtype=ms.float16),)),
    "SiLU": lambda: (layers.SiLU(), (array(2, 3, 8),)),
    "GELU": lambda: (layers.GELU(), (array(2, 3, 8, dtype=ms.float16),)),
    "GEGLU": lambda: (layers.GEGLU(8, 6), (array(2, 3, 8, dtype=ms.float16),)),
    "AddToChannels": lambda: (layers.AddToChannels(), (array(2, 4, 8, 6), array(2, 4))),
    "UpsampleNearest": lambda: (layers.UpsampleNearest(), (array(2, 4, 8, 6, dtype=ms.bfloat16),)),
    "plain": lambda: (layers.make_attention("plain", 4, 16), qkv(ms.float32)),
    "tiled": lambda: (TiledAttention(4, 16, tile=10), qkv(ms.float32)),
    "flash float16": lambda: (layers.make_attention("flash", 4, 16, ms.float16), qkv(ms.float16)),
    "flash bfloat16": lambda: (layers.make_attention("flash", 4, 16, ms.bfloat16), qkv(ms.bfloat16)),
    "flash_padded float16": lambda: (layers.make_attention("flash_padded", 4, 16, ms.float16), qkv(ms.float16)),
    "flash_padded bfloat16": lambda: (layers.make_attention("flash_padded", 4, 16, ms.bfloat16), qkv(ms.bfloat16)),
}
FORWARD = {
    "Embedding": lambda: (layers.Embedding(200, 8), (IDS,)),
    "AtLargest": lambda: (layers.AtLargest(), (array(2, 77, 8), IDS)),
    "VAEEncoder": lambda: (VAEEncoder(TINY.vae, layers=layers), (array(1, 3, 32, 16),)),
    "VAEDecoder": lambda: (VAEDecoder(TINY.vae, layers=layers), (array(1, 4, 4, 2),)),
    "ClipL": lambda: (ClipL(TINY.clip_l, layers=layers), (IDS,)),
    "ClipG": lambda: (ClipG(TINY.clip_g, layers=layers), (IDS,)),
    "VAEEncoder in bfloat16": lambda: (
        half(VAEEncoder(TINY.vae, layers=layers), ms.bfloat16),
        (array(1, 3, 32, 16, dtype=ms.bfloat16),),
    ),
    "ClipL in bfloat16": lambda: (half(ClipL(TINY.clip_l, layers=layers), ms.bfloat16), (IDS,)),
    "ClipG in bfloat16": lambda: (half(ClipG(TINY.clip_g, layers=layers), ms.bfloat16), (IDS,)),
    "UNet": lambda: unet("flash", ms.bfloat16),
}
GRADIENTS = {
    "UNet, recomputed": lambda: unet("flash_padded", ms.bfloat16, recompute=True),
    "UNet in float32": lambda: unet("tiled", ms.float32),
}


def step() -> tuple:
    """(a whole training step in float16 with a loss scale, as a data sink runs it; its inputs)"""
    network, (x, timesteps, context, vector) = unet("flash", ms.float16)
    settings = Settings(max_grad_norm=1.0, loss_scale=1024.0)
    cell = TrainStep(SampleLoss(network, settings), update(network, settings))
    return cell, (x, timesteps, context, vector, x, array(2), SCALAR)


def update(network: nn.Cell, settings: Settings, optimizer: str = "adamw") -> Update:
    weights = list(network.trainable_params())
    if optimizer == "adafactor":
        made = Adafactor(weights, decays(network), 0.01)
    else:
        made = AdamW(weights, decays(network), 0.01, 0.9, 0.999, 1e-8)
    return Update(made, average_of(weights), settings)


def part(name: str, precision: ms.Type, micro_batches: int = 1, optimizer: str = "adamw") -> tuple:
    """(one of the graphs that a step or a validation consists of, its inputs), around the stub of the UNet"""
    return part_of(StubUNet(UNET, compute_dtype=precision), UNET, name, precision, micro_batches, optimizer)


def part_of(
    network: nn.Cell,
    config: UNetConfig,
    name: str,
    precision: ms.Type,
    micro_batches: int = 1,
    optimizer: str = "adamw",
    batch_size: int = 2,
    side: int = 8,
    **settings,
) -> tuple:
    """As `part`, of this network."""
    scale = 1024.0 if precision == ms.float16 else None
    settings = Settings(max_grad_norm=1.0, loss_scale=scale, gradient_accumulation_steps=micro_batches, **settings)
    whole, loss = update(network, settings, optimizer), SampleLoss(network, settings)
    b, x = batch_size, array(batch_size, 4, side, side)
    batch = x, SCALAR.broadcast_to((b,)), array(b, 77, config.context_dim), array(b, config.vector_dim), x, array(b)
    weights = tuple(array(*p.shape) for p in whole.parameters)
    return {
        "gradients": lambda: (Gradients(loss, whole), batch),
        "update": lambda: (Apply(whole), (SCALAR, SCALAR, SCALAR, *weights)),
        "micro-batch": lambda: (Accumulate(loss, whole), batch),
        "boundary": lambda: (Boundary(Accumulate(loss, whole), whole), (SCALAR,)),
        "average": lambda: (Average(whole), (array(6), SCALAR)),
        "average to weights": lambda: (_Replace(whole.parameters, whole.ema), ()),
        "weights back": lambda: (_PutBack(whole.parameters), weights),
        "validation": lambda: (loss, batch[:5]),
    }[name]()


HUBER = ("constant", "exponential", "snr")


def huber(schedule: str) -> tuple:
    """(the gradients' graph of the stub with this schedule of a Huber loss, its inputs)"""
    thresholds = np.linspace(1.0, 0.1, 1000) if schedule == "snr" else None
    settings = {"loss_type": "huber", "huber_c": 0.1, "huber_schedule": schedule, "huber_thresholds": thresholds}
    return part_of(StubUNet(UNET, compute_dtype=ms.float16), UNET, "gradients", ms.float16, **settings)


# What an NPU runs without a data sink (training/drive.py, training/validation.py), in the precision of the presets.
PARTS = (
    {
        name: lambda name=name: part(name, ms.float16)
        for name in ("gradients", "update", "average", "average to weights", "weights back", "validation")
    }
    | {
        "gradients in bfloat16": lambda: part("gradients", ms.bfloat16),
        "update in bfloat16": lambda: part("update", ms.bfloat16),
        "micro-batch": lambda: part("micro-batch", ms.float16, 2),
        "boundary": lambda: part("boundary", ms.float16, 2),
        "boundary of Adafactor": lambda: part("boundary", ms.float16, 2, "adafactor"),
        "gradients of the tiny model": lambda: part_of(
            UNet(TINY.unet, "flash", ms.float16), TINY.unet, "gradients", ms.float16, batch_size=BATCH, side=SIDE
        ),
        "gradients, recomputed": lambda: part_of(
            unet("flash", ms.float16, recompute=True)[0], UNET, "gradients", ms.float16, batch_size=BATCH, side=SIDE
        ),
        "gradients of a LoRA, recomputed": lambda: part_of(
            lora(), UNET, "gradients", ms.float16, batch_size=BATCH, side=SIDE
        ),
    }
    | {f"gradients by Huber, {schedule}": lambda schedule=schedule: huber(schedule) for schedule in HUBER}
)


class SquaredError(nn.Cell):
    """Of a network against zeros, over everything: its gradient needs what the layers keep."""

    def __init__(self, network: nn.Cell):
        super().__init__()
        self.network = network

    def construct(self, *inputs):
        return ms.mint.square(self.network(*inputs).astype(ms.float32)).sum()


def gradients(cell: nn.Cell, inputs: tuple):
    """The loss and its gradients by every parameter, and by every input where there are no parameters."""
    weights = list(cell.trainable_params())
    if weights:
        return ms.value_and_grad(SquaredError(cell), None, weights)
    return ms.value_and_grad(SquaredError(cell), tuple(range(len(inputs))))


def layers_of(cell: nn.Cell) -> list[str]:
    """The names of the layers that it has."""
    found = {type(child) for _, child in cell.cells_and_names()}
    return sorted(kind.__name__ for kind in found if kind.__module__ == layers.__name__)


def compiled(function, inputs: tuple) -> dict:
    for old in DUMPS.rglob("*.ir"):
        old.unlink()
    stop = None
    try:
        function(*inputs) if isinstance(function, nn.Cell) else ms.jit(function)(*inputs)
    except (RuntimeError, TypeError) as error:
        found = re.search(r"(?:Unsupported op |Select CPU operator)\[(\w+)\]", str(error))
        if found is None:
            raise
        stop = found[1]
    nodes = benchmark.dumped_nodes(DUMPS)
    primitives, parts = collections.Counter(), collections.Counter()
    for (part, kind), count in benchmark.counted(nodes).items():
        primitives[kind] += count
        parts[part] += count
    branches = sum(node.kind == "Switch" for node in nodes.values())
    orders = nodes, liveness.as_soon_as_ready(liveness.largest(nodes))
    peaks = [max(liveness.lives(order)) for order in orders]
    return {"stop": stop, "primitives": primitives, "parts": parts, "branches": branches, "peaks": peaks}


CLIP_L = CLIPConfig(width=8, layers=2, heads=2, vocab_size=200)
CLIP_G = CLIPConfig(width=16, layers=2, heads=2, vocab_size=200, projection_dim=8)


class Joined(nn.Cell):
    """A text encoder's outputs in one."""

    def __init__(self, encoder: nn.Cell):
        super().__init__()
        self.encoder = encoder

    def construct(self, ids):
        found = self.encoder(ids)
        return found if isinstance(found, ms.Tensor) else ms.mint.cat([one.reshape(-1) for one in found])


def text_adapted(make, kind: str) -> tuple:
    """(an encoder in half precision with an adapter in all layers that may have one, its inputs)"""
    cell = half(make())
    part = "clip_l" if isinstance(cell, ClipL) else "clip_g"
    config = dataclasses.replace(TINY, clip_l=CLIP_L, clip_g=CLIP_G)
    attach(cell, layers, kind, list(text_targets(part, config)), rank=2, alpha=1.0, factor=-1, seed=0)
    return Joined(cell), (IDS,)


def text_gradients() -> dict:
    """name -> case: encoders that are trained, whole and by adapters, of which bigG's are in joined projections too."""
    makes = {"ClipL": lambda: ClipL(CLIP_L, layers=layers), "ClipG": lambda: ClipG(CLIP_G, layers=layers)}
    found = {f"{name}, trained": lambda make=make: (Joined(make()), (IDS,)) for name, make in makes.items()}
    return found | {f"ClipG, {kind}": lambda kind=kind: text_adapted(makes["ClipG"], kind) for kind in kinds.KINDS}


class Reader(nn.Cell):
    """In a UNet's place: reads what the encoders give."""

    def __init__(self):
        super().__init__()
        self.text, self.label = layers.Linear(24, 4), layers.Linear(8 + 40, 4)

    def construct(self, x, timesteps, context, vector):
        read = self.text(context.astype(ms.float16)).astype(ms.float32).sum(1) + self.label(vector)
        return x + read.reshape(-1, 4, 1, 1)


def text_step() -> tuple:
    """(a whole training step with CLIP-L trained in float32 and bigG frozen in a half, on captions of two chunks; its
    inputs)"""
    large = half(ClipG(CLIP_G, layers=layers), ms.bfloat16)
    for parameter in large.get_parameters():
        parameter.requires_grad = False
    with benchmark.npu_forms():
        network = WithText(Reader(), ClipL(CLIP_L, layers=layers), large)
        optimizer = AdamW(network.trainable_params(), decays(network), 0.01, 0.9, 0.999, 1e-8)
        settings = Settings(max_grad_norm=1.0, loss_scale=1024.0)
        cell = TrainStep(SampleLoss(network, settings), Update(optimizer, None, settings))
    ids = ms.Tensor(np.arange(2 * 2 * 2 * 77, dtype=np.int32).reshape(2, 2, 2, 77) % 200)
    x = array(2, 4, 8, 8)
    return cell, (x, ms.Tensor([3, 871], ms.int32), ids, array(2, 40), x, array(2), ms.Tensor(0.5, ms.float32))


def main() -> None:
    pipeline.device.setup("CPU")
    with benchmark.npu_forms():
        found = everything()
    print(json.dumps(found))


def everything() -> dict:
    found = {}
    whole = {"training step": step, "training step of text": text_step} | PARTS
    trained = LAYERS | ADAPTERS | GRADIENTS | text_gradients()
    for cases, wrap in ((trained, gradients), (FORWARD | whole, lambda cell, inputs: cell)):
        for name, make in cases.items():
            cell, inputs = make()
            found[name] = compiled(wrap(cell, inputs), inputs) | {"layers": layers_of(cell)}
            print(name, found[name]["stop"], file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
