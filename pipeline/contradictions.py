"""What the keys of params.yaml demand of each other and of the device. Imports no MindSpore: what can't work stops the
first stage, and not the one that would fail hours later."""

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.data.buckets import buckets
from pipeline.models.config import CONFIGS, SDXLConfig
from pipeline.sampling.limits import most_steps
from pipeline.training import groups
from pipeline.training.rates import shared_steps
from pipeline.weights import layout
from pipeline.weights.names import PREFIX

if TYPE_CHECKING:
    from pipeline.params import Diffusion, Index, Params, Prompt, Sample, Train

OUTS = "outs"
BASE_UNET = f"{OUTS}/convert/unet.ckpt"
PRESET = "`make preset NAME=...` sets all that goes with model.config: sdxl-1x910b, sdxl-8x910b, sdxl-16x910b, tiny"


class Demand(NamedTuple):
    """A setting that only an Ascend NPU can grant."""

    key: str
    found: str
    what: str  # that runs on Ascend only
    wanted: str  # on a CPU


def of_ascend(params: "Params") -> list[Demand]:
    """The settings that only an Ascend NPU can grant."""
    device, sections = params.device, ("cache_latents", "cache_text", "train", "sample")
    found = []
    if device.attention.startswith("flash"):
        found.append(Demand("device.attention", device.attention, device.attention, "auto, plain or tiled"))
    if device.sink_size:
        found.append(Demand("device.sink_size", str(device.sink_size), "the data sink", "0"))
    if device.jit_level != "O0":
        found.append(Demand("device.jit_level", device.jit_level, device.jit_level, "O0"))
    if device.kernel_launch_group is not None:
        shown = str(device.kernel_launch_group)
        found.append(Demand("device.kernel_launch_group", shown, "a launch of kernels in groups", "null"))
    if device.memory_optimize_level != "O0":
        shown = device.memory_optimize_level
        found.append(Demand("device.memory_optimize_level", shown, shown, "O0"))
    if device.max_device_memory is not None:
        found.append(Demand("device.max_device_memory", device.max_device_memory, "this limit of memory", "null"))
    for section in sections:
        if getattr(params, section).precision == "bfloat16":
            wanted = "float32" if section.startswith("cache") else "float32 or float16"
            found.append(Demand(f"{section}.precision", "bfloat16", "bfloat16", wanted))
    return found


def contradictions(params: "Params") -> Iterator[tuple[str, str]]:
    """(key, why it can't be so beside the other keys) of each fault."""
    config = CONFIGS[params.model.config]
    if params.device.target == "CPU":
        for key, found, what, wanted in of_ascend(params):
            yield key, f"{what} runs on Ascend only and device.target is CPU; wanted {wanted}, found {found}"
    yield from _paths(params)
    yield from _of_the_other_model(params)
    yield from _device(params)
    yield from _index(params.index, config)
    if params.cache_latents.crops > 1 and params.cache_latents.crop == "center":
        found = params.cache_latents.crops
        yield "cache_latents.crops", f"above 1 needs crop random: a picture has one center; found {found}"
    yield from _diffusion(params.diffusion)
    yield from _groups(params.train, config)
    yield from _train(params.train, peak_rate(params))
    if params.diffusion.prediction == "flow":
        yield from _flow(params.train)
    yield from _weights(params.merge.weights, params.train, params.device.sink_size)
    yield from _pictures(params, config)


def _weights(chosen: str | int, train: "Train", sink_size: int) -> Iterator[tuple[str, str]]:
    if chosen == "ema" and not train.ema:
        yield "merge.weights", "ema needs train.ema true, or no average is kept; wanted raw"
    if chosen == "best" and not train.keep_best:
        yield "merge.weights", "best needs train.keep_best true, or they are not kept; wanted raw"
    if not isinstance(chosen, int):
        return
    if not train.save_interval:
        yield "merge.weights", f"a step needs train.save_interval above 0, or none is kept; wanted raw, found {chosen}"
    elif fault := _unsaved(chosen, train, sink_size):
        yield "merge.weights", fault


def _unsaved(step: int, train: "Train", sink_size: int) -> str | None:
    """Why no weights of this step will be kept, or None."""
    if train.steps is not None and step > train.steps:
        return f"must not be above train.steps ({train.steps}), found {step}"
    if sink_size:  # a sink ends beside the interval's multiples
        return None
    if step % train.save_interval:
        return f"must be a multiple of train.save_interval ({train.save_interval}), found {step}"
    if train.save_limit is not None and train.steps is not None and not train.patience:
        oldest = (train.steps // train.save_interval - train.save_limit + 1) * train.save_interval
        if step < oldest:
            return f"the {train.save_limit} of train.save_limit begin with step {oldest}, found {step}"
    return None


def side_multiple(config: SDXLConfig) -> int:
    """What the sides of a picture must be multiples of: the VAE and then the UNet halve them, and the UNet's skip
    connections have to meet again."""
    return config.vae.factor * 2 ** (len(config.unet.channel_mult) - 1)


def _paths(params: "Params") -> Iterator[tuple[str, str]]:
    outs = Path(os.path.realpath(OUTS))
    given = {"data.images": params.data.images}
    given |= {f"model.{key}": getattr(params.model, key) for key in ("base", "vae", "tokenizer")}
    if params.train.init_from != BASE_UNET:
        given["train.init_from"] = params.train.init_from
    for key, value in given.items():
        path = Path(os.path.realpath(value))
        if path.is_relative_to(outs):
            yield key, f"{value} is an out of the stages, which would depend on themselves; copy it out of {OUTS}/"
        elif outs.is_relative_to(path):
            yield key, f"{value} holds {OUTS}/, so the stages would depend on themselves; wanted a folder of its own"


def peak_rate(params: "Params") -> float:
    """The learning rate after warm-up."""
    train, device = params.train, params.device
    samples = train.batch_size * train.gradient_accumulation_steps * device.workers * device.nodes
    return train.learning_rate * (samples if train.scale_lr else 1)


def _of_the_other_model(params: "Params") -> Iterator[tuple[str, str]]:
    """What can only be left over from another model.config; what is merely unusual is in pipeline/doubts.py."""
    resolution, rate = params.index.resolution, peak_rate(params)
    batch = params.train.batch_size
    if params.model.config == "tiny":
        if resolution > 512:
            yield "index.resolution", f"{resolution} is SDXL's, and the tiny model was trained at 64; {PRESET}"
        return
    if rate >= 5e-4 and params.train.optimizer != "prodigy":
        yield (
            "train.learning_rate",
            f"{rate:g} ruins SDXL within a few steps, it is the tiny model's; wanted 4e-7 to 1e-5; {PRESET}",
        )
    if resolution < 256:
        yield "index.resolution", f"{resolution} is the tiny model's, and SDXL was trained at 1024; {PRESET}"
    elif batch * (resolution / 1024) ** 2 > 64:
        yield "train.batch_size", f"{batch} pictures of {resolution}² at once fit no device with SDXL; {PRESET}"
    for place, one in prompts_of(params.sample):
        for key in ("width", "height"):
            if (side := getattr(one, key)) is not None and side < 256:
                yield f"{place}.{key}", f"{side} is the tiny model's, and SDXL draws 1024 pixels a side; {PRESET}"


def _device(params: "Params") -> Iterator[tuple[str, str]]:
    device, train = params.device, params.train
    if device.node_rank >= device.nodes:
        yield "device.node_rank", f"must be below nodes ({device.nodes}), found {device.node_rank}"
    host, _, port = device.master.rpartition(":")
    if not 0 < int(port) < 2**16:
        yield "device.master", f"wanted a port of 1 to 65535, found {device.master}"
    address = _ipv4(host)
    if address is None and re.fullmatch(r"[0-9.]+", host):
        yield "device.master", f"wanted four numbers of 0 to 255, or a name, before the port; found {device.master}"
    own = address is not None and (address.is_loopback or address.is_unspecified)
    if device.nodes > 1 and (own or host.lower().removesuffix(".").endswith("localhost")):
        yield (
            "device.master",
            f"nodes {device.nodes} need an address of node 0 that the others can reach, such as 10.0.0.1:8118; on each "
            f"of them {device.master} is itself, and it would wait for ever",
        )
    if device.max_device_memory is not None and float(device.max_device_memory.removesuffix("GB")) == 0:
        yield "device.max_device_memory", f"wanted more than none, or null; found {device.max_device_memory}"
    if device.attention.startswith("flash") and train.precision == "float32":
        yield (
            "device.attention",
            f"{device.attention} computes in float16 or bfloat16 and train.precision is float32; "
            "wanted auto, plain or tiled",
        )
    if device.kernel_launch_group is not None:
        threads, groups = device.kernel_launch_group
        if groups % threads:
            yield "device.kernel_launch_group", f"threads must divide groups, found {threads} and {groups}"
        if device.jit_level != "O0":
            yield "device.kernel_launch_group", f"needs device.jit_level O0, found {device.jit_level}"
    if device.sink_size and params.index.buckets:
        yield "device.sink_size", f"above 0 needs index.buckets false: a sink has one shape; found {device.sink_size}"
    if device.sink_size and train.gradient_accumulation_steps > 1:
        found = train.gradient_accumulation_steps
        yield "device.sink_size", f"above 0 needs train.gradient_accumulation_steps 1, found {found}"


def _ipv4(host: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:  # a name
        return None


def _index(index: "Index", config: SDXLConfig) -> Iterator[tuple[str, str]]:
    multiple = side_multiple(config)
    sizes = []
    if not index.buckets:
        if index.resolution % multiple:
            yield "index.resolution", f"must be a multiple of {multiple}, found {index.resolution}"
        sizes = [(index.resolution, index.resolution)]
    elif index.bucket_step % multiple:
        yield "index.bucket_step", f"must be a multiple of {multiple} (SDXL: 64), found {index.bucket_step}"
    elif index.resolution % index.bucket_step:
        yield (
            "index.bucket_step",
            f"must divide resolution ({index.resolution}; SDXL: 64 and 1024), found {index.bucket_step}",
        )
    else:
        sizes = buckets(index.resolution, index.bucket_step)
    if index.min_side**2 > index.max_pixels:
        yield (
            "index.min_side",
            f"every picture is rejected: a side of {index.min_side} makes more than max_pixels ({index.max_pixels})",
        )
    elif sizes and index.max_enlargement is not None:
        least = min(prod(max(ceil(side / index.max_enlargement), index.min_side) for side in size) for size in sizes)
        if least > index.max_pixels:
            yield (
                "index.max_pixels",
                f"every picture is rejected: with resolution {index.resolution}, max_enlargement "
                f"{index.max_enlargement:g} and min_side {index.min_side} one needs {least} pixels at least, found "
                f"{index.max_pixels}",
            )


def _diffusion(diffusion: "Diffusion") -> Iterator[tuple[str, str]]:
    if diffusion.zero_terminal_snr and diffusion.prediction == "epsilon":
        yield (
            "diffusion.zero_terminal_snr",
            "true needs diffusion.prediction v: without signal the noise is the input (arXiv 2305.08891, 3.2)",
        )
    if diffusion.zero_terminal_snr and diffusion.prediction == "flow":
        yield (
            "diffusion.zero_terminal_snr",
            "true needs diffusion.prediction v: flow has no such schedule, and ends in pure noise by itself; wanted "
            "false",
        )
    if diffusion.flow_shift != 1 and diffusion.prediction != "flow":
        yield (
            "diffusion.flow_shift",
            f"moves the timesteps of diffusion.prediction flow, found {diffusion.prediction}; wanted 1.0",
        )


def _groups(train: "Train", config: SDXLConfig) -> Iterator[tuple[str, str]]:
    unclear = False
    for number, group in enumerate(train.groups):
        if group.freeze == (group.learning_rate is not None):
            unclear = True
            found = "both" if group.freeze else "neither"
            yield f"train.groups.{number}", f"give one of learning_rate and freeze: true, found {found}"
    if train.groups and not unclear:
        prefix = PREFIX["unet"]
        names = [name.removeprefix(prefix) for name in layout.shapes(config) if name.startswith(prefix)]
        for number, fault in groups.faults(groups.groups(train.groups), names):
            yield "train.groups" if number < 0 else f"train.groups.{number}.pattern", fault


def _train(train: "Train", peak: float) -> Iterator[tuple[str, str]]:
    if (train.steps is None) == (train.epochs is None):
        found = f"{train.steps} and {train.epochs}"
        yield "train.steps", f"give one of steps and epochs and set the other to null, found {found}"
    elif train.steps is not None and (fault := warm_up_fault(train, train.steps)):
        yield "train.lr_warmup_steps", fault
    highest = peak * max([1.0, *(group.learning_rate or 1.0 for group in train.groups)])
    if train.optimizer != "prodigy" and train.weight_decay * highest >= 1:
        yield (
            "train.weight_decay",
            f"must be below 1 / the learning rate ({highest:g}): a step would take more than all of a weight; "
            f"found {train.weight_decay:g}",
        )
    for key, found in (weightings := _weightings(train))[1:]:
        first = weightings[0][0]
        yield (
            f"train.{key}",
            f"{str(found).lower()} needs {first} null: both weight the loss by the signal-to-noise ratio",
        )
    if train.lr_scheduler == "polynomial" and train.lr_end >= peak:
        yield "train.lr_end", f"must be below the learning rate ({peak:g}), found {train.lr_end:g}"
    if train.timestep_min >= train.timestep_max:
        yield "train.timestep_min", f"must be below timestep_max ({train.timestep_max}), found {train.timestep_min}"
    begin, end = train.timestep_bias_begin, train.timestep_bias_end
    if train.timestep_bias_strategy == "range" and begin >= end:
        yield "train.timestep_bias_begin", f"must be below timestep_bias_end ({end}), found {begin}"
    if train.timestep_bias_strategy in ("earlier", "later") and train.timestep_bias_portion * 1000 < 1:
        yield (
            "train.timestep_bias_portion",
            f"{train.timestep_bias_strategy} needs 0.001 or more, one of the 1000 timesteps; found "
            f"{train.timestep_bias_portion:g}",
        )
    if train.keep_state and not shared_steps(train.lr_scheduler, train.lr_decay_steps + 1, train.lr_decay_steps):
        yield (
            "train.keep_state",
            f"true needs lr_scheduler constant, constant_with_warmup or wsd, found {train.lr_scheduler}: its rates depend "
            "on the number of steps, so no longer run can go on from there",
        )
    if train.validation_share == 0:
        for key in ("keep_best", "patience"):
            if found := getattr(train, key):
                yield f"train.{key}", f"needs validation_share above 0: there is no validation loss; found {found}"
    if train.weights_dtype == "float16" and train.precision != "float16":
        yield (
            "train.weights_dtype",
            f"float16 needs precision float16, found {train.precision}; wanted bfloat16 or float32",
        )
    if train.weights_dtype == "float16" and train.optimizer == "prodigy":
        yield (
            "train.weights_dtype",
            "float16 loses the first steps of prodigy, a millionth each, and it would never find its rate; wanted "
            "bfloat16 or float32",
        )
    if train.shard_optimizer is True and train.optimizer != "adamw":
        yield "train.shard_optimizer", f"true needs optimizer adamw: {train.optimizer} keeps its state on each process"
    if len(set(train.validation_timesteps)) < len(train.validation_timesteps):
        yield "train.validation_timesteps", f"wanted each once, found {train.validation_timesteps[:20]}"


def _flow(train: "Train") -> Iterator[tuple[str, str]]:
    for key, found in _weightings(train):
        yield (
            f"train.{key}",
            "weights the loss by the signal-to-noise ratio of SDXL's schedule, and diffusion.prediction is flow; "
            f"wanted {'false' if found is True else 'null'}, found {str(found).lower()}",
        )
    if train.loss_type == "huber" and train.huber_schedule == "snr":
        yield (
            "train.huber_schedule",
            "snr is of SDXL's schedule, and diffusion.prediction is flow; wanted constant or exponential",
        )


def _weightings(train: "Train") -> list[tuple[str, float | bool]]:
    """The keys that weight the loss by the signal-to-noise ratio, and are set."""
    keys = ("snr_gamma", "snr_gamma_soft", "p2_gamma", "debiased_estimation")
    return [(key, found) for key in keys if (found := getattr(train, key)) not in (None, False)]


def warm_up_fault(train: "Train", steps: int) -> str | None:
    """Why a run of so many steps can't have this warm-up, or None."""
    warm_up = train.lr_warmup_steps
    if train.lr_scheduler == "constant":  # which has none
        return None
    if train.lr_scheduler == "wsd" and warm_up + train.lr_decay_steps > steps:
        return (
            f"must not be above steps ({steps}) together with lr_decay_steps, found {warm_up} and "
            f"{train.lr_decay_steps}"
        )
    if warm_up > steps:
        return f"must not be above steps ({steps}), found {warm_up}: the learning rate would never be reached"
    if warm_up == steps == 1:
        return "must be 0 for a single step, which would have the learning rate 0"
    return None


def _pictures(params: "Params", config: SDXLConfig) -> Iterator[tuple[str, str]]:
    """Of those that `sample` draws, and of the previews."""
    sample, train = params.sample, params.train
    yield from _prompts(prompts_of(sample), sample.sampler, params, config)
    yield from _prompts(own_prompts("train.previews", train.previews), train.preview_sampler, params, config)
    if sample.saved_steps and not train.save_interval:
        yield (
            "sample.saved_steps",
            f"needs train.save_interval, or none are saved; wanted [], found {sample.saved_steps}",
        )
    elif sample.saved_steps != "all" and len(set(sample.saved_steps)) < len(sample.saved_steps):
        yield "sample.saved_steps", f"wanted each once, found {sample.saved_steps[:20]}"
    elif sample.saved_steps != "all":
        faults = (_unsaved(step, train, params.device.sink_size) for step in sample.saved_steps)
        if fault := next(filter(None, faults), None):
            yield "sample.saved_steps", fault
    for key, sampler in (("sample.sampler", sample.sampler), ("train.preview_sampler", train.preview_sampler)):
        if params.diffusion.prediction == "flow" and sampler != "euler":
            yield (
                key,
                f"{sampler} goes by the noise schedule of epsilon and v; wanted euler with diffusion.prediction flow",
            )


def _prompts(
    prompts: Iterable[tuple[str, "Sample | Prompt"]], sampler: str, params: "Params", config: SDXLConfig
) -> Iterator[tuple[str, str]]:
    diffusion, multiple = params.diffusion, side_multiple(config)
    most = most_steps(sampler, diffusion.zero_terminal_snr or diffusion.prediction == "flow")
    for place, one in prompts:
        for key in ("width", "height"):
            side = getattr(one, key)
            if side is not None and side % multiple:
                yield f"{place}.{key}", f"must be a multiple of {multiple}, found {side}"
        if one.steps is not None and one.steps > most:
            yield (
                f"{place}.steps",
                f"must be below {most + 1}: SDXL's own timesteps leave sampler {sampler} no more steps; found {one.steps}",
            )


def prompts_of(sample: "Sample") -> Iterator[tuple[str, "Sample | Prompt"]]:
    """The section `sample`, and the prompts that have settings of their own, each with its place in params.yaml."""
    yield "sample", sample
    yield from own_prompts("sample.prompts", sample.prompts)


def own_prompts(key: str, prompts: "Sequence[str | Prompt]") -> Iterator[tuple[str, "Prompt"]]:
    """Those with settings of their own, each with its place in params.yaml."""
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            yield f"{key}.{number}", prompt
