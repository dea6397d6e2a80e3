"""Fine-tune the UNet on the caches; the VAE and the text encoders are not even loaded.

outs/train/weights/unet.ckpt, unet_ema.ckpt with train.ema, and the curves in outs/train/live/. A killed run goes on by
itself from its last state in the store. A run waits while another process trains the same, and takes the outs of a
training that is done already. With device.workers or device.nodes above 1 the stage starts its ranks under msrun; it
may as well be started by msrun or mpirun, or with a rank table."""

import os
from pathlib import Path

from pipeline import hardware
from pipeline.params import Params
from pipeline.stage import StageError, run
from pipeline.training import finished, key, launch
from pipeline.training.data import Paths, count_steps, open_data

PATHS = Paths(
    unet=Path("outs/convert/unet.ckpt"),
    latents=Path("outs/latents"),
    text=Path("outs/text"),
    samples=Path("outs/index/samples.parquet"),
    vae=Path("outs/convert/vae.ckpt"),
    clip_l=Path("outs/convert/clip_l.ckpt"),
    clip_g=Path("outs/convert/clip_g.ckpt"),
    out=Path("outs/train"),
)


def main(params: Params) -> None:
    hardware.check(params, "device", "train")
    data = open_data(PATHS, made_with(params), params.train)
    if params.train.sample_interval and params.device.node_rank == 0 and not PATHS.vae.exists():
        raise StageError(f"train.sample_interval is above 0 and {PATHS.vae} does not exist; run `dvc repro convert`")
    ranks = launch.world_size(params.device)
    if not launch.inside():
        count_steps(data, params.train, ranks)
    d = params.device
    training = key.training(
        PATHS,
        params.model.config,
        launch.kernels(d),
        params.diffusion,
        params.train,
        ranks,
    )
    with launch.turn(training.name, d):
        if finished.take(training, PATHS.out) if launch.first(d) else finished.there(training):
            return
        if ranks > 1 and not launch.inside():
            data.reader.close()
            launch.start(d, [__file__], Path("outs/train-logs"))
            return

        # Training convolves by products on a CPU, and they want AVX-512 (pipeline/models/cpu/convolution.py).
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "DEFAULT")
        if launch.target(d) == "Ascend":
            os.environ.setdefault("MS_DEV_RUNTIME_CONF", "backend_compile_cache:False")  # see training/compiled.py
        # Only now: importing MindSpore takes seconds.
        from pipeline.training import build
        from pipeline.training.run import fine_tune

        device = build.device(d)
        fine_tune(training, data, PATHS, params.model.config, device, params.diffusion, params.train)


def made_with(params: Params) -> dict[str, dict]:
    """What the caches' rows must say that they were made with, beside the encoders themselves. DVC sees to that; a
    train stage that is started by hand might find those of other settings."""
    latents = {
        "config": params.model.config,
        "precision": params.cache_latents.precision,
        "store": params.cache_latents.store,
        "crop": params.cache_latents.crop,
        "interpolation": params.cache_latents.interpolation,
        "background": params.cache_latents.background,
    }
    text = {
        "config": params.model.config,
        "precision": params.cache_text.precision,
        "chunks": params.cache_text.chunks,
    }
    return {"latents": latents, "text": text}


if __name__ == "__main__":
    run(main)
