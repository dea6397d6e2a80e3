"""Of the golden pictures with adapters: the model, its adapters and what is drawn."""

from pathlib import Path

import numpy as np
import safetensors.numpy

from pipeline.models.config import TINY
from tests.golden import loaders_rule

BASE = Path(__file__).resolve().parents[2] / "data/base/tiny_sdxl.safetensors"
TOKENIZER = BASE.parents[1] / "tokenizer"
# of the parts, so that each changes the pictures and leaves pictures
SIZES = {"lora": 0.4, "dora": 0.4, "loha": 0.9, "lokr": 0.5}
SAMPLE = {
    "prompts": ["a red circle on a blue background", "a small green triangle, yellow background"],
    "height": 64, "width": 64, "steps": 6, "guidance_scale": 3.0, "seed": 5,
}  # fmt: skip


def write(path: Path, kind: str) -> None:
    bases = {name: value.astype(np.float32) for name, value in safetensors.numpy.load_file(BASE).items()}
    loaders_rule.write(path, kind, TINY, bases, SIZES[kind])
