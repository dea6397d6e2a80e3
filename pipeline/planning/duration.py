"""Steps and hours: what was published of SDXL on Ascend 910B, and what the launches of kernels take by themselves."""

from math import ceil

from pipeline.planning.run import Run
from pipeline.training.data import count_graphs

# MindONE's tables, 8 cards, 1024 x 1024: (batch per card, seconds per step at best, at worst) over MindSpore 2.2.10 and
# 2.3.1, with and without flash attention, cache and sink.
PUBLISHED = ((1, 0.53, 1.10), (4, 1.07, None), (6, 2.15, 2.70))
# Kernels at jit level O0 of sdxl-base's gradients and their norm, with gradient checkpointing, as MindSpore would hand
# them to an NPU (benchmarks/full_graph.py --npu); without it 0.66 of the forward pass's 3,422 fewer, as of the tiny model.
KERNELS = {True: 13_953, False: 11_700}
UPDATE = 3_412 + 41  # AdamW's, the same way, and what stands between its 42 turns since
JOINABLE = 7_194  # casts, sums and products among the gradients': what O1 may fuse
LAUNCH = (5e-6, 10e-6)  # seconds of the host for each: an assumption, not measured here


def steps(run: Run) -> int:
    """Of an epoch all pictures but those held out, as if they were all of one bucket."""
    pictures = max(1, round(run.images * (1 - run.validation_share)))
    return run.steps or run.epochs * ceil(pictures / run.samples)


def hours(run: Run) -> tuple[float, float] | None:
    """At best and at worst, by the published step time whose batch is nearest, scaled to this run's batch, accumulation
    and resolution; None for what nothing was published of."""
    if run.config != "sdxl-base":
        return None
    batch, best, worst = min(PUBLISHED, key=lambda row: abs(row[0] - run.batch_size))
    # where one number is published, the spread of the nearest batch with two
    worst = worst or best * PUBLISHED[0][2] / PUBLISHED[0][1]
    pixels = sum(resolution**2 for resolution in run.resolutions) / len(run.resolutions)  # of which each is drawn alike
    factor = steps(run) * run.accumulation * run.batch_size / batch * pixels / 1024**2 / 3600
    return best * factor, worst * factor


def kernels(run: Run) -> int:
    """Of an optimizer step of sdxl-base, without fusion."""
    return run.accumulation * KERNELS[run.gradient_checkpointing] + UPDATE


def launches(count: int) -> tuple[float, float]:
    """Seconds a step in which the host launches so many kernels, at best and at worst."""
    return LAUNCH[0] * count, LAUNCH[1] * count


def graphs(run: Run) -> int | None:
    """How many the run compiles at most; None where the buckets are not known."""
    if run.buckets is None:
        return None
    held_out = min(run.buckets, round(run.images * run.validation_share))
    return count_graphs(run.buckets, held_out, run.sinks, run.ema)
