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
    from pipeline.sampling import draw, unet
    from pipeline.sampling.grid import grid
    from pipeline.sampling.picture import batches, pictures
    from pipeline.sampling.prompts import encode

    device = setup(params.device.target)
    wanted = pictures(p)
    encoder = text_encoder(config, MERGED, MERGED, device, "float32")
    prompts, negative_prompts = [one.prompt for one in wanted], [one.negative_prompt for one in wanted]
    tokenizer = Tokenizer(params.model.tokenizer)
    text, negative = encode(prompts, negative_prompts, tokenizer, encoder, params.cache_text.chunks)
    del encoder  # its memory is the UNet's

    scaling_factor = diffusion.scaling_factor or config.vae.scaling_factor

    load, predict = unet.make(config.unet, device, p.precision)
    together = batches(wanted, p.batch_size)
    latents = {}
    for name, weights in (("base", BASE), ("tuned", MERGED)):
        load(weights)
        latents[name] = {}
        steps = sum(wanted[chosen[0]].steps for chosen, _ in together)
        with progress.Bar(steps, "step", f"draws with the {name} model") as bar:
            for chosen, count in together:
                drawn = draw.latents(
                    predict,
                    [wanted[index] for index in chosen],
                    (text[0][chosen], text[1][chosen]),
                    (negative[0][chosen], negative[1][chosen]),
                    config,
                    p.sampler,
                    diffusion,
                    p.guidance_rescale,
                    bar.update,
                )
                if not np.isfinite(drawn).all():
                    raise StageError(
                        f"the latents drawn with {weights} are not finite; with sample.precision: {p.precision} try "
                        "float32 or bfloat16, else its weights are broken"
                    )
                latents[name] |= zip(chosen[:count], drawn / scaling_factor + diffusion.shift_factor, strict=False)
    del load, predict

    decode = vae_decoder(config, MERGED, device, "float32")
    rows = {
        name: [draw.to_picture(decode(values[number][None])[0]) for number in range(len(wanted))]
        for name, values in latents.items()
    }
    with store.out(OUT) as folder:
        folder.mkdir()
        for name, drawn in rows.items():
            for number, picture in enumerate(drawn):
                Image.fromarray(picture).save(folder / f"{number:02d}_{name}.png")
        grid({"base": rows["base"], "fine-tuned": rows["tuned"]}, prompts).save(folder / "grid.png")


if __name__ == "__main__":
    run(main)
