"""sdxl-base at 1024x1024 on this CPU, with synthetic weights: time and peak memory.

    python -m benchmarks.full_size caches FOLDER   the stages cache_latents (one picture) and cache_text (7 captions and
                                                   the empty one) in a project of their own
    python -m benchmarks.full_size unet FOLDER     the UNet takes two guided Euler steps at 128x128 latents

FOLDER keeps the synthetic float16 checkpoints (encoders 1.8 GB, UNet 5.1 GB) for a second run. Weights and computation
are float32. Each command is to run alone: the peak is the process's own."""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pipeline.device

import numpy as np
import yaml
from PIL import Image

from pipeline.diffusion import schedule
from pipeline.models.config import SDXL_BASE
from pipeline.sampling import draw, euler, unet
from pipeline.stage import PROJECT
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


def tokenizer(folder: Path) -> Path:
    """The repository's, filled up to SDXL's number of tokens with such as occur in no text."""
    folder.mkdir(exist_ok=True)
    shutil.copy(PROJECT / "data/tokenizer/merges.txt", folder)
    known = json.loads((PROJECT / "data/tokenizer/vocab.json").read_text())
    tokens = sorted(known, key=known.get)
    fill = [f"<fill {number}>" for number in range(SDXL_BASE.clip_l.vocab_size - len(tokens))]
    tokens = tokens[:-2] + fill + tokens[-2:]  # begin and end of a text are the last
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    return folder


def caches(folder: Path) -> None:
    for part in ("vae", "clip_l", "clip_g"):
        checkpoint(folder / "outs/convert", part)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(images / "picture.png")
    colours = ("red", "green", "blue", "white", "black", "grey", "pink")
    captions = [f"a {colour} square among others" for colour in colours]
    (images / "metadata.jsonl").write_text(json.dumps({"file_name": "picture.png", "text": captions}) + "\n")
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["data"]["images"] = str(images)
    params["model"] |= {"config": "sdxl-base", "tokenizer": str(tokenizer(folder / "tokenizer"))}
    params["index"] |= {"resolution": SIDE, "bucket_step": 64}
    params["cache_latents"]["batch_size"], params["cache_text"]["batch_size"] = 1, 8
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.rmtree(folder / ".store", ignore_errors=True)
    for stage in ("index", "cache_latents", "cache_text"):
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "PIPELINE_STORE": str(folder / ".store")}
        begin = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment)
        _, code, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        print(f"{stage}: exit code {code}, {seconds:.0f} s, peak {usage.ru_maxrss * 1024 / 1e9:.1f} GB", flush=True)


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
    parser.add_argument("part", choices=["caches", "unet"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.part == "caches":
        caches(options.folder.resolve())
    else:
        sample(checkpoint(options.folder, "unet"), pipeline.device.setup("CPU"))
