"""Fine-tune the UNet on the caches; the VAE and the text encoders are not even loaded.

outs/train/weights/unet.ckpt, unet_ema.ckpt with train.ema, and the curves in outs/train/live/. A killed run goes on by
itself from its last state in the store. With device.workers or device.nodes above 1 the stage starts its ranks under
msrun; it may as well be started by msrun or mpirun, or with a rank table."""

import logging
import os
import sys
from pathlib import Path

from pipeline.params import Params
from pipeline.stage import run
from pipeline.training import launch


def main(params: Params) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    launch.check(params.device, params.train)
    if params.device.workers * params.device.nodes > 1 and not launch.inside():
        launch.start(params.device, [__file__], Path("outs/train-logs"))
        return

    # Training convolves by products on a CPU, and they want AVX-512 (pipeline/models/convolution.py).
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    # Only now: importing MindSpore takes seconds.
    from pipeline.device import setup
    from pipeline.training.run import Paths, fine_tune

    d = params.device
    device = setup(
        d.target, launch.inside(), d.attention, d.sink_size, d.jit_level, d.max_device_memory, d.compile_cache
    )  # fmt: skip
    paths = Paths(
        unet=Path("outs/convert/unet.ckpt"),
        latents=Path("outs/latents"),
        text=Path("outs/text"),
        captions=Path("outs/index/captions.parquet"),
        vae=Path("outs/convert/vae.ckpt"),
        out=Path("outs/train"),
    )
    fine_tune(paths, params.model.config, device, params.diffusion, params.train)


if __name__ == "__main__":
    run(main)
