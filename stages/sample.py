"""Draw the prompts with the base UNet and with the fine-tuned one, from the same noise.

outs/convert/unet.ckpt and outs/merge/merged.ckpt → outs/sample: <number>_base.png, <number>_tuned.png, and grid.png,
the base model above and the fine-tuned one below. VAE and text encoders are those of the merged checkpoint."""

import os

from pipeline import hardware, progress, store
from pipeline.cache.tokens import Tokenizer, check_vocabulary
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import StageError, run

BASE = "outs/convert/unet.ckpt"
MERGED = "outs/merge/merged.ckpt"
OUT = "outs/sample"


def main(params: Params) -> None:
    p, config, diffusion = params.sample, CONFIGS[params.model.config], params.diffusion
    hardware.check(params, "sample")
    for path in (BASE, MERGED):
        os.stat(path)
    check_vocabulary(params.model.tokenizer, config.clip_l.vocab_size, params.model.config)

    # Only now: importing MindSpore takes seconds.
    import numpy as np
    from PIL import Image

    from pipeline.device import setup
    from pipeline.models.encode import text_encoder, vae_decoder
    from pipeline.sampling import draw, euler, unet
    from pipeline.sampling.grid import grid
    from pipeline.sampling.prompts import encode

    device = setup(params.device.target)
    encoder = text_encoder(config, MERGED, MERGED, device, "float32")
    context, pooled = encode(p.prompts, Tokenizer(params.model.tokenizer), encoder, params.cache_text.chunks)
    del encoder  # its memory is the UNet's

    shape = (config.unet.latent_channels, p.height // config.vae.factor, p.width // config.vae.factor)
    x, timesteps, sigmas = draw.begin(
        draw.noise(p.seed, len(p.prompts), shape), p.steps, diffusion.prediction, diffusion.zero_terminal_snr,
        diffusion.flow_shift,
    )  # fmt: skip
    scaling_factor = diffusion.scaling_factor or config.vae.scaling_factor

    load, predict = unet.make(config.unet, device, p.precision)
    batches = draw.batches(len(p.prompts), p.batch_size)
    latents = {}
    for name, weights in (("base", BASE), ("tuned", MERGED)):
        load(weights)
        with progress.Bar(len(batches) * p.steps, "step", f"draws with the {name} model") as bar:
            parts = []
            for chosen in batches:
                denoise = draw.guided(
                    predict, context[chosen], pooled[chosen], p.height, p.width, p.guidance_scale, diffusion.prediction
                )
                parts.append(euler.sample(denoise, x[chosen], timesteps, sigmas, bar.update))
        latents[name] = np.concatenate(parts)[: len(p.prompts)] / scaling_factor + diffusion.shift_factor
        if not np.isfinite(latents[name]).all():
            raise StageError(
                f"the latents drawn with {weights} are not finite; with sample.precision: {p.precision} try float32 or "
                "bfloat16, else its weights are broken"
            )
    del load, predict

    decode = vae_decoder(config, MERGED, device, "float32")
    rows = {name: [draw.to_picture(decode(one[None])[0]) for one in values] for name, values in latents.items()}
    with store.out(OUT) as folder:
        folder.mkdir()
        for name, pictures in rows.items():
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(folder / f"{number:02d}_{name}.png")
        grid({"base": rows["base"], "fine-tuned": rows["tuned"]}, p.prompts).save(folder / "grid.png")


if __name__ == "__main__":
    run(main)
