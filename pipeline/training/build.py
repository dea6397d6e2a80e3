"""The parts of a run from its parameters: UNet, optimizer, and the graphs of a step."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pipeline.device
from pipeline.device import Device

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from pipeline import params
from pipeline.cache.reading.reader import Reader
from pipeline.diffusion import loss, schedule
from pipeline.models import forms
from pipeline.models.adapters import attach
from pipeline.models.clip import ClipG, ClipL
from pipeline.models.config import CONFIGS, SDXLConfig
from pipeline.models.encode import text_encoder, text_function, vae_encoder
from pipeline.models.load import set_weights
from pipeline.models.unet import UNet, recompute_blocks
from pipeline.models.with_text import WithText, part_of
from pipeline.training import drive, groups, launch
from pipeline.training.compiled import GraphKeys
from pipeline.training.data import Paths
from pipeline.training.key import code_digest
from pipeline.training.optimizers.adafactor import Adafactor
from pipeline.training.optimizers.adamw import AdamW
from pipeline.training.optimizers.adamw8bit import AdamW8bit
from pipeline.training.optimizers.common import Optimizer, decays
from pipeline.training.optimizers.lion import Lion
from pipeline.training.optimizers.prodigy import Prodigy
from pipeline.training.rates import ema_decay, learning_rate
from pipeline.training.state import Slot
from pipeline.training.step import Settings, Update, average_of
from pipeline.training.targets import frozen_dtype, targets, text_targets
from pipeline.weights.adapters import kinds
from pipeline.weights.chosen import trained_parts, unused_parameters
from pipeline.weights.names import PREFIX, canonical
from pipeline.weights.source import open_part, open_unet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a run trains, and all that a state of it holds."""

    unet: UNet
    network: UNet | WithText  # what a step computes: the UNet, behind the text encoders where they are trained
    update: Update  # with the parameters, their averages and the optimizer
    settings: Settings
    slots: list[Slot]


DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


def device(wanted: params.Device) -> Device:
    """Set MindSpore up as params.yaml wants it, for this rank of the training. Raises StageError."""
    return pipeline.device.setup(
        target=wanted.target,
        distributed=launch.inside(),
        attention=wanted.attention,
        sink_size=wanted.sink_size,
        jit_level=wanted.jit_level,
        deterministic=wanted.deterministic,
        kernel_launch_group=wanted.kernel_launch_group,
        max_device_memory=wanted.max_device_memory,
        memory_optimize_level=wanted.memory_optimize_level,
        compile_cache=wanted.compile_cache,
    )


def trained(
    config: SDXLConfig, device: Device, diffusion: params.Diffusion, train: params.Train, paths: Paths,
    text_precision: str = "float32",
) -> Trained:  # fmt: skip
    """The UNet with the weights of train.init_from, the text encoders that are trained with it, and their optimizer as it
    is before the first step. text_precision: of an encoder whose weights are not trained. Raises StageError."""
    cell = unet(config, device, train, paths.unet)
    network = cell if train.text_encoders == "none" else with_text(cell, config, train, paths, text_precision)
    chosen, rule = settings(device, diffusion, train), optimizer(network, device, train)
    update = Update(rule, average_of(rule.parameters) if train.ema else None, chosen)
    return Trained(cell, network, update, chosen, slots(rule, update, device.rank, device.world_size))


def start_encoders(reader: Reader, trained: Trained, config: SDXLConfig, paths: Paths, device: Device) -> None:
    """Give a reader of pictures or captions the encoders, as the cache stages have them, or those that are trained.
    Raises StageError."""
    if reader.encodes:
        reader.encode_pixels = vae_encoder(config, paths.vae, device, reader.precision)
    if isinstance(trained.network, WithText):
        reader.texts.encode_ids = text_function(trained.network.clip_l, trained.network.clip_g)
    elif reader.texts:
        reader.texts.encode_ids = text_encoder(config, paths.clip_l, paths.clip_g, device, reader.texts.precision)


def with_text(unet: UNet, config: SDXLConfig, train: params.Train, paths: Paths, text_precision: str) -> WithText:
    """The UNet behind both text encoders, of which those of train.text_encoders are trained, or have adapters where the
    UNet has. Raises StageError."""
    adapted = train.adapter != "none"
    with no_init_parameters():
        clip_l, clip_g = ClipL(config.clip_l), ClipG(config.clip_g)
    for part, cell, path in (("clip_l", clip_l, paths.clip_l), ("clip_g", clip_g, paths.clip_g)):
        is_trained = part in trained_parts(train.text_encoders)
        own = is_trained and not adapted
        dtype = DTYPES[train.weights_dtype if own else text_precision]
        set_weights(cell, open_part(path, part, config), path, PREFIX[part], dtype)
        unused = unused_parameters(part, config)
        for parameter in cell.get_parameters():
            parameter.requires_grad = own and not parameter.name.startswith(unused)
        if adapted and is_trained:
            _attach(cell, text_targets(part, config), train, part)
    return WithText(unet, clip_l, clip_g).set_train()


def _attach(cell: nn.Cell, layers: Mapping[str, tuple[int, ...]], train: params.Train, called: str) -> None:
    """Adapters for the weights `layers`, name -> shape, of the network that is `called` so in the log."""
    if train.adapter == "lokr":
        whole = sum(
            "lokr_w2" in kinds.shapes("lokr", shape, train.rank, train.lokr_factor) for shape in layers.values()
        )
        if whole:
            log.info("lokr: in %d of %d layers of %s the second part is a whole matrix, and train.rank and train.alpha change nothing",
                     whole, len(layers), called)  # fmt: skip
    attach(cell, forms.chosen(), train.adapter, list(layers), train.rank, train.alpha, train.lokr_factor, train.seed)


def unet(config: SDXLConfig, device: Device, train: params.Train, weights: Path) -> UNet:
    """The UNet with the weights of a file, ready to train, with adapters where they are what is trained. Raises
    StageError when the weights do not fit."""
    adapted, recompute = train.adapter != "none", train.gradient_checkpointing and device.ascend
    if train.gradient_checkpointing and not recompute:
        log.info(
            "train.gradient_checkpointing: not on this CPU, where MindSpore 2.10 would compute the blocks again and save no "
            "memory by it"
        )
    with no_init_parameters():
        attention = device.attention_kind(train.precision)
        cell = UNet(config.unet, attention, DTYPES[train.precision], recompute and not adapted)
    dtype = DTYPES[frozen_dtype(train.precision, train.weights_dtype) if adapted else train.weights_dtype]
    set_weights(cell, open_unet(weights, config), weights, PREFIX["unet"], dtype)
    if not adapted:
        for parameter in cell.get_parameters():
            parameter.requires_grad = _factor(train, parameter.name) > 0
        return cell.set_train()
    shapes = {parameter.name: parameter.shape for parameter in cell.get_parameters()}
    chosen = targets(shapes, train.adapter_targets, groups.groups(train.groups))
    _attach(cell, {name: shapes[name] for name in chosen}, train, "the UNet")
    if recompute:
        recompute_blocks(cell)
    return cell.set_train()


def _factor(train: params.Train, parameter: str) -> float:
    """Of the learning rate; 0 for a frozen parameter."""
    name = canonical(PREFIX["unet"] + parameter).removeprefix(PREFIX["unet"])
    return groups.factor(groups.groups(train.groups), name)


def _trained_factor(train: params.Train, parameter: str) -> float:
    """Of the learning rate of a parameter that is trained; that of an adapter's part is its weight's."""
    if part_of(parameter) != "unet":
        return train.text_encoder_learning_rate / train.learning_rate
    if train.adapter == "none":
        return _factor(train, parameter)
    return _factor(train, f"{kinds.apart(parameter)[0]}.weight")


def optimizer(cell: nn.Cell, device: Device, train: params.Train) -> Optimizer:
    common = cell.trainable_params(), decays(cell), train.weight_decay
    betas, seed = (train.adam_beta1, train.adam_beta2), train.seed
    factors = [_trained_factor(train, parameter.name) for parameter in cell.trainable_params()]
    if train.optimizer == "adafactor":
        return Adafactor(*common, factors, seed)
    if train.optimizer == "lion":
        return Lion(*common, *betas, factors, seed)
    if train.optimizer == "prodigy":
        return Prodigy(*common, *betas, train.adam_epsilon, factors, seed)
    if train.optimizer == "adamw8bit":
        return AdamW8bit(*common, *betas, train.adam_epsilon, factors, seed)
    ranks = device.world_size if shards(device, train) else 1
    return AdamW(*common, *betas, train.adam_epsilon, factors, seed, device.rank, ranks)


def shards(device: Device, train: params.Train) -> bool:
    """Whether the ranks share the optimizer's state (ZeRO-1): by default on NPUs, whose memory it is about."""
    if train.shard_optimizer == "auto":
        return device.ascend and train.optimizer == "adamw"
    return train.shard_optimizer


def global_batch(train: params.Train, ranks: int) -> int:
    """Samples of an optimizer step."""
    return train.batch_size * train.gradient_accumulation_steps * ranks


def rates(train: params.Train, end: int, ranks: int) -> drive.Rates:
    """Learning rate and EMA decay of each step of a run of `end` steps."""
    peak = train.learning_rate * (global_batch(train, ranks) if train.scale_lr else 1)

    def of(step: int) -> tuple[float, float]:
        rate = learning_rate(
            step, end, peak, train.lr_scheduler, train.lr_warmup_steps,
            num_cycles=train.lr_num_cycles, power=train.lr_power, end=train.lr_end, decay_steps=train.lr_decay_steps,
        )  # fmt: skip
        return rate, ema_decay(step, train.ema_decay)

    return of


def settings(device: Device, diffusion: params.Diffusion, train: params.Train) -> Settings:
    thresholds = None
    if train.loss_type == "huber" and train.huber_schedule == "snr":
        alphas = schedule.alphas_cumprod(diffusion.zero_terminal_snr)
        thresholds = tuple(loss.huber_thresholds(train.huber_c, alphas).tolist())
    return Settings(
        loss_type=train.loss_type,
        huber_c=train.huber_c,
        huber_schedule=train.huber_schedule,
        huber_thresholds=thresholds,
        max_grad_norm=train.max_grad_norm,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        loss_scale=train.loss_scale if train.precision == "float16" else None,
        rank=device.rank,
        ranks=device.world_size,
    )


def slots(optimizer: Optimizer, update: Update, rank: int, ranks: int) -> list[Slot]:
    """All that a state holds."""
    counters = (update.loss_scale, update.good_steps, update.taken, update.overflows)
    whole = [Slot(p) for p in (*optimizer.parameters, *(update.ema or ()), *counters)]
    return whole + [Slot(p, rank, ranks) if cut else Slot(p) for p, cut in optimizer.state()]


# What of the train section is a constant or a shape in all graphs, and what in those of the update alone.
_GRAPH_KEYS = {
    "batch_size",
    "gradient_accumulation_steps",
    "groups",
    "text_encoders",
    "shard_optimizer",
    "loss_type",
    "huber_c",
    "huber_schedule",
    "precision",
    "weights_dtype",
    "gradient_checkpointing",
    "adapter",
    "rank",
    "alpha",
    "adapter_targets",
    "lokr_factor",
}
_UPDATE_KEYS = {"optimizer", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "ema"}


def graph_keys(
    model: str, device: Device, train: params.Train, settings: Settings, text_precision: str = "float32"
) -> GraphKeys:
    """With several ranks the gradients' graphs sum them as the optimizer wants them."""
    texts = train.text_encoders != "none"
    network = {
        "model": dataclasses.asdict(CONFIGS[model] if texts else CONFIGS[model].unet),
        "text_encoders": text_precision if texts else None,
        "device": [
            device.target,
            device.world_size,
            device.attention_kind(train.precision),
            device.jit_level,
            device.deterministic,
            forms.convolves_by_products(),
        ],  # fmt: skip
        "train": train.model_dump(include=_GRAPH_KEYS) | {"huber_thresholds": settings.huber_thresholds},
        "versions": [ms.__version__, np.__version__],
        "code": code_digest(),
    }
    own_rate = {"text_encoder_rate": train.text_encoder_learning_rate / train.learning_rate} if texts else {}
    update = network | {"update": train.model_dump(include=_UPDATE_KEYS) | own_rate}
    return GraphKeys(update if device.world_size > 1 else network, update)
