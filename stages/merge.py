"""The trained UNet and the base's other components -> one checkpoint for MindONE and one for ComfyUI and diffusers.

outs/merge/merged.ckpt, outs/merge/merged.safetensors"""

from pathlib import Path

from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import run
from pipeline.weights import chosen, marks
from pipeline.weights.merge import merge

TRAINED = Path("outs/train/weights")
CONVERTED = Path("outs/convert")


def main(params: Params) -> None:
    unet = chosen.find(TRAINED, params.merge.weights)
    components = {"unet": unet, **{part: CONVERTED / f"{part}.ckpt" for part in ("clip_l", "clip_g", "vae")}}
    trained_with = marks.written(params.diffusion.prediction, params.diffusion.zero_terminal_snr)
    merge(components, CONFIGS[params.model.config], params.merge.dtype, Path("outs/merge"), trained_with)


if __name__ == "__main__":
    run(main)
