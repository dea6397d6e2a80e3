"""Base weights (a single file or a diffusers folder), with LoRAs merged into them -> one MindSpore checkpoint per component.

outs/convert/{unet,clip_l,clip_g,vae}.ckpt"""

from pathlib import Path

from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import run
from pipeline.weights import marks
from pipeline.weights.convert import convert


def main(params: Params) -> None:
    base = Path(params.model.base)
    marks.check(base, params.diffusion.prediction, params.diffusion.zero_terminal_snr)
    loras = [(Path(params.model.lora_folder) / lora.path, lora.weight) for lora in params.model.loras]
    convert(base, Path(params.model.vae), CONFIGS[params.model.config], Path("outs/convert"), loras)


if __name__ == "__main__":
    run(main)
