"""What the train stage says of its weights, for tests that do not train."""

import json
from pathlib import Path

import numpy as np

from pipeline.training import key
from pipeline.training.stored import Reach
from tests.training import training_samples


def run(best_step: int | None = None, **changes) -> dict:
    """As key.facts gives it of 6 steps, with params.yaml's settings but for `changes` ("train.seed": 3)."""
    params = training_samples.params(**changes)
    train = params.train.model_dump(exclude=key._SPLIT_KEYS | key._STATE_KEYS) | {"global_batch": 8}
    description = {
        "model": "tiny",
        "diffusion": params.diffusion.model_dump(),
        "train": train,
        "device": {"target": "CPU"},
        "versions": {"mindspore": "2.10.0", "numpy": "1.26.4"},
        "code": "c" * 32,
        "inputs": {name: name[0] * 32 for name in ("unet", "latents", "text", "samples")},
    }
    training = key.Training(description, params.train.model_dump(include=key._SPLIT_KEYS) | {"ranks": 1}, Reach(6, 6))
    return key.facts(training, 6, best_step, np.zeros((9, 16), np.uint8), 8)


def write(folder: Path, **changes) -> None:
    (folder / key.FACTS).write_text(json.dumps(run(**changes)), encoding="utf-8")
