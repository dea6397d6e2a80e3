"""A training step's memory on this CPU against the planner's: python -m benchmarks.memory [CASE ...]

Each case is a process of its own, which compiles the graph (minutes), gives free memory back to the system, and takes
three steps; measured is what these add to the process at its highest. MindSpore's own statistics are 0 on a CPU. What
the first kernels of a process cost (code, threads) is there before, by two small layers that run forward and backward.
Weights and optimizer's state, which are exact (tests/planning/test_device_memory.py), are in neither number: they are written to
before, because the system gives a moment of zeros no memory until then. A CPU's forms are counted
(pipeline/planning/cpu.py), float32, attention by tiles."""

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.train_step import CHANNELS, CONTEXT, DEPTH, HEAD, MULT, VECTOR
from pipeline.models.config import CONFIGS, TINY, UNetConfig
from pipeline.planning import device
from pipeline.planning.run import Run

MIDDLE = replace(TINY, unet=UNetConfig(CHANNELS, MULT, DEPTH, CONTEXT, VECTOR, HEAD))
# (UNet, side of the latents, batch)
CASES = {
    "tiny": ("tiny", 8, 16),
    "tiny-large": ("tiny", 32, 8),
    "middle": ("33 M", 32, 4),
    "middle-large": ("33 M", 32, 8),
}


def planned(config: str, side: int, batch: int) -> device.Parts:
    """Without weights and optimizer's state."""
    run = Run(
        config=config, images=1, resolution=side * TINY.vae.factor, devices=1, batch_size=batch, accumulation=1,
        steps=1, epochs=None, precision="float32", weights_dtype="float32", optimizer="adamw", shard_optimizer=False,
        ema=False, gradient_checkpointing=False, attention="tiled", latent_channels=8, chunks=1, target="CPU",
    )  # fmt: skip
    parts = device.device_bytes(run)
    return {name: size for name, size in parts.items() if name not in ("weights", "optimizer's state")}


def _status(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def _warm_up() -> None:
    import mindspore as ms
    import numpy as np

    from pipeline.models.cpu import layers
    from pipeline.models.unet import ResBlock, TransformerBlock

    res, transformer = ResBlock(layers, 32, 32, 64, 8), TransformerBlock(layers, 32, 32, 32, "tiled", ms.float32)
    x, emb, rows = (ms.Tensor(np.ones(shape, np.float32)) for shape in ((1, 32, 8, 8), (1, 32), (1, 64, 32)))
    for cell, inputs in ((res, (x, emb)), (transformer, (rows, rows))):
        graph = ms.ops.GradOperation(get_by_list=True)(cell, list(cell.trainable_params()))
        graph(*inputs)[0].asnumpy()


def measure(config: str, side: int, batch: int) -> int:
    """Bytes that steps add to this process at their highest."""
    from benchmarks import kernels

    cell, inputs = kernels.train_step(config, side, batch, recompute=False)
    _warm_up()
    cell.compile(*inputs)
    for parameter in cell.get_parameters():
        values = parameter.asnumpy()  # no copy
        values += 0
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    for _ in range(3):
        cell(*inputs).asnumpy()
    return _status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of {', '.join(CASES)}; default: all")
    parser.add_argument("--child", choices=CASES, help="what this script starts itself with")
    options = parser.parse_args()
    if options.child:
        print("measured", json.dumps(measure(*CASES[options.child])), flush=True)
        return
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    for case in options.cases or CASES:
        config, side, batch = CASES[case]
        command = [sys.executable, "-m", "benchmarks.memory", "--child", case]
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}  # as stages/train.py has it
        out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = json.loads(re.search(r"^measured (.*)$", out, re.M)[1])
        parts = planned(config, side, batch)
        count, named = sum(parts.values()), ", ".join(f"{name} {size / 1e6:.1f}" for name, size in parts.items())
        print(
            f"{config:5} batch {batch:2} {side}x{side}: planned {count / 1e6:7.1f} MB, measured {found / 1e6:7.1f} MB: "
            f"{count / found:.2f} times ({named})",
            flush=True,
        )


CONFIGS["33 M"] = MIDDLE

if __name__ == "__main__":
    main()
