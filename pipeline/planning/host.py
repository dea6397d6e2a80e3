"""Memory of a computer's host while its ranks train."""

from pipeline.models.config import CONFIGS
from pipeline.planning.device import TOKENS, Parts, device_bytes, stays
from pipeline.planning.run import Run

PYTHON = 10**9  # of each process with MindSpore imported: 0.5 GB on a CPU, doubled for a graph; an assumption
PER_SAMPLE = 126  # bytes of reader and an epoch's plan: 1.26 GB for ten million (benchmarks/plan_10m.py)
AHEAD = 4  # steps' inputs that are made ahead or on their way, at most


def host_bytes(run: Run) -> Parts:
    """Of one node, all its ranks together. MindSpore is taken to keep the host's side of each parameter."""
    config, ranks = CONFIGS[run.config], run.devices // run.nodes
    # x_t and target, context, vector, in float32
    sample = 4 * (2 * config.unet.latent_channels * run.side**2 + TOKENS * run.chunks * config.unet.context_dim)
    sample += 4 * config.unet.vector_dim
    parts = {"processes with MindSpore (assumed)": ranks * PYTHON}
    held = stays(run)
    if run.target == "Ascend":
        own = ("weights", "optimizer's state", "EMA", "float32 totals of micro-batches' gradients")
        parts["weights and state, the host's side"] = ranks * sum(held.get(name, 0) for name in own)
    else:
        parts["the devices, as above"] = ranks * sum(device_bytes(run).values())
    if run.ema and run.validation_share:
        parts["weights put by while EMA is validated"] = ranks * held["weights"]
    parts["inputs, made ahead"] = ranks * AHEAD * run.accumulation * run.batch_size * sample
    parts["reader and order of an epoch"] = ranks * PER_SAMPLE * run.images * run.rows_per_picture
    return parts
