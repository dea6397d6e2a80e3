"""Memory of a device: what stays from step to step, and what the two parts of a step need beside it.

The backward pass ends with the gradients of all parameters in memory, and the update begins with them."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from math import prod

from pipeline.models.config import CONFIGS
from pipeline.planning import cpu, npu, step, unet
from pipeline.planning.run import Run, adapted_shapes, adapted_texts, component_shapes, trained_shapes, unet_shapes
from pipeline.training import memory
from pipeline.weights.chosen import trained_parts

GB = 10**9
CARD = 64 * GB
# Part of a card that the system, kernels' workspaces and fragmentation take: an assumption. MindONE left 5 GB of 64
# (max_device_memory 59GB).
RESERVED = 5 * GB
# What is estimated may be this much more: to so much it was checked, in a CPU's form by its memory
# (benchmarks/memory.py), and in an NPU's by the order of its graph (benchmarks/liveness.py).
MARGIN = 0.25
# Float32 arrays as large as a bucket's parameters that the update has at once beside state and gradients, and more of
# them where weights are not float32: rounded up from what a CPU's graphs took of a process's memory (four parameters of
# 16 MB), but for adafactor, whose divisions take more there. An NPU's graph, replayed in the order in which MindSpore's
# runtime runs it, takes no more (benchmarks/liveness.py --update, tests/models/test_npu_form.py).
TEMPORARIES = {"adamw": 0, "adamw8bit": 5, "lion": 3, "prodigy": 5, "adafactor": 6}
ROUNDING = {"float32": 0, "float16": 1, "bfloat16": 6}

Parts = dict[str, int]  # what -> bytes


def stays(run: Run) -> Parts:
    """Exact, but the collectives' buffers, which are what CANN documents, and the scratchpads."""
    shapes = trained_shapes(run)
    parts = {
        "weights": memory.parameters(unet_shapes(run.config), run.kept_dtype),
        "optimizer's state": memory.optimizer(shapes, run.optimizer, run.devices if run.shard_optimizer else 1),
    }
    if run.adapts:
        parts["adapters"] = memory.in_float32(shapes)
    if random := memory.rounding(shapes, run.trained_dtype):
        parts["random numbers that weights are rounded by"] = random
    if run.ema:
        parts["EMA"] = memory.in_float32(shapes)
    if run.accumulation > 1:
        parts["float32 totals of micro-batches' gradients"] = memory.in_float32(shapes)
    if run.encodes:
        vae = component_shapes(run.config, "vae").items()
        encoder = {name: shape for name, shape in vae if ".encoder." in name or ".quant_conv." in name}
        parts["the VAE's encoder"] = run.encoder_bytes[0] * sum(map(prod, encoder.values()))
    if run.reads_captions:
        texts = component_shapes(run.config, "clip_l") | component_shapes(run.config, "clip_g")
        parts["text encoders"] = run.text_bytes * sum(map(prod, texts.values()))
    if run.devices > 1 and run.target == "Ascend":
        parts["HCCL's buffers, to send and to receive"] = 2 * run.hccl_buffer
    if run.target == "CPU" and cpu.has_scratchpads():
        parts["oneDNN's scratchpads (estimated)"] = scratchpads(run)
    return parts


def scratchpads(run: Run) -> int:
    """Of a CPU's products, each of which keeps its own in the graph of each bucket."""
    products = sum(layer.scratch for block in _blocks(run) for layer in block.layers)
    # several ranks have another sum of squares
    matrices = [shape for shape in trained_shapes(run).values() if len(shape) > 1] if run.devices == 1 else []
    norm = sum(cpu.norm_scratchpad(prod(shape)) for shape in matrices)
    graphs = run.buckets or 1
    return graphs * products + (graphs if run.accumulation == 1 else 1) * norm


def _blocks(run: Run) -> Iterable[step.Block]:
    return unet.blocks(
        CONFIGS[run.config].unet, run.batch_size, run.side, run.side, run.size, run.attention_kind,
        CONFIGS[run.config].tokens(run.chunks), cpu if run.target == "CPU" else npu,
    )  # fmt: skip


@cache
def backward(run: Run) -> Parts:
    """At the fullest moment of the forward and backward pass of a micro-batch."""
    # MindSpore's CPU backend computes again, and saves nothing by it (models/unet.py)
    recompute = run.gradient_checkpointing and run.target != "CPU"
    if run.adapts:  # the weights have no gradients
        moment = step.peak(map(step.frozen, _blocks(run)), recompute, 0)
    else:
        moment = step.peak(_blocks(run), recompute, memory.SIZES[run.weights_dtype])
    parts = {name: size for name, size in moment.kept.most_common() if size > 0}
    if kept := kept_by_texts(run):
        parts["what the text encoders keep (estimated)"] = kept
    if changed := changed_weights(run, recompute):
        parts["weights with their adapters (estimated)"] = changed
    if run.adapts:
        parts["gradients by then"] = memory.in_float32(trained_shapes(run))
    elif moment.gradients:
        parts["gradients by then"] = moment.gradients
    return parts | {"temporaries of a layer": moment.temporary}


def kept_by_texts(run: Run) -> int:
    """Bytes that the backward pass of text encoders needs that are trained: for a token of a layer some 16 widths,
    two inputs of norms and of products each, queries, keys, values and the attention's result, and four widths twice
    around GELU; and the attention's weights. They are neither recomputed nor cut into tiles."""
    config, total = CONFIGS[run.config], 0
    for clip in (getattr(config, part) for part in trained_parts(run.text_encoders)):
        tokens = clip.context_length
        total += clip.layers * (16 * tokens * clip.width + 2 * clip.heads * tokens**2)
    return run.batch_size * run.chunks * run.text_bytes * total


def changed_weights(run: Run, recompute: bool) -> int:
    """Bytes of the weights that adapters change before the layer takes them, in float32 and the computation's dtype: all
    but LoRA's in linear layers. Where blocks are recomputed, those of the largest block's; the text encoders' are not,
    and there LoRA changes bigG's joined projections."""
    sizes: Counter = Counter()
    for name, shape in adapted_shapes(run).items() if run.adapts else ():
        if run.adapter != "lora" or len(shape) > 2:
            block = re.match(r"(.*?transformer_blocks\.\d+|\w+\.\d+)", name)
            sizes[block[0]] += (memory.FLOAT32 + run.size) * prod(shape)
    unet = max(sizes.values(), default=0) if recompute else sizes.total()
    texts = adapted_texts(run).items()
    changed = [prod(shape) for name, shape in texts if run.adapter != "lora" or re.search(r"\.attn\.[qkv]_proj", name)]
    return unet + (memory.FLOAT32 + run.text_bytes) * sum(changed)


def update(run: Run) -> Parts:
    """From the gradients of all parameters on, which stay until its end. The orders are those of training/step.py and
    optimizers/."""
    shapes = trained_shapes(run)
    gradients = memory.parameters(shapes, run.trained_dtype)
    bucket = min(memory.in_float32(shapes), max(memory.BUCKET, max(4 * prod(shape) for shape in shapes.values())))
    # with micro-batches the totals are updated with, and they stay
    parts = {"gradients": gradients} if run.accumulation == 1 else {}
    if run.devices > 1:
        ranks = run.devices if run.shard_optimizer else 1
        mine = sum(4 * prod(shape) // (ranks if memory.sharded(shape, ranks) else 1) for shape in shapes.values())
        parts["gradients summed over the ranks, in buffers"] = mine
        parts["the same, unscaled and clipped"] = mine
        parts["buckets on their way"] = 3 * bucket  # joined, sent, cut up again
    elif run.precision == "float16" or run.accumulation > 1 or run.max_grad_norm > 0:
        parts["gradients of a bucket, unscaled and clipped"] = bucket
        if run.sinks and run.trained_dtype != "float32":
            # one graph has their squares too, and what these are made of MindSpore keeps for the update
            parts["gradients in float32"] = memory.in_float32(shapes)
    arrays = TEMPORARIES[run.optimizer] + ROUNDING[run.trained_dtype]
    if arrays:
        parts[f"{run.optimizer}'s temporaries, of a bucket"] = arrays * bucket
    if random := memory.rounding(shapes, run.trained_dtype):
        parts["random numbers, of this update"] = random
    return parts


def encoding(run: Run) -> Parts:
    """The VAE before a step, at its widest: a layer's map as it comes, normed, convolved, and added to (estimated)."""
    if not run.encodes:
        return {}
    maps = run.encoded_at_once * CONFIGS[run.config].vae.channels * run.largest**2
    return {"the VAE's maps (estimated)": 4 * run.encoder_bytes[0] * maps}


def validation(run: Run) -> Parts:
    """While the averages are validated: the weights are put by on the device, in copies."""
    if not (run.ema and run.validation_share):
        return {}
    held = stays(run)
    needs = step.forward(_blocks(run) if run.kept_dtype != run.precision else map(step.frozen, _blocks(run)))
    return {"weights, put by": held.get("adapters", held["weights"])} | {
        f"{name} (estimated)": size for name, size in needs.items() if size
    }


def device_bytes(run: Run) -> Parts:
    """All that a device holds at the fullest moment of a step."""
    return stays(run) | max(_moments(run), key=lambda parts: sum(parts.values()))


def _moments(run: Run) -> tuple[Parts, ...]:
    """Those of which one is the fullest."""
    return backward(run), update(run), encoding(run), validation(run)


def needed(run: Run) -> int:
    """Bytes of the fullest moment, with the margin on what is estimated."""
    steady = sum(stays(run).values())
    exact = ("gradients", "gradients by then", "weights, put by")
    worst = 0
    for parts in _moments(run):
        estimated = sum(size for name, size in parts.items() if name not in exact)
        worst = max(worst, sum(parts.values()) + round(MARGIN * estimated))
    return steady + worst


def room(run: Run) -> int:
    """Bytes that a device has for a run: of a card, or a process's part of this computer's memory."""
    if run.target == "Ascend":
        return CARD - RESERVED
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * run.nodes // run.devices


def fits(run: Run) -> bool:
    return needed(run) <= room(run)


def relies_on_checkpointing(run: Run) -> bool:
    """Whether a run fits only by what gradient checkpointing is counted to save: MindSpore's order of the kernels shows
    it (benchmarks/liveness.py), but no NPU has."""
    return run.gradient_checkpointing and fits(run) and not fits(replace(run, gradient_checkpointing=False))


def ways_to_fit(run: Run) -> list[str]:
    """Single settings, and then all of them together, with which the run fits a card."""
    changes = {}
    if run.adapter != "none" and run.rank > 32:
        changes["train.rank: 32"] = {"rank": 32}
    if not run.gradient_checkpointing:
        changes["train.gradient_checkpointing: true"] = {"gradient_checkpointing": True}
    if run.attention_kind == "plain":
        changes["device.attention: auto"] = {"attention": "auto"}
    if run.precision == "float32":
        changes["train.precision: bfloat16"] = {"precision": "bfloat16"}
    if run.devices > 1 and run.optimizer == "adamw" and not run.shard_optimizer:
        changes["train.shard_optimizer: true"] = {"shard_optimizer": True}
    if run.kept_dtype == "float32":
        changes["train.weights_dtype: bfloat16"] = {"weights_dtype": "bfloat16"}
    if run.optimizer != "adafactor":
        changes["train.optimizer: adafactor"] = {"optimizer": "adafactor", "shard_optimizer": False}
    if run.batch_size > 1:
        changes[f"train.batch_size: 1 with gradient_accumulation_steps: {run.batch_size * run.accumulation}"] = {
            "batch_size": 1, "accumulation": run.batch_size * run.accumulation,
        }  # fmt: skip
    if run.ema:
        changes["train.ema: false"] = {"ema": False}
    if run.encodes:
        changes["train.source: cache"] = {"source": "cache"}
    singly = dict(changes)
    if run.optimizer in ("adamw", "prodigy"):
        singly["train.optimizer: adamw8bit"] = {"optimizer": "adamw8bit", "shard_optimizer": False}
    found = [name for name, change in singly.items() if fits(replace(run, **change))]
    if found:
        return found
    for name, change in changes.items():
        run = replace(run, **change)
        found.append(name)
        if fits(run):
            return [" and ".join(found)]
    return []
