"""The training run of one rank, from top to bottom: data, state, model, loop, outs."""

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
import numpy as np

from pipeline import params, progress, store
from pipeline.cache.plan import bucket_codes
from pipeline.cache.reader import Reader
from pipeline.device import Device
from pipeline.models.config import CONFIGS
from pipeline.stage import StageError
from pipeline.training import agreement, build, drive, feed, finished, preview, state, validation, weights
from pipeline.training.compiled import Compiler
from pipeline.training.data import Data, Paths, count_graphs, count_steps
from pipeline.training.key import Training
from pipeline.training.log import PICTURES, Log
from pipeline.training.objective import objective as make_objective
from pipeline.training.step import Settings

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
    config, live = CONFIGS[model], paths.out / "live"
    end = _steps(data, train, device)
    _check_ranks_agree(training, train, device)
    objective = make_objective(diffusion, train, config.vae.scaling_factor)

    # Model and state
    make = functools.partial(build.trained, config.unet, device, diffusion, train, paths.unet)
    trained, facts = _start(states, make, live, device)
    done = facts["step"]
    curves = Log(live, end, done, facts["pending"], device.memory) if device.rank == 0 else None

    # What a step, a validation and a picture are; their graphs are compiled when they are first met
    compiler = _compiler(model, data, device, train, trained.settings)
    graphs = drive.Graphs(trained.unet, trained.update, trained.settings, compiler, device.sink_size > 0)
    steps = feed.Steps(
        data.reader, objective, data.subset, done, end, train.batch_size, train.gradient_accumulation_steps,
        device.rank, device.world_size,
    )  # fmt: skip
    validate = paint = None
    if len(data.held_out):
        grid = validation.Grid(
            train.validation_timesteps, objective.prediction, objective.alphas, objective.scaling_factor,
            objective.shift_factor,
        )  # fmt: skip
        validate = validation.validator(
            trained.unet, trained.update, compiler, data.reader, data.held_out, grid, train.batch_size, device
        )
    if train.sample_interval and device.rank == 0:
        paint = preview.painter(
            trained.unet, config, paths.vae, device, data.reader, data.held_out if len(data.held_out) else data.subset,
            diffusion, objective.scaling_factor,
        )  # fmt: skip

    # Loop
    if validate and done == 0:
        with progress.outside():
            values = validate()
        if curves is not None:
            curves.point(0, values)
    rates, looks = build.rates(train, end, device.world_size), _looks(train, validate is not None)
    for result in drive.results(graphs, steps, rates, device.sink_size, train.log_interval, looks):
        _check(result, trained.settings, data.reader, states)
        done = result.done
        passed = functools.partial(drive.passed, result=result)
        if curves is not None:
            _log_step(curves, result, passed(train.log_interval) or done == end)
        if validate and (passed(train.validation_interval) or done == end):
            values = validate()
            if curves is not None:
                curves.point(done, values)
        if paint and (passed(train.sample_interval) or done == end):
            paint(live / PICTURES / f"step-{done:08d}.png")
        if passed(train.checkpointing_steps) and done < end:
            facts = {"pending": curves and curves.pending}
            states.save(done, trained.slots, facts, live, train.checkpoints_total_limit, device.rank, device.barrier)

    # Outs
    states.wait()
    device.barrier()
    if device.rank == 0:
        _write_weights(paths.out / "weights", trained)
        curves.close()
        finished.keep(training, paths.out)
        states.clear()
    device.barrier()


def _steps(data: Data, train: params.Train, device: Device) -> int:
    """How many optimizer steps the run has; says so."""
    end, per_epoch = count_steps(data, train, device.world_size)
    log.info(
        "%d pictures to train on and %d held out; %d steps of %d samples, %d to an epoch",
        len(data.subset), len(data.held_out), end, build.global_batch(train, device.world_size), per_epoch,
    )  # fmt: skip
    return end


def _check_ranks_agree(training: Training, train: params.Train, device: Device) -> None:
    """Raises StageError where a rank would train something else."""
    agreement.check(
        device,
        training.description | {"train": train.model_dump() | training.split, "sink_size": device.sink_size},
        "Give all nodes the same params.yaml (but device.node_rank), code (git commit), packages and outs/",
    )


def _start(
    states: state.States, make: Callable[[], build.Trained], live: Path, device: Device
) -> tuple[build.Trained, dict]:
    """The model with this run's own half-done state in the store, or else as `make` makes it; and the state's facts."""
    others = states.open() if device.rank == 0 else []
    device.barrier()
    facts = None
    while facts is None:
        trained = make()
        facts = states.resume(trained.slots, live, device)
    for other in others if not facts["step"] else []:
        log.info("starts anew beside the half-done run in %s", other)
    return trained, facts


def _compiler(model: str, data: Data, device: Device, train: params.Train, settings: Settings) -> Compiler:
    trained, validated = (
        len(np.unique(bucket_codes(data.reader.buckets[samples]))) for samples in (data.subset, data.held_out)
    )
    count = count_graphs(trained, validated, device.sink_size > 0, train.ema)
    key = build.graph_key(model, device, train, settings) if device.compile_cache else None
    return Compiler(key, device, count)


def _looks(train: params.Train, validates: bool) -> list[int]:
    """The intervals of steps after which the host looks at weights or state."""
    return [
        train.checkpointing_steps,
        *([train.validation_interval] if validates else []),
        *([train.sample_interval] if train.sample_interval else []),
    ]


def _log_step(curves: Log, result: drive.Result, point: bool) -> None:
    outcome = result.outcome
    means = {"train/loss": outcome.loss} | ({"train/grad_norm": outcome.norm} if outcome.finite else {})
    means |= {
        "train/images_per_second": int((result.samples >= 0).sum()) / result.seconds,
        "train/step_seconds": result.seconds,
        "train/data_wait_seconds": result.waited,
    }
    latest = {"train/learning_rate": result.learning_rate, "train/overflows": int(outcome.overflows)}
    curves.step(result.done, result.steps, means, latest, point)


def _check(result: drive.Result, settings: Settings, reader: Reader, states: state.States) -> None:
    """Stop at a loss that is not a number, and at overflows that no loss scale avoids."""
    outcome = result.outcome
    if outcome.finite and math.isfinite(outcome.loss):
        return
    if settings.loss_scale is not None and outcome.loss_scale > 1:
        return
    states.wait()
    samples = [reader.names[sample % reader.n].tobytes().hex() for sample in result.samples if sample >= 0]
    good = states.newest()
    raise StageError(
        f"step {result.done - 1}: the loss is {outcome.loss} and the gradient norm {outcome.norm}. Its samples "
        f"(content hashes, `image` in outs/index/images.parquet): {', '.join(samples)}. The last good checkpoint is "
        f"{good or 'the base model: none was saved yet'}. Look at those pictures and captions, or lower "
        "train.learning_rate"
    )


def _write_weights(out: Path, trained: build.Trained) -> None:
    with store.out(out) as folder:
        folder.mkdir()
        weights.write(folder / "unet.ckpt", trained.unet, trained.update.parameters, trained.update.parameters)
        if trained.update.ema is not None:
            weights.write(folder / "unet_ema.ckpt", trained.unet, trained.update.ema, trained.update.parameters)
