"""Of the golden pictures with adapters, samplers and objectives: the model, its adapters and what is drawn."""

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
# What the model makes of other settings than SAMPLE's, of epsilon and Euler: the tiny base predicts epsilon, so that what it
# draws as v or as a flow is no picture, and still the same in any program.
OWN = {"prompt": "a blue star", "negative_prompt": "a white outline", "seed": 9, "steps": 9, "guidance_scale": 4.5}
SETTINGS = {
    "own": {"sample.sampler": "dpmpp_2m_karras", "sample.prompts": [OWN, OWN | {"negative_prompt": ""}]},
    "v": {"diffusion.prediction": "v", "diffusion.zero_terminal_snr": True, "sample.guidance_rescale": 0.7},
    "flow": {"diffusion.prediction": "flow", "diffusion.flow_shift": 2.5, "sample.guidance_rescale": 0.3},
} | {sampler: {"sample.sampler": sampler} for sampler in ("euler_ancestral", "dpmpp_2m", "ddim", "unipc")}


def of(changes: dict) -> dict:
    """All of a case, by the names of params.yaml."""
    shared = {f"sample.{key}": value for key, value in SAMPLE.items()}
    shared |= {"sample.sampler": "euler", "sample.guidance_rescale": 0.0, "sample.precision": "float32"}
    shared |= {"diffusion.prediction": "epsilon", "diffusion.zero_terminal_snr": False, "diffusion.flow_shift": 1.0}
    return shared | changes


def write(path: Path, kind: str) -> None:
    bases = {name: value.astype(np.float32) for name, value in safetensors.numpy.load_file(BASE).items()}
    loaders_rule.write(path, kind, TINY, bases, SIZES[kind])
