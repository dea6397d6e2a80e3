"""Base weights (a Stability single file or a diffusers folder) -> one MindSpore checkpoint per component.

outs/convert/{unet,clip_l,clip_g,vae}.ckpt"""

from pathlib import Path

from pipeline.models.config import CONFIGS
from pipeline.params import Params
from pipeline.stage import run
from pipeline.weights.convert import convert


def main(params: Params) -> None:
    convert(Path(params.model.base), Path(params.model.vae), CONFIGS[params.model.config], Path("outs/convert"))


if __name__ == "__main__":
    run(main)
