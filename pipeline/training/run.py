"""The training run of one rank, from top to bottom: data, state, model, loop, outs."""

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)
from pipeline.device import Device

import numpy as np

from pipeline import params, progress
from pipeline.cache.reading.plan import bucket_codes
from pipeline.cache.reading.reader import Reader
from pipeline.models.config import CONFIGS, SDXLConfig
from pipeline.sampling import draw
from pipeline.sampling.picture import Picture
from pipeline.stage import StageError
from pipeline.training import (
    agreement,
    build,
    course,
    drive,
    feed,
    finished,
    key,
    preview,
    state,
    validation,
    written,
)  # fmt: skip
from pipeline.training.compiled import Compiler
from pipeline.training.course import Course
from pipeline.training.data import PICTURES, Data, Paths, count_graphs, count_steps
from pipeline.training.key import Training
from pipeline.training.log import Log
from pipeline.training.objective import objective as make_objective
from pipeline.training.step import Settings
from pipeline.training.stored import Reach

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
    states = state.States(training.name, training.description, training.reach)
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
    precision = data.reader.texts.precision if data.reader.texts else "float32"

    make = functools.partial(build.trained, config, device, diffusion, train, paths, precision)
    trained, facts = _start(states, make, live, device)
    now = Course(**facts.get("course", {}))
    curves = None
    if device.rank == 0:
        curves = Log(live, end, now.step, facts.get("pending"), device.memory, train.tensorboard)
    build.start_encoders(data.reader, trained, config, paths, device)

    # its graphs are compiled when they are first met
    compiler = _compiler(model, data, device, train, trained.settings, precision)
    graphs = drive.Graphs(trained.network, trained.update, trained.settings, compiler, device.sink_size > 0)
    steps = feed.Steps(
        data.reader, objective, data.subset, now.step, end, train.batch_size, train.gradient_accumulation_steps,
        device.rank, device.world_size,
    )  # fmt: skip
    run = _Run(
        train, device, data.reader, live, training.reach, trained, states, curves,
        _validator(trained, compiler, data, objective, diffusion, train, device),
        _painter(trained, data, objective, config, paths.vae, diffusion, train, device),
        functools.partial(_facts, training, data),
    )  # fmt: skip

    now = _before_the_first_step(run, now)
    now = _train(run, _results(run, graphs, steps, end, now), now)
    now = _after_the_last_step(run, now)
    _finish(run, training, paths.out, now)


@dataclass(frozen=True)
class _Run:
    """What a run has from its first step to its outs, beside graphs and data; None is what it, or this rank, does not
    do."""

    train: params.Train
    device: Device
    reader: Reader
    live: Path  # folder of the curves
    reach: Reach
    trained: build.Trained
    states: state.States
    curves: Log | None
    validate: Callable[[], dict[str, float]] | None
    paint: Callable[[Path], None] | None
    facts_of: Callable[[int, int | None], dict]  # of (steps, the best one)


def _before_the_first_step(run: _Run, now: Course) -> Course:
    """The first validation is of the weights that it starts from."""
    if run.validate and now.validated < 0:
        with progress.outside():
            return _validate(run, now)
    return now


def _train(run: _Run, results: Iterable[drive.Result], now: Course) -> Course:
    """Until the last step, or one that stops the run."""
    for result in results:
        _check(result, run.trained.settings, run.reader, run.states)
        now = _after_step(run, result, dataclasses.replace(now, step=result.done))
        if course.stops(now, run.train.patience):
            log.info(
                "stops after step %d: %d validations brought nothing better than that of step %d",
                now.step, now.worse, now.best,
            )  # fmt: skip
            break
    return now


def _after_step(run: _Run, result: drive.Result, now: Course) -> Course:
    """Curves, validation, picture, weights and state, each at its interval."""
    train, passed = run.train, functools.partial(drive.passed, result=result)
    if run.curves is not None:
        _log_step(run.curves, result, passed(train.log_interval))
    if run.validate and passed(train.validation_interval):
        now = _validate(run, now)
    if run.paint and passed(train.sample_interval):
        _paint(run, now)
    if passed(train.save_interval):
        now = course.saved(now, train.save_limit)
    _keep_weights(run, now)
    if _saves_state(train, run.reach, result, run.device.sink_size):
        _save_state(run, now)
    return now


def _after_the_last_step(run: _Run, now: Course) -> Course:
    """What it has beside its intervals; a longer run that goes on from here does not."""
    if run.curves is not None:
        run.curves.flush(now.step)
    if run.validate and now.validated != now.step:
        now = _validate(run, now)
        _keep_weights(run, now)
    if run.paint and not _picture(run.live, now).exists():
        _paint(run, now)
    return now


def _finish(run: _Run, training: Training, out: Path, now: Course) -> None:
    """The outs, and the end of the states."""
    run.states.wait()
    run.device.barrier()
    if run.device.rank == 0:
        best = now.best if run.train.keep_best and now.best else None
        written.write(
            out / "weights", run.states, run.trained, run.train, now.saved, run.facts_of(now.step, best), best
        )
        _close(run.curves, now, run.train)
        finished.keep(training, out)
        run.states.clear(run.train.keep_state)
    run.device.barrier()


def _steps(data: Data, train: params.Train, device: Device) -> int:
    """How many optimizer steps the run has; says so."""
    end, per_epoch = count_steps(data, train, device.world_size)
    pictures = data.reader.pictures(data.subset)
    views = f" ({len(data.subset)} with all their sets, resolutions and buckets)" if pictures < len(data.subset) else ""
    log.info(
        "%d pictures to train on%s and %d held out; %d steps of %d samples, %d to an epoch",
        pictures, views, len(data.held_out), end, build.global_batch(train, device.world_size), per_epoch,
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
        log.info("starts anew; the store also has states of another run, which stay there: %s", other)
    return trained, facts


def _compiler(
    model: str, data: Data, device: Device, train: params.Train, settings: Settings, precision: str
) -> Compiler:
    trained, validated = (
        len(np.unique(bucket_codes(data.reader.buckets[samples]))) for samples in (data.subset, data.held_out)
    )
    if device.sink_size and trained > 1:
        raise StageError(
            f"device.sink_size is {device.sink_size} and the pictures have {trained} sizes: a sink has one; sets have "
            "resolutions of their own (sets.yaml and the like). Set device.sink_size to 0, or give all one resolution"
        )
    count = count_graphs(trained, validated, device.sink_size > 0, train.ema)
    keys = build.graph_keys(model, device, train, settings, precision) if device.compile_cache else None
    return Compiler(keys, device, count)


def _validator(
    trained: build.Trained, compiler: Compiler, data: Data, objective: feed.Objective, diffusion: params.Diffusion,
    train: params.Train, device: Device,
) -> Callable[[], dict[str, float]] | None:  # fmt: skip
    """None without held-out pictures."""
    if not len(data.held_out):
        return None
    grid = validation.Grid(
        train.validation_timesteps, objective.prediction, objective.alphas, objective.scaling_factor,
        objective.shift_factor, objective.mask_floor, diffusion.flow_shift,
    )  # fmt: skip
    return validation.validator(
        trained.network, trained.update, compiler, data.reader, data.held_out, grid, train.batch_size, device
    )


def _painter(
    trained: build.Trained, data: Data, objective: feed.Objective, config: SDXLConfig, vae: Path,
    diffusion: params.Diffusion, train: params.Train, device: Device,
) -> Callable[[Path], None] | None:  # fmt: skip
    """Of previews; None without, and on all ranks but the first."""
    if not train.sample_interval or device.rank != 0:
        return None
    texts = (lambda: _previews(data, train)[1:]) if train.text_encoders != "none" else None
    return preview.painter(
        trained.unet, config, vae, device, *_previews(data, train), texts, train.preview_sampler, diffusion,
        objective.scaling_factor,
    )  # fmt: skip


def _results(run: _Run, graphs: drive.Graphs, steps: feed.Steps, end: int, now: Course) -> Iterable[drive.Result]:
    """Of the steps that are left, if any are: a state may be of a run that had come to its end."""
    train, device = run.train, run.device
    if not len(steps) or course.stops(now, train.patience):
        return ()
    looks = functools.partial(_looks, train, run.reach, device.sink_size)
    rates = build.rates(train, end, device.world_size)
    return drive.results(graphs, steps, rates, device.sink_size, train.log_interval, looks)


def _looks(train: params.Train, reach: Reach, sink_size: int, launch: drive.Launch) -> bool:
    """Whether the host looks at weights or state after it."""
    intervals = [train.checkpointing_steps, train.sample_interval, train.save_interval]
    intervals += [train.validation_interval] if train.validation_share else []
    return any(drive.passed(interval, launch) for interval in intervals) or (
        train.keep_state and drive.last_until(reach.shared, launch, sink_size, reach.end)
    )


def _saves_state(train: params.Train, reach: Reach, result: drive.Result, sink_size: int) -> bool:
    if train.keep_state and drive.last_until(reach.shared, result, sink_size, reach.end):
        return True
    return drive.passed(train.checkpointing_steps, result) and result.done < reach.end


def _save_state(run: _Run, now: Course) -> None:
    train, device = run.train, run.device
    facts = {
        "course": dataclasses.asdict(now),
        "weights": course.kept(now, train.keep_best),
        "pending": run.curves and run.curves.pending,
    }
    run.states.save(
        now.step, run.trained.slots, facts, run.live, train.checkpoints_total_limit, device.rank, device.barrier,
        train.keep_state,
    )  # fmt: skip


def _validate(run: _Run, now: Course) -> Course:
    values = run.validate()
    if run.curves is not None:
        run.curves.point(now.step, values)
    # rank 0's word, so that all stop at the same step
    return course.validated(now, json.loads(run.device.gather(json.dumps(values))[0]))


def _previews(data: Data, train: params.Train) -> tuple[list[Picture], draw.Text, draw.Text]:
    if train.previews:
        return preview.previews(train.previews, data.reader)
    return preview.held_out(data.reader, data.held_out if len(data.held_out) else data.subset)


def _paint(run: _Run, now: Course) -> None:
    run.paint(_picture(run.live, now))
    run.curves.picture(_picture(run.live, now))


def _picture(live: Path, now: Course) -> Path:
    return live / PICTURES / f"step-{now.step:08d}.png"


def _facts(training: Training, data: Data, steps: int, best: int | None) -> dict:
    return key.facts(training, steps, best, data.reader.names, data.reader.pictures(data.subset))


def _keep_weights(run: _Run, now: Course) -> None:
    """Those of this step, if they become outs: as `train.save_interval` says, or as the best so far."""
    if run.device.rank == 0 and now.step in course.kept(now, run.train.keep_best):
        written.keep(run.states, run.trained, run.train, now.step, run.facts_of(now.step, None))


def _log_step(curves: Log, result: drive.Result, point: bool) -> None:
    outcome = result.outcome
    means = {"train/loss": outcome.loss} | ({"train/grad_norm": outcome.norm} if outcome.finite else {})
    means |= {
        "train/images_per_second": int((result.samples >= 0).sum()) / result.seconds,
        "train/step_seconds": result.seconds,
        "train/data_wait_seconds": result.waited,
    }
    latest = {"train/learning_rate": result.learning_rate, "train/overflows": int(outcome.overflows)}
    if outcome.d is not None:
        latest["train/prodigy_d"] = outcome.d
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


def _close(curves: Log, now: Course, train: params.Train) -> None:
    """End the curves, with what metrics.json says of the whole run."""
    if (train.keep_best or train.patience) and now.best:
        curves.fact("validation/best_step", now.best)
    if train.patience:
        curves.fact("train/stopped_early", int(course.stops(now, train.patience)))
    curves.close()
