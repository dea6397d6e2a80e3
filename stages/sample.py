"""Draw the prompts with the base UNet and with the fine-tuned one, from the same noise.

outs/convert/unet.ckpt and outs/merge/merged.ckpt → outs/sample: <number>_base.png, <number>_tuned.png, and grid.png,
the base model above and the fine-tuned one below. With sample.saved_steps what was saved in between is drawn as well.
Each PNG says how it was drawn (sampling/infotext.py). The VAE is that of the merged checkpoint, and so are the text
encoders where none is trained; else each model has its own. With device.workers or device.cluster several draw."""

import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline import hardware, progress, store
from pipeline.cache.building.tokens import check_vocabulary
from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.sampling import grid
from pipeline.sampling.infotext import infotext, png_info
from pipeline.sampling.paint import Model, Unit, paint
from pipeline.sampling.picture import batches, pictures
from pipeline.sampling.saved import saved
from pipeline.stage import run
from pipeline.weights import provenance
from pipeline.weights.chosen import trained_parts
from pipeline.weights.starts import starts

CONVERTED = Path("outs/convert")
BASE = CONVERTED / "unet.ckpt"
MERGED = Path("outs/merge/merged.ckpt")
PUBLISHED = Path("outs/merge/merged.safetensors")  # the same weights, as tools know them by their hash
SOURCES = CONVERTED / provenance.SOURCES
TRAINED = Path("outs/train/weights")
OUT = "outs/sample"


class Drawn(NamedTuple):
    """A model that is drawn with."""

    model: Model
    label: str  # in the grid
    title: str  # in the pictures' text, with
    sha256: str | None  # of the file that tools know it by


def main(params: Params) -> None:
    p, config, diffusion = params.sample, CONFIGS[params.model.config], params.diffusion
    if params.device.cluster is None:
        hardware.check(params, "sample")
    for path in (BASE, MERGED, PUBLISHED):
        os.stat(path)
    check_vocabulary(params.model.tokenizer, config.clip_l.vocab_size, params.model.config)
    models, wanted = _models(params), pictures(p)
    together = batches(wanted, p.batch_size)
    units = [Unit(drawn.model, chosen, count) for drawn in models for chosen, count in together]
    steps = sum(wanted[unit.chosen[0]].steps for unit in units)
    with progress.Bar(steps, "step", f"draws {len(wanted)} prompts with {len(models)} models") as bar:
        painted = paint(params, units, bar.update)

    shift = diffusion.flow_shift if diffusion.prediction == "flow" else None
    rows = {}
    with store.out(OUT) as folder:
        folder.mkdir()
        for model, label, title, sha256 in models:
            rows[label] = [painted[model.name, number] for number in range(len(wanted))]
            for number, (one, picture) in enumerate(zip(wanted, rows[label], strict=True)):
                text = infotext(
                    one,
                    p.sampler,
                    p.guidance_rescale,
                    diffusion.zero_terminal_snr,
                    title,
                    sha256,
                    shift,
                    params.cache_text.emphasis,
                )
                Image.fromarray(picture).save(folder / f"{number:02d}_{model.name}.png", pnginfo=png_info(text))
        grid.grid(rows, [one.prompt for one in wanted]).save(folder / "grid.png")


def _models(params: Params) -> list[Drawn]:
    """Base, steps that were saved in between, and what was made of it. Raises StageError."""
    origin, trained = provenance.read(SOURCES, "convert"), params.train.text_encoders
    adapts, start = params.train.adapter != "none", Path(params.train.init_from)
    begun = starts(start, CONVERTED, trained) if adapts else None

    def model(name: str, unet: Path, base: Path | None = None) -> Model:
        return Model(name, unet, base, encoders(name, unet, trained, begun), MERGED)

    base_name, base_sha = provenance.base_title(origin), provenance.base_sha256(origin)
    return [
        Drawn(model("base", BASE), "base", base_name, base_sha),
        *(
            Drawn(model(file.stem, file, start if adapts else None), f"step {step}", file.stem, None)
            for step, file in saved(TRAINED, params.sample.saved_steps, adapts)
        ),
        Drawn(model("tuned", MERGED), "fine-tuned", PUBLISHED.stem, provenance.sha256(PUBLISHED)),
    ]


def encoders(name: str, weights: Path, trained: str, begun: dict[str, Path] | None) -> tuple[Path, Path, Path | None]:
    """The files of a model's text encoders, CLIP-L's and bigG's, and of an adapter that is to be merged into them. Where
    none is trained, all models have the same. begun: what adapters were trained on, where they were."""
    if trained == "none" or name == "tuned":
        return MERGED, MERGED, None
    base = {part: CONVERTED / f"{part}.ckpt" for part in ("clip_l", "clip_g")}
    if name == "base":
        return *base.values(), None
    if begun is not None:
        return begun["clip_l"], begun["clip_g"], weights
    return *(base | dict.fromkeys(trained_parts(trained), weights)).values(), None


if __name__ == "__main__":
    run(main)
