"""Draw the prompts with the base UNet and with the fine-tuned one, from the same noise.

outs/convert/unet.ckpt and outs/merge/merged.ckpt → outs/sample: <number>_base.png, <number>_tuned.png, and grid.png,
the base model above and the fine-tuned one below. With sample.saved_steps what was saved in between is drawn as well.
Each PNG says how it was drawn (sampling/infotext.py). The VAE is that of the merged checkpoint, and so are the text
encoders where none is trained; else each model has its own."""

import os
from pathlib import Path
from typing import NamedTuple

from pipeline import hardware, progress, store
from pipeline.cache.building.tokens import Tokenizer, check_vocabulary
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.sampling.saved import saved
from pipeline.stage import StageError, run
from pipeline.weights import provenance
from pipeline.weights.adapters.apply import adapted_texts, adapted_unet
from pipeline.weights.chosen import trained_parts
from pipeline.weights.starts import starts

BASE = "outs/convert/unet.ckpt"
MERGED = "outs/merge/merged.ckpt"
PUBLISHED = Path("outs/merge/merged.safetensors")  # the same weights, as tools know them by their hash
CONVERTED = Path("outs/convert")
SOURCES = CONVERTED / provenance.SOURCES
TRAINED = Path("outs/train/weights")
OUT = "outs/sample"


class Drawn(NamedTuple):
    """A model that is drawn with."""

    name: str  # in the pictures' files
    label: str  # in the grid
    weights: str | Path
    title: str  # in the pictures' text, with
    sha256: str | None  # of the file that tools know it by


def main(params: Params) -> None:
    p, config, diffusion = params.sample, CONFIGS[params.model.config], params.diffusion
    hardware.check(params, "sample")
    for path in (BASE, MERGED, PUBLISHED):
        os.stat(path)
    origin = provenance.read(SOURCES, "convert")
    adapts, start = params.train.adapter != "none", Path(params.train.init_from)
    between = saved(TRAINED, p.saved_steps, adapts)
    check_vocabulary(params.model.tokenizer, config.clip_l.vocab_size, params.model.config)

    # Only now: importing MindSpore takes seconds.
    from pipeline.device import setup

    import numpy as np
    from PIL import Image

    from pipeline.models.encode import text_encoder, vae_decoder
    from pipeline.sampling import draw, unet
    from pipeline.sampling.grid import grid
    from pipeline.sampling.infotext import infotext, png_info
    from pipeline.sampling.picture import batches, pictures
    from pipeline.sampling.prompts import encode

    device = setup(params.device.target)
    models = [
        Drawn("base", "base", BASE, provenance.base_title(origin), provenance.base_sha256(origin)),
        *(Drawn(file.stem, f"step {step}", file, file.stem, None) for step, file in between),
        Drawn("tuned", "fine-tuned", MERGED, PUBLISHED.stem, provenance.sha256(PUBLISHED)),
    ]
    wanted = pictures(p)
    prompts, negative_prompts = [one.prompt for one in wanted], [one.negative_prompt for one in wanted]
    tokenizer = Tokenizer(params.model.tokenizer)
    chunks, emphasis = params.cache_text.chunks, params.cache_text.emphasis
    texts = {}  # both texts by the files of the encoders
    begun = starts(start, CONVERTED, params.train.text_encoders)
    for model in models:
        files = _encoders(model, params.train.text_encoders, begun if adapts else None)
        if files not in texts:
            *checkpoints, adapter = files
            tensors = adapted_texts(*checkpoints, adapter, config) if adapter else None
            encoder = text_encoder(config, *checkpoints, device, "float32", tensors)
            texts[files] = encode(prompts, negative_prompts, tokenizer, encoder, chunks, emphasis, config.clip_l.width)
            del encoder  # its memory is the UNet's

    scaling_factor = diffusion.scaling_factor or config.vae.scaling_factor

    load, predict = unet.make(config.unet, device, p.precision)
    together = batches(wanted, p.batch_size)
    latents = {}
    for model in models:
        between_with_adapter = adapts and isinstance(model.weights, Path)
        load(model.weights, adapted_unet(start, model.weights, config) if between_with_adapter else None)
        latents[model.name] = {}
        text, negative = texts[_encoders(model, params.train.text_encoders, begun if adapts else None)]
        steps = sum(wanted[chosen[0]].steps for chosen, _ in together)
        with progress.Bar(steps, "step", f"draws with the {model.name} model") as bar:
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
                        f"the latents drawn with {model.weights} are not finite; with sample.precision: {p.precision} try "
                        "float32 or bfloat16, else its weights are broken"
                    )
                latents[model.name] |= zip(
                    chosen[:count], drawn / scaling_factor + diffusion.shift_factor, strict=False
                )
    del load, predict

    decode = vae_decoder(config, MERGED, device, "float32")
    shift = diffusion.flow_shift if diffusion.prediction == "flow" else None
    rows = {}
    with store.out(OUT) as folder:
        folder.mkdir()
        for model in models:
            rows[model.label] = []
            for number, one in enumerate(wanted):
                picture = draw.to_picture(decode(latents[model.name][number][None])[0])
                rows[model.label].append(picture)
                text = infotext(
                    one,
                    p.sampler,
                    p.guidance_rescale,
                    diffusion.zero_terminal_snr,
                    model.title,
                    model.sha256,
                    shift,
                    emphasis,
                )
                Image.fromarray(picture).save(folder / f"{number:02d}_{model.name}.png", pnginfo=png_info(text))
        grid(rows, prompts).save(folder / "grid.png")


def _encoders(model: Drawn, trained: str, begun: dict[str, Path] | None) -> tuple[Path, Path, Path | None]:
    """The files of a model's text encoders, CLIP-L's and bigG's, and of an adapter that is to be merged into them. Where
    none is trained, all models have the same. begun: what adapters were trained on, where they were."""
    if trained == "none" or model.name == "tuned":
        return Path(MERGED), Path(MERGED), None
    base = {part: CONVERTED / f"{part}.ckpt" for part in ("clip_l", "clip_g")}
    if model.name == "base":
        return *base.values(), None
    if begun is not None:
        return begun["clip_l"], begun["clip_g"], Path(model.weights)
    return *(base | dict.fromkeys(trained_parts(trained), Path(model.weights))).values(), None


if __name__ == "__main__":
    run(main)
