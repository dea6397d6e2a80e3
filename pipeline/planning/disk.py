"""Bytes on disk: caches, components, states, outs; and how long a state takes to write."""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

from pipeline.models.config import CONFIGS
from pipeline.planning import duration
from pipeline.planning.device import Parts
from pipeline.planning.run import Run, component_shapes, trained_shapes
from pipeline.training import memory
from pipeline.weights.chosen import trained_parts
from pipeline.weights.names import PREFIX

_PROBE = 32 * 2**20  # bytes


def cache_parts(run: Run) -> tuple[int, int]:
    """(bytes of a picture's rows of latents, of a caption's text), in float16 but for the pooled text in float32; none
    where training encodes"""
    text = 0 if run.reads_captions else CONFIGS[run.config].text_bytes(run.chunks)
    return 0 if run.encodes else latents_bytes(run) // run.images, text


def latents_bytes(run: Run) -> int:
    """Of masks a byte for each latent pixel; what has one an index says."""
    masked = run.counted.masked if run.counted else 0
    return (run.latent_channels * 2 * run.pixels + masked) // CONFIGS[run.config].vae.factor ** 2


def cache_bytes(run: Run) -> int:
    """Both caches; without an index all pictures in square buckets."""
    _, text = cache_parts(run)
    return (0 if run.encodes else latents_bytes(run)) + (run.images if run.captions is None else run.captions) * text


def state_bytes(run: Run) -> int:
    """A state: weights that are trained, EMA and the moments of all ranks."""
    shapes = trained_shapes(run)
    held = memory.parameters(shapes, run.trained_dtype) + memory.optimizer(shapes, run.optimizer, 1)
    return held + (memory.in_float32(shapes) if run.ema else 0)


def numbers(run: Run, *parts: str) -> int:
    return sum(prod(shape) for part in parts for shape in component_shapes(run.config, part).values())


def written(run: Run) -> int:
    """How many numbers a file of what is trained has: the UNet's, or the adapters'."""
    if run.adapts:
        return sum(map(prod, trained_shapes(run).values()))
    return numbers(run, "unet", *trained_parts(run.text_encoders))


def between(run: Run) -> int:
    """How many sets of weights in between there are at most at once: those that become outs, and until the next state is
    written those that they will replace."""
    steps, count = duration.steps(run), 0
    if run.save_interval:
        newest = steps if run.save_limit is None else run.save_limit
        count = min(steps // run.save_interval, newest + run.checkpointing_steps // run.save_interval + 1)
    if run.keep_best:
        count += 2 + run.checkpointing_steps // run.validation_interval
    return count


def disk_bytes(run: Run) -> Parts:
    """What a run adds at most, where nothing of it is there yet. Links between store, outs and DVC's cache count
    once."""
    size = run.save_bytes if run.adapts else 4
    weights = size * written(run) * (2 if run.ema else 1)
    whole, sets = run.merge_bytes * numbers(run, *PREFIX), between(run)
    kept = {f"weights in between: {sets} at most": sets * run.save_bytes * written(run)} if sets else {}
    return {
        "caches of latents and text": cache_bytes(run),
        "components of the base (float16)": 2 * numbers(run, *PREFIX),
        # the one that is being written stands beside those that are kept
        f"states: {run.states} kept and the next being written": (run.states + 1) * state_bytes(run),
        "trained weights (the store keeps those of 3 runs)": weights,
        **kept,
        "merged.ckpt and merged.safetensors": 2 * whole,
    }


@dataclass(frozen=True)
class Place:
    """The disk that a run writes to."""

    free: int  # bytes
    used: int  # bytes that the store and the outs have already
    speed: float  # bytes a second that it takes


def look(store: Path, outs: Path) -> Place:
    """Raises OSError."""
    return Place(shutil.disk_usage(store).free, _used(store, outs), _write_speed(store))


def missing(run: Run, place: Place) -> int:
    """Bytes that the disk lacks for the run; 0 where it has room."""
    return max(0, sum(disk_bytes(run).values()) - place.used - place.free)


def _used(*folders: Path) -> int:
    """Bytes of all files below, linked ones once."""
    sizes = {}
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a stage that runs may drop it
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def _write_speed(folder: Path) -> float:
    """Of one file of 32 MiB written through to the disk."""
    block = os.urandom(2**20)
    begin = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_PROBE // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return _PROBE / (time.perf_counter() - begin)
