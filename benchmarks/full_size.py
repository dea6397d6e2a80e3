"""sdxl-base at 1024x1024 on this CPU, with synthetic weights: time and peak memory.

    python -m benchmarks.full_size vae FOLDER      the VAE encodes one picture
    python -m benchmarks.full_size unet FOLDER     the UNet takes two guided Euler steps at 128x128 latents

FOLDER keeps the synthetic float16 checkpoints (vae.ckpt 0.2 GB, unet.ckpt 5.1 GB) for a second run. Weights and
computation are float32. Each command is to run alone: the peak is the process's own (VmHWM)."""

import argparse
import math
import re
import time
from pathlib import Path

import numpy as np

import pipeline.device
from pipeline.diffusion import schedule
from pipeline.models.config import SDXL_BASE
from pipeline.models.encode import vae_encoder
from pipeline.sampling import draw, euler, unet
from pipeline.weights import ckpt, layout, names

SIDE, STEPS, GUIDANCE = 1024, 2, 5.0


def checkpoint(folder: Path, part: str) -> Path:
    """A float16 checkpoint of this component, sized so that activations stay near 1; made when it is not there."""
    path = folder / f"{part}.ckpt"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    unfinished = path.with_suffix(".part")
    with ckpt.Writer(unfinished) as writer:
        for name, shape in layout.shapes(SDXL_BASE).items():
            if not name.startswith(names.PREFIX[part]):
                continue
            mindspore_name = names.to_mindspore(name)
            writer.begin(mindspore_name, "float16", shape)
            left = math.prod(shape)
            scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.02
            shift = 1.0 if mindspore_name.endswith(".gamma") else 0.0
            while left:
                count = min(left, len(noise))
                writer.write((noise[:count] * scale + shift).astype(np.float16).tobytes())
                left -= count
    unfinished.rename(path)
    return path


def peak_gigabytes() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


def report(what: str, begin: float) -> None:
    print(f"{what}: {time.perf_counter() - begin:.0f} s, peak {peak_gigabytes():.1f} GB", flush=True)


def encode(path: Path, device: pipeline.device.Device) -> None:
    begin = time.perf_counter()
    function = vae_encoder(SDXL_BASE, path, device, "float32")
    report("weights loaded", begin)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, SIDE, SIDE)).astype(np.float32)
    for call in ("first picture, with the compilation", "second picture"):
        begin = time.perf_counter()
        moments = function(pixels)
        report(call, begin)
    assert moments.shape == (1, 8, SIDE // 8, SIDE // 8) and np.isfinite(moments).all()


def sample(path: Path, device: pipeline.device.Device) -> None:
    begin = time.perf_counter()
    load, predict = unet.make(SDXL_BASE.unet, device, "float32")
    load(path)
    report("weights loaded", begin)
    generator = np.random.default_rng(0)
    context = generator.standard_normal((1, 77, SDXL_BASE.unet.context_dim), np.float32)
    pooled = generator.standard_normal((1, SDXL_BASE.clip_g.projection_dim), np.float32)
    timesteps, sigmas = euler.steps(schedule.alphas_cumprod(False), STEPS, False)
    x = euler.start(draw.noise(0, 1, (4, SIDE // 8, SIDE // 8)), sigmas, False)
    denoise = draw.guided(predict, context, pooled, SIDE, SIDE, GUIDANCE, "epsilon")
    begin = time.perf_counter()
    latents = euler.sample(denoise, x, timesteps, sigmas, lambda: report("step done, since the start", begin))
    assert latents.shape == x.shape and np.isfinite(latents).all()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["vae", "unet"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    weights = checkpoint(options.folder, options.part)
    (encode if options.part == "vae" else sample)(weights, pipeline.device.setup("CPU"))
