"""The plan's bytes of a state against those of the file that a run writes, for all that changes them; on a small UNet."""

from pathlib import Path

import pipeline.device  # noqa: F401  (before MindSpore)

import numpy as np
import pytest

from pipeline.models import config
from pipeline.planning import disk
from pipeline.planning.run import from_params
from pipeline.training import build, state
from pipeline.training.data import Paths
from pipeline.training.stored import Reach
from pipeline.weights import ckpt
from tests.training.training_samples import CONFIG, params, write_unet

OPTIMIZERS = ("adamw", "adamw8bit", "lion", "prodigy", "adafactor")
COUNTERS = 4 * 4  # of the loss scale and of steps, beside the weights and the optimizer's state
FROZEN = {"train.groups": [{"pattern": "!*.attn?.*", "freeze": True}]}
FLOAT16 = {"train.weights_dtype": "float16", "train.precision": "float16"}
BFLOAT16 = {"train.weights_dtype": "bfloat16"}
LORA, *OTHERS = ({"train.adapter": kind} for kind in ("lora", "dora", "loha", "lokr"))
SETTINGS = {
    "float32": {}, "bfloat16": BFLOAT16, "float16": FLOAT16, "frozen": FROZEN,
    "frozen, EMA": FROZEN | BFLOAT16 | {"train.ema": True}, "lora": LORA,
    "lora, frozen, EMA": LORA | FROZEN | {"train.ema": True},
} | {own["train.adapter"]: own for own in OTHERS}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "unet.ckpt"
    write_unet(path)
    return path


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [(name, optimizer) for name in SETTINGS for optimizer in OPTIMIZERS if (name, optimizer) != ("float16", "prodigy")],
)  # which is refused
def test_a_states_file_has_the_bytes_of_the_plan(base, device, tmp_path, monkeypatch, name, optimizer):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path))
    monkeypatch.setitem(config.CONFIGS, "tiny", CONFIG)
    p = params(**{"train.optimizer": optimizer} | SETTINGS[name])
    paths = Paths(base, *[Path("none")] * 7)
    slots = build.trained(CONFIG, device, p.diffusion, p.train, paths).slots
    states = state.States("name", {}, Reach(9, 9))
    states.save(3, slots, {}, tmp_path / "live", 1, 0, lambda: None)
    states.wait()
    file = states.newest() / "state.ckpt"
    tensors = ckpt.read(file).values()
    planned = disk.state_bytes(from_params(p, 100))
    assert sum(np.asarray(tensor.array()).nbytes for tensor in tensors) == planned + COUNTERS
    assert 0 < file.stat().st_size - planned - COUNTERS < 130 * len(slots)  # names and shapes
