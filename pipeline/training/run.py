"""The training run of one rank, from top to bottom: data, state, model, loop, outs."""

import logging
import math
from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import numpy as np
from mindspore import nn

from pipeline import params, store
from pipeline.cache.plan import bucket_codes
from pipeline.cache.reader import Reader
from pipeline.device import Device
from pipeline.models.config import CONFIGS
from pipeline.stage import StageError
from pipeline.training import agreement, build, drive, feed, finished, preview, rates, state, validation
from pipeline.training.compiled import Compiler
from pipeline.training.data import Data, Paths, count_graphs, count_steps
from pipeline.training.key import Training
from pipeline.training.log import PICTURES, Log
from pipeline.training.step import Settings, Update, average_of
from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX

log = logging.getLogger(__name__)


def fine_tune(
    training: Training,
    data: Data,
    paths: Paths,
    model: str,
    device: Device,
    diffusion: params.Diffusion,
    train: params.Train,
) -> None:
    """Fine-tune the UNet of configuration `model` on the cache; `training` is the key of these arguments, which no other
    process may be at (launch.turn). Raises StageError; no weights are written then."""
    states = state.States(training.name, training.description)
    try:
        _fine_tune(training, data, paths, model, device, diffusion, train, states)
    finally:
        states.finish()


def _fine_tune(
    training: Training,
    data: Data,
    paths: Paths,
    model: str,
    device: Device,
    diffusion: params.Diffusion,
    train: params.Train,
    states: state.States,
) -> None:
    config = CONFIGS[model]
    rank, ranks = device.rank, device.world_size
    global_batch = train.batch_size * train.gradient_accumulation_steps * ranks

    # Data
    reader, subset, held_out = data.reader, data.subset, data.held_out
    end, per_epoch = count_steps(data, train, ranks)
    objective = build.objective(diffusion, train, config.vae.scaling_factor)
    log.info(
        "%d pictures to train on and %d held out; %d steps of %d samples, %d to an epoch",
        len(subset), len(held_out), end, global_batch, per_epoch,
    )  # fmt: skip

    agreement.check(
        device,
        training.description | {"train": train.model_dump() | training.split, "sink_size": device.sink_size},
        "Give all nodes the same params.yaml (but device.node_rank), code (git commit), packages and outs/",
    )

    # State: this run's own half-done one in the store, or the base model
    others = states.open() if rank == 0 else []
    device.barrier()
    facts = None
    while facts is None:
        unet = build.unet(config.unet, device, train, paths.unet)
        settings = build.settings(device, train)
        optimizer = build.optimizer(unet, device, train)
        parameters = optimizer.parameters
        update = Update(optimizer, average_of(parameters) if train.ema else None, settings)
        slots = build.slots(optimizer, update, rank, ranks)
        facts = states.resume(slots, paths.out / "live", device)
    done = facts["step"]
    if not done:
        for other in others:
            log.info("starts anew beside the half-done run in %s", other)
    curves = Log(paths.out / "live", end, done, facts["pending"]) if rank == 0 else None

    # Graphs, compiled when they are first met
    used, validated = (len(np.unique(bucket_codes(reader.buckets[samples]))) for samples in (subset, held_out))
    count = count_graphs(used, validated, device.sink_size > 0, train.ema)
    compiler = Compiler(build.graph_key(model, device, train) if device.compile_cache else None, device, count)
    graphs = drive.Graphs(unet, update, settings, compiler, device.sink_size > 0)
    evaluate = validation.Evaluator(unet, compiler)
    swap = validation.Swap(update, compiler) if train.ema else None

    # Validation
    grid = validation.Grid(
        train.validation_timesteps, diffusion.prediction, config.vae.scaling_factor, objective.alphas
    )

    def validate() -> None:
        def losses():
            sums = validation.losses(evaluate, reader, held_out, grid, train.batch_size, rank, ranks)
            return device.all_reduce(sums) / len(held_out)

        found = losses()
        values = {"validation/loss": float(found.mean())}
        values |= {f"validation/loss_t{t}": float(value) for t, value in zip(grid.timesteps, found, strict=True)}
        if swap is not None:
            with swap.averaged():
                values["validation/ema_loss"] = float(losses().mean())
        if curves is not None:
            curves.point(done, values)
            if done == 0:
                curves.fact("validation/base_loss", values["validation/loss"])

    # Pictures of the held-out captions
    paint = None
    if train.sample_interval and rank == 0:
        paint = preview.painter(
            unet, config, paths.vae, device, reader, held_out if len(held_out) else subset,
            objective.alphas, diffusion.prediction, diffusion.zero_terminal_snr,
        )  # fmt: skip

    # Loop
    peak = train.learning_rate * (global_batch if train.scale_lr else 1)

    def rates_of(number: int) -> tuple[float, float]:
        rate = rates.learning_rate(number, end, peak, train.lr_scheduler, train.lr_warmup_steps)
        return rate, rates.ema_decay(number, train.ema_decay)

    steps = feed.Steps(
        reader, objective, subset, done, end, train.batch_size, train.gradient_accumulation_steps, rank, ranks
    )
    if len(held_out) and done == 0:
        validate()
    looks = [train.checkpointing_steps]
    looks += [train.validation_interval] if len(held_out) else []
    looks += [train.sample_interval] if train.sample_interval else []
    for result in drive.results(graphs, steps, rates_of, device.sink_size, train.log_interval, looks):
        _check(result, settings, reader, states)
        outcome, done = result.outcome, result.done

        def passed(interval: int) -> bool:
            return drive.passed(interval, result)  # noqa: B023  (called within its own iteration)

        if curves is not None:
            means = {"train/loss": outcome.loss} | ({"train/grad_norm": outcome.norm} if outcome.finite else {})
            means |= {
                "train/images_per_second": int((result.samples >= 0).sum()) / result.seconds,
                "train/step_seconds": result.seconds,
                "train/data_wait_seconds": result.waited,
            }
            latest = {"train/learning_rate": result.learning_rate, "train/overflows": int(outcome.overflows)}
            curves.step(done, result.steps, means, latest, passed(train.log_interval) or done == end)
        if len(held_out) and (passed(train.validation_interval) or done == end):
            validate()
        if paint and (passed(train.sample_interval) or done == end):
            paint(paths.out / "live" / PICTURES / f"step-{done:08d}.png")
        if passed(train.checkpointing_steps) and done < end:
            facts = {"pending": curves and curves.pending}
            states.save(done, slots, facts, paths.out / "live", train.checkpoints_total_limit, rank, device.barrier)

    # Outs
    states.wait()
    device.barrier()
    if rank == 0:
        with store.out(paths.out / "weights") as folder:
            folder.mkdir()
            _write(folder / "unet.ckpt", unet, parameters, parameters)
            if update.ema is not None:
                _write(folder / "unet_ema.ckpt", unet, update.ema, parameters)
        curves.close()
        finished.keep(training, paths.out)
        states.clear()
    device.barrier()


def _check(result: drive.Result, settings: Settings, reader: Reader, states: state.States) -> None:
    """Stop at a loss that is not a number, and at overflows that no loss scale avoids."""
    outcome = result.outcome
    if outcome.finite and math.isfinite(outcome.loss):
        return
    if settings.loss_scale is not None and outcome.loss_scale > 1:
        return
    states.wait()
    samples = [reader.names[sample].tobytes().hex() for sample in result.samples if sample >= 0]
    good = states.newest()
    raise StageError(
        f"step {result.done - 1}: the loss is {outcome.loss} and the gradient norm {outcome.norm}. Its samples "
        f"(content hashes, `image` in outs/index/images.parquet): {', '.join(samples)}. The last good checkpoint is "
        f"{good or 'the base model: none was saved yet'}. Look at those pictures and captions, or lower "
        "train.learning_rate"
    )


def _write(path: Path, unet: nn.Cell, values, parameters) -> None:
    """`values` as float32 under the checkpoint's names of `parameters`, in the UNet's order."""
    found = dict(zip((parameter.name for parameter in parameters), values, strict=True))
    with ckpt.Writer(path) as writer:
        for parameter in unet.trainable_params():
            value = found[parameter.name].asnumpy()
            writer.add(PREFIX["unet"] + parameter.name, value.astype(np.float32, copy=False))
