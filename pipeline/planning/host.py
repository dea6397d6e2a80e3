"""Memory of a computer's host while its ranks train."""

import os

from pipeline.models.config import CONFIGS
from pipeline.planning.device import Parts, device_bytes, stays
from pipeline.planning.disk import written
from pipeline.planning.run import Run

PYTHON = 650 * 10**6  # of each process, with MindSpore and its first kernels: measured on a CPU
# What the compilation of a step's graphs takes at its fullest. Measured on a CPU (docs/measured.md): of the tiny model in a
# CPU's forms, of sdxl-base in an NPU's with gradient checkpointing, first the gradients' graph and then the update's.
COMPILING = {"tiny": 1_750 * 10**6, "sdxl-base": 22 * 10**9}
PER_SAMPLE = 126  # bytes of reader and an epoch's plan: 1.26 GB for ten million (benchmarks/plan_10m.py)
AHEAD = 4  # steps' inputs that are made ahead or on their way, at most


def host_bytes(run: Run) -> Parts:
    """Of one node, all its ranks together. MindSpore is taken to keep the host's side of each parameter."""
    config, ranks = CONFIGS[run.config], run.devices // run.nodes
    # x_t and target, context, vector, in float32
    sample = 4 * (2 * config.unet.latent_channels * run.side**2 + config.tokens(run.chunks) * config.unet.context_dim)
    sample += 4 * config.unet.vector_dim
    parts = {
        "processes with MindSpore": ranks * PYTHON,
        "graphs, while they are compiled (as on a CPU)": ranks * COMPILING[run.config],
    }
    held = stays(run)
    if run.target == "Ascend":
        own = ("weights", "adapters", "optimizer's state", "EMA", "float32 totals of micro-batches' gradients")
        parts["weights and state, the host's side"] = ranks * sum(held.get(name, 0) for name in own)
    else:
        parts["the devices, as above"] = ranks * sum(device_bytes(run).values())
    if run.save_interval or run.keep_best:
        parts["weights in between, until they are written"] = run.save_bytes * written(run)
    parts["inputs, made ahead"] = ranks * AHEAD * run.accumulation * run.batch_size * sample
    if run.encodes:
        pixels = 4 * 3 * run.largest**2
        parts["pictures, prepared ahead"] = ranks * AHEAD * run.accumulation * run.batch_size * pixels
    parts["reader and order of an epoch"] = ranks * PER_SAMPLE * run.rows
    return parts


def this_machine() -> int:
    """Bytes of memory that this computer has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
