"""Does cache_latents keep the encoder busy? Wall time of the whole build against the encoder's calls alone.

    python -m benchmarks.encode_overlap FOLDER [--pictures 48] [--channels 64]

Photo-sized JPEGs are decoded, resized to 256 x 256 and encoded by SDXL's VAE at half its width (random weights), on
this machine's device. The graph is compiled before the clock runs; the same batches are then encoded alone, without
decoding, checking or writing, and by the build, twice each in turn; the better of each counts."""

import argparse
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import device
from pipeline.cache.building import engine
from pipeline.cache.building.latents import make_job
from pipeline.cache.format.preparation import Preparation
from pipeline.data.index import index
from pipeline.data.sources import open_source
from pipeline.models.config import SDXL_BASE, VAEConfig
from pipeline.models.encode import vae_encoder
from pipeline.weights import ckpt, layout
from pipeline.weights.names import PREFIX, to_mindspore
from tests.weights.synthetic import values

SIDE, BATCH = 256, 4
PREPARATION = Preparation("moments", "center", 1, False, "lanczos", (255, 255, 255))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is made, and removed at the end")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--channels", type=int, default=64, help="the VAE's width; SDXL's is 128")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        measure(args.folder, args.pictures, args.channels)
    finally:
        shutil.rmtree(args.folder)


def measure(folder: Path, pictures: int, channels: int) -> None:
    os.environ["PIPELINE_STORE"] = str(folder / "store")
    config = replace(SDXL_BASE, vae=VAEConfig(channels=channels, channel_mult=SDXL_BASE.vae.channel_mult))
    write_vae(folder / "vae.ckpt", config)
    write_pictures(folder / "images", pictures)
    source = open_source(str(folder / "images"))
    index(source, folder / "index", [(SIDE, SIDE)], 32, None, 10**9, 0.0, 1)
    encode = vae_encoder(config, folder / "vae.ckpt", device.setup(), "float32")
    encode(np.zeros((BATCH, 3, SIDE, SIDE), np.float32))
    alone, build = [], []
    for turn in range(2):
        job = make_job(folder / "index/images.parquet", source, {"turn": turn}, PREPARATION, lambda: encode, BATCH, 2)
        inputs = np.stack([job.prepare(n)[0] for n in range(BATCH)])
        started = time.perf_counter()
        for _ in range(-(-pictures // BATCH)):
            encode(inputs)
        alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        report = engine.build(job, folder / "out")
        build.append(time.perf_counter() - started)
        share = report.seconds_encoding / build[-1]
        print(
            f"encoder alone {alone[-1]:.1f} s, build {build[-1]:.1f} s, {share:.1%} of it inside the encoder",
            flush=True,
        )
    started = time.perf_counter()
    for number in range(pictures):
        job.prepare(number)
    print(f"decoding and resizing alone, one thread: {time.perf_counter() - started:.1f} s")
    print(f"{pictures} pictures: the build takes {min(build) / min(alone):.3f} x the encoder alone (wanted 1.10)")


def write_vae(path: Path, config) -> None:
    with ckpt.Writer(path) as writer:
        for name, shape in layout.shapes(config).items():
            if name.startswith(PREFIX["vae"]):
                writer.add(to_mindspore(name), values(name, shape))


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (100, 150, 3), np.uint8)
        Image.fromarray(noise).resize((1500, 1000), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


if __name__ == "__main__":
    main()
