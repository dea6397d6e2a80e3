"""The trained UNet with the text encoders that were trained with it, or the base's with the trained adapters, and the
base's other components -> one checkpoint for MindONE and one for ComfyUI and diffusers.

outs/merge/merged.ckpt, outs/merge/merged.safetensors with what it comes from in its metadata, outs/merge/README.md"""

from pathlib import Path

from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import run
from pipeline.weights import card, chosen, marks, provenance
from pipeline.weights.chosen import trained_parts
from pipeline.weights.merge import merge
from pipeline.weights.starts import starts

TRAINED = Path("outs/train/weights")
CONVERTED = Path("outs/convert")
SOURCES = CONVERTED / provenance.SOURCES


def main(params: Params) -> None:
    adapts = params.train.adapter != "none"
    trained_file = chosen.find(TRAINED, params.merge.weights, adapts)
    components = starts(Path(params.train.init_from), CONVERTED, params.train.text_encoders)
    components |= {"vae": CONVERTED / "vae.ckpt"}
    if not adapts:
        components |= dict.fromkeys(["unet", *trained_parts(params.train.text_encoders)], trained_file)
    trained_with = marks.written(params.diffusion.prediction, params.diffusion.zero_terminal_snr)
    trained, origin = provenance.read(TRAINED / provenance.RUN, "train"), provenance.read(SOURCES, "convert")
    written = params.index.resolution, params.merge.weights, params.merge.dtype
    metadata = provenance.metadata(trained, origin, params.model.config, *written)
    merge(
        components,
        CONFIGS[params.model.config],
        params.merge.dtype,
        Path("outs/merge"),
        trained_with,
        metadata,
        card.render(trained, origin, *written),
        trained_file if adapts else None,
    )


if __name__ == "__main__":
    run(main)
