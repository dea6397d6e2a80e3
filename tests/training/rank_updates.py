"""Update parameters by every optimizer, as one of the ranks that msrun started, and write what they become.

python -m tests.training.rank_updates FOLDER     # FOLDER/0.npz, FOLDER/1.npz"""

import sys
from pathlib import Path

import pipeline.device

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pipeline.training.optimizers.adafactor import Adafactor
from pipeline.training.optimizers.adamw8bit import AdamW8bit
from pipeline.training.optimizers.lion import Lion
from pipeline.training.optimizers.prodigy import Prodigy
from pipeline.training.step import Settings, Update
from tests.golden import rule

SHAPES = (5,), (70, 61)  # whose moments adamw8bit keeps in float32, and in 8 bits
STEPS = 40
COMMON = (False, True), 0.1  # which of them decay, and how much
RATES = {"adamw8bit": 1e-2, "lion": 1e-2, "prodigy": 1.0, "adafactor": 1e-2}
MAKE = {
    "adamw8bit": lambda p: AdamW8bit(p, *COMMON, 0.9, 0.99, 1e-6),
    "lion": lambda p: Lion(p, *COMMON, 0.9, 0.99),
    "prodigy": lambda p: Prodigy(p, *COMMON, 0.9, 0.99, 1e-6),
    "adafactor": lambda p: Adafactor(p, *COMMON),
}


class Updates(nn.Cell):
    """One of each optimizer, in one graph: compilation is what takes time."""

    def __init__(self, updates: list[Update]):
        super().__init__(auto_prefix=False)
        self.updates = nn.CellList(updates)

    def construct(self, loss, rates, *gradients):
        done, count = (), len(gradients) // len(self.updates)
        for number, update in enumerate(self.updates):
            own = gradients[number * count : (number + 1) * count]
            done += (update(ops.depend(loss, done), own, rates[number]),)
        return done


def values() -> list[np.ndarray]:
    """That all begin with."""
    return [rule.normal(f"p {shape}", shape) for shape in SHAPES]


def gradients(step: int, parts: range, now: list[np.ndarray]) -> list[Tensor]:
    """Of half the squared distance to a goal, the mean over `parts` of the batch that differ in their noise."""
    found = []
    for value, shape in zip(now, SHAPES, strict=True):
        noise = np.mean([rule.normal(f"g {part} {step} {shape}", shape) for part in parts], 0)
        found.append(Tensor((value - rule.normal(f"goal {shape}", shape) + noise).astype(np.float32)))
    return found


def run(rank: int, ranks: int) -> dict[str, np.ndarray]:
    """The parameters, and Prodigy's d, after STEPS of a batch of two parts, of which each rank has its share."""
    parameters = {name: [Parameter(Tensor(v), name=f"{name} {n}") for n, v in enumerate(values())] for name in MAKE}
    settings = Settings(max_grad_norm=1e3, rank=rank, ranks=ranks)
    updates = {name: Update(make(parameters[name]), None, settings) for name, make in MAKE.items()}
    cell = Updates(list(updates.values()))
    rates = Tensor(np.array([RATES[name] for name in updates], np.float32))
    for step in range(STEPS):
        found = []
        for own in parameters.values():
            found += gradients(step, range(rank, 2, ranks), [p.asnumpy() for p in own])
        cell(Tensor(1.0, ms.float32), rates, *found)
    ended = {f"{name} {n}": p.asnumpy() for name, own in parameters.items() for n, p in enumerate(own)}
    return ended | {"d": updates["prodigy"].d.asnumpy()}


if __name__ == "__main__":
    device = pipeline.device.setup("CPU", distributed=True)
    np.savez(Path(sys.argv[1]) / f"{device.rank}.npz", **run(device.rank, device.world_size))
