"""The training run of one rank, from top to bottom: data, model, step, state, loop."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pipeline.device
import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from pipeline import params, store
from pipeline.cache import shards
from pipeline.cache.fingerprint import file_hash
from pipeline.cache.reader import CacheError, Reader
from pipeline.device import Device
from pipeline.diffusion import loss, schedule, timesteps
from pipeline.models.config import CONFIGS
from pipeline.models.load import load_weights
from pipeline.models.unet import UNet
from pipeline.stage import StageError
from pipeline.training import feed, rates, state, validation
from pipeline.training.log import Log
from pipeline.training.optimizer import Adafactor, AdamW, decays
from pipeline.training.step import Accumulate, Boundary, SampleLoss, Settings, TrainStep, Update, average_of
from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX

log = logging.getLogger(__name__)

DTYPES = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}
# Keys of the train section that change no number of the run. The batch counts as the whole step's over all ranks.
SPEED_KEYS = {"batch_size", "gradient_accumulation_steps", "shard_optimizer", "checkpointing_steps", "checkpoints_total_limit"}


@dataclass(frozen=True)
class Paths:
    unet: Path  # the base model's UNet
    latents: Path
    text: Path
    captions: Path
    out: Path  # folder of weights/ (unet.ckpt, unet_ema.ckpt) and live/


def fine_tune(paths: Paths, model: str, device: Device, diffusion: params.Diffusion, train: params.Train) -> None:
    """Fine-tune the UNet of configuration `model` on the cache. Raises StageError; writes nothing whole then."""
    config = CONFIGS[model]
    rank, ranks = device.rank, device.world_size
    global_batch = train.batch_size * train.gradient_accumulation_steps * ranks

    # Data
    try:
        reader = Reader(paths.latents, paths.text, paths.captions)
    except CacheError as error:
        raise StageError(str(error)) from error
    subset, held_out = validation.split(reader.names, train.validation_share)
    if not len(subset):
        raise StageError(f"{paths.latents} has {reader.n} pictures and train.validation_share {train.validation_share} leaves none to train on")
    per_epoch = feed.steps_per_epoch(reader.buckets, subset, global_batch)
    steps = train.steps or train.epochs * per_epoch
    objective = _objective(diffusion, train, config.vae.scaling_factor)
    log.info(
        "%d pictures to train on and %d held out; %d steps of %d samples, %d to an epoch",
        len(subset), len(held_out), steps, global_batch, per_epoch,
    )  # fmt: skip

    # State: this run's own half-done one in the store, or the base model
    states = state.States(
        {
            "model": model,
            "diffusion": diffusion.model_dump(),
            "train": train.model_dump(exclude=SPEED_KEYS) | {"global_batch": global_batch},
            "target": device.target,
            "attention": device.attention,
            "mindspore": ms.__version__,
            "numpy": np.__version__,
            "code": state.code_digest(),
            "unet": file_hash(paths.unet),
            "latents": state.cache_digest(paths.latents, shards.LATENTS),
            "text": state.cache_digest(paths.text, shards.TEXT),
            "captions": file_hash(paths.captions),
        }
    )
    with store.lock(f"train-{states.name}") if rank == 0 else nullcontext():
        if rank == 0:
            others = states.open()
        device.barrier()
        resumed = states.newest()
        if resumed is None and rank == 0:
            for other in others:
                log.info("starts anew beside the half-done run in %s", other)

        # Model
        unet = _unet(config.unet, device, train, paths.unet)
        parameters = unet.trainable_params()
        optimizer = _optimizer(unet, train, device)
        ema = average_of(parameters) if train.ema else None
        settings = Settings(
            loss_type=train.loss_type,
            huber_c=train.huber_c,
            max_grad_norm=train.max_grad_norm,
            gradient_accumulation_steps=train.gradient_accumulation_steps,
            loss_scale=train.loss_scale if train.precision == "float16" else None,
            ranks=ranks,
        )
        update = Update(optimizer, ema, settings)
        take_step = _step_function(unet, update, settings)
        slots = _slots(optimizer, update, ema, rank, ranks)

        done, facts = 0, {"overflows": 0, "pending": None}
        if resumed is not None:
            facts = states.load(resumed, slots)
            done = facts["step"]
            log.info("goes on after step %d from %s", done, resumed)
        curves = Log(paths.out / "live", steps, done, resumed and resumed / "live", facts["pending"]) if rank == 0 else None
        overflows = facts["overflows"]

        # Validation
        sample_loss = SampleLoss(unet, Settings())
        sample_loss.set_train(False)

        def validate(step: int) -> None:
            def evaluate(*arrays):
                return sample_loss(*map(ms.Tensor, arrays)).asnumpy()

            def total():
                sums = validation.losses(
                    evaluate, reader, held_out, train.validation_timesteps, train.batch_size,
                    diffusion.prediction, config.vae.scaling_factor, objective.alphas, rank, ranks,
                )  # fmt: skip
                return device.all_reduce(sums) / len(held_out)

            found = total()
            values = {"validation/loss": found.mean()}
            values |= {f"validation/loss_t{t}": value for t, value in zip(train.validation_timesteps, found, strict=True)}
            if ema is not None:
                with _swapped(parameters, ema):
                    values["validation/ema_loss"] = total().mean()
            if curves is not None:
                curves.point(step, {name: float(value) for name, value in values.items()})
                if step == 0:
                    curves.fact("validation/base_loss", float(values["validation/loss"]))

        # Loop
        def make_steps():
            return feed.steps(
                reader, objective, subset, done, steps, train.batch_size, train.gradient_accumulation_steps, rank, ranks
            )

        peak = train.learning_rate * (global_batch if train.scale_lr else 1)
        if len(held_out) and done == 0:
            validate(0)
        last = time.perf_counter()
        for inputs in feed.ahead(make_steps):
            fed = time.perf_counter()
            number = inputs.number
            rate = rates.learning_rate(number, steps, peak, train.lr_scheduler, train.lr_warmup_steps)
            value, norm, finite = take_step(inputs.micro_batches, rate, rates.ema_decay(number, train.ema_decay))
            overflows += not finite
            _check(value, norm, finite, settings, update, inputs, reader, states)
            done = number + 1
            now = time.perf_counter()
            if curves is not None:
                real = int((inputs.samples >= 0).sum())
                means = {"train/loss": value, "train/grad_norm": norm} if finite else {"train/loss": value}
                means |= {
                    "train/images_per_second": real / (now - last),
                    "train/step_seconds": now - last,
                    "train/data_wait_seconds": fed - last,
                }
                latest = {"train/learning_rate": rate, "train/overflows": overflows}
                curves.step(done, means, latest, done % train.log_interval == 0 or done == steps)
            last = now
            if len(held_out) and (done % train.validation_interval == 0 or done == steps):
                validate(done)
                last = time.perf_counter()
            if done % train.checkpointing_steps == 0 and done < steps:
                facts = {"overflows": overflows, "pending": curves and curves.pending}
                states.save(done, slots, facts, paths.out / "live", train.checkpoints_total_limit, rank, device.barrier)
                last = time.perf_counter()

        # Outs
        if rank == 0:
            names = [p.name for p in parameters]
            with store.atomic(paths.out / "weights") as folder:
                folder.mkdir()
                _write(folder / "unet.ckpt", parameters, names)
                if ema is not None:
                    _write(folder / "unet_ema.ckpt", ema, names)
            curves.close()
            states.clear()
        device.barrier()


def _objective(diffusion: params.Diffusion, train: params.Train, scaling_factor: float) -> feed.Objective:
    alphas = schedule.alphas_cumprod(diffusion.zero_terminal_snr)
    return feed.Objective(
        seed=train.seed,
        prediction=diffusion.prediction,
        scaling_factor=scaling_factor,
        alphas=alphas,
        chances=timesteps.probabilities(
            train.timestep_bias_strategy,
            train.timestep_bias_multiplier,
            train.timestep_bias_begin,
            train.timestep_bias_end,
            train.timestep_bias_portion,
        ),
        weights=loss.weights(schedule.snr(alphas), diffusion.prediction, train.snr_gamma, train.debiased_estimation),
        noise_offset=train.noise_offset,
        caption_dropout=train.caption_dropout,
        caption_dropout_with=train.caption_dropout_with,
    )


def _unet(config, device: Device, train: params.Train, weights: Path) -> UNet:
    attention = device.attention
    if attention == "auto":
        attention = "flash" if device.ascend and train.precision != "float32" else "tiled"
        log.info("attention: %s", attention)
    with no_init_parameters():
        unet = UNet(config, attention, DTYPES[train.precision], train.gradient_checkpointing)
    load_weights(unet, weights, PREFIX["unet"], ms.float16 if train.param_fp16 else ms.float32)
    return unet.set_train()


def _optimizer(unet: nn.Cell, train: params.Train, device: Device) -> nn.Cell:
    parameters, decayed = unet.trainable_params(), decays(unet)
    if train.optimizer == "adafactor":
        return Adafactor(parameters, decayed, train.weight_decay)
    return AdamW(
        parameters, decayed, train.weight_decay, train.adam_beta1, train.adam_beta2, train.adam_epsilon,
        fused=not device.ascend and not train.param_fp16,
        rank=device.rank, ranks=device.world_size if train.shard_optimizer else 1,
    )  # fmt: skip


def _step_function(unet: nn.Cell, update: Update, settings: Settings) -> Callable:
    """-> function of a step's micro-batches, learning rate and EMA decay giving loss, gradient norm, finite."""
    sample_loss = SampleLoss(unet, settings)
    if settings.gradient_accumulation_steps == 1:
        whole = TrainStep(sample_loss, update)

        def take(micro_batches, *scalars):
            return whole(*map(ms.Tensor, micro_batches[0].arrays()), *scalars)
    else:
        accumulate = Accumulate(sample_loss, update)
        boundary = Boundary(accumulate, update)

        def take(micro_batches, *scalars):
            for micro_batch in micro_batches:
                accumulate(*map(ms.Tensor, micro_batch.arrays()))
            return boundary(*scalars)

    def step(micro_batches, rate, decay):
        results = take(micro_batches, ms.Tensor(rate, ms.float32), ms.Tensor(decay, ms.float32))
        value, norm, finite = (result.asnumpy().item() for result in results)
        return value, norm, finite

    return step


def _slots(optimizer: nn.Cell, update: Update, ema, rank: int, ranks: int) -> list[state.Slot]:
    """All that a state holds."""
    slots = [state.Slot(p) for p in (*optimizer.parameters, *(ema or ()), optimizer.updates, update.loss_scale, update.good_steps)]
    if isinstance(optimizer, Adafactor):
        return slots + [state.Slot(p) for p in (*optimizer.rows, *optimizer.columns)]
    for moments in (optimizer.moment1, optimizer.moment2):
        slots += [state.Slot(p, rank, ranks) if cut else state.Slot(p) for p, cut in zip(moments, optimizer.cut, strict=True)]
    return slots


def _check(value: float, norm: float, finite: bool, settings: Settings, update: Update, inputs: feed.Step, reader: Reader, states: state.States) -> None:
    """Stop at a loss that is not a number, and at overflows that no loss scale avoids."""
    if finite and math.isfinite(value):
        return
    if settings.loss_scale is not None and update.loss_scale.asnumpy() > 1:
        return
    samples = [reader.names[sample].tobytes().hex() for sample in inputs.samples if sample >= 0]
    good = states.newest()
    raise StageError(
        f"step {inputs.number}: the loss is {value} and the gradient norm {norm}. Its samples (content hashes, `image` in "
        f"outs/index/images.parquet): {', '.join(samples)}. The last good checkpoint is {good or 'the base model: none was saved yet'}. "
        "Look at those pictures and captions, or lower train.learning_rate"
    )


class _swapped:
    """In the block the `parameters` have the values of `others`."""

    def __init__(self, parameters, others):
        self.parameters, self.others = parameters, others

    def __enter__(self):
        self.values = [p.asnumpy().copy() for p in self.parameters]
        for parameter, other in zip(self.parameters, self.others, strict=True):
            parameter.set_data(ms.Tensor(other.asnumpy(), parameter.dtype))

    def __exit__(self, *_):
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.set_data(ms.Tensor(value))


def _write(path: Path, parameters, names: list[str]) -> None:
    """Weights as float32 under the checkpoint's names."""
    with ckpt.Writer(path) as writer:
        for parameter, name in zip(parameters, names, strict=True):
            writer.add(PREFIX["unet"] + name, parameter.asnumpy().astype(np.float32, copy=False))
