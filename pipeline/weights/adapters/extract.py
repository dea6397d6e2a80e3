"""The low-rank difference of two UNets as a LoRA (as kohya's extract_lora_from_models has it), layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import progress, store
from pipeline.models.config import SDXLConfig
from pipeline.stage import StageError
from pipeline.training.groups import matches, near_to
from pipeline.weights.adapters import file, kinds
from pipeline.weights.adapters.apply import base_unet
from pipeline.weights.names import PREFIX

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # of the table
TARGETS = ("*.proj_in.*", "*.transformer_blocks.*", "*.proj_out.*")  # as train.adapter_targets has them by default


@dataclass(frozen=True)
class Difference:
    """Of two UNets, in squares of its numbers."""

    whole: float  # of all weights
    left: dict[int, float]  # rank -> what LoRAs of it leave of the layers that have one
    adapted: float  # of these layers


def extract(
    base: Path, tuned: Path, config: SDXLConfig, rank: int, targets: Sequence[str], dtype: str, out: Path,
    metadata: Mapping[str, str],
) -> Difference:  # fmt: skip
    """Write to `out` the LoRA of `rank` that makes of `base` the nearest to `tuned` that there is (Eckart and Young
    1936), both files that train.init_from may be. Raises StageError, also where nothing differs."""
    before, after = base_unet(base, config), base_unet(tuned, config)
    names = [name.removeprefix(PREFIX["unet"]) for name, tensor in before.items() if len(tensor.shape) > 1]
    for pattern in targets:
        if not any(matches(pattern, name) for name in names):
            raise StageError(
                f"no weight of the UNet that can have a LoRA has a name like {pattern!r}; {near_to(pattern, names)}"
            )
    chosen = {PREFIX["unet"] + name for name in names if any(matches(pattern, name) for pattern in targets)}
    most = max(min(before[name].shape[0], before[name].count // before[name].shape[0]) for name in chosen)
    if rank > most:
        raise StageError(f"rank {rank} is more than any of these layers has; wanted {most} at most")
    parts: dict[str, np.ndarray] = {}
    ranks = {*(one for one in RANKS if one <= most), rank}
    left, whole, adapted = dict.fromkeys(sorted(ranks), 0.0), 0.0, 0.0
    with progress.Bar(len(before), "tensor", "extract") as bar:
        for name, tensor in before.items():
            change = file.values(after[name]).astype(np.float64) - file.values(tensor)
            square = float(np.square(change).sum())
            if not np.isfinite(square):
                wrong = tuned if np.isfinite(file.values(tensor)).all() else base
                raise StageError(f"{name} of {wrong} holds values that are no numbers; take another file")
            whole += square
            if square and name in chosen:
                adapted += square
                up, down, squares = low_rank(change.reshape(len(change), -1), rank)
                for count in left:
                    left[count] += max(square - float(squares[:count].sum()), 0.0)
                ones = (1,) * (change.ndim - 2)
                parts[f"{file.layer_name(name)}.{kinds.UP}"] = up.reshape(*up.shape, *ones).astype(dtype)
                parts[f"{file.layer_name(name)}.{kinds.DOWN}"] = down.reshape(-1, *change.shape[1:]).astype(dtype)
            bar.update()
    if not adapted:
        raise StageError(
            f"{tuned} and {base} do not differ in a layer that {', '.join(targets)} names; nothing is written"
        )
    layers = {kinds.apart(name)[0] for name in parts}
    with store.atomic(out) as temporary:
        file.write(temporary, parts, {layer: rank for layer in layers}, metadata)
    return Difference(whole, left, adapted)


def low_rank(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(up (o, r), down (r, i), squares of all singular values, the largest first) of a matrix (o, i) float64: up down is
    the matrix of this rank nearest to it, and both have the same norms. By the eigenvectors of the smaller Gram matrix,
    which loses what is 1e-8 of the largest, and takes a fraction of a decomposition's time. Ranks beyond the matrix's
    own are zeros."""
    tall = matrix.shape[0] > matrix.shape[1]
    side = matrix if tall else matrix.T  # (long, short)
    squares, vectors = np.linalg.eigh(side.T @ side)
    squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
    count = min(rank, len(squares))
    short = vectors[:, :count]  # (short, r), orthonormal
    long = side @ short  # their lengths are the singular values
    roots = squares[:count] ** 0.25
    scaled = np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
    first, second = np.zeros((side.shape[0], rank)), np.zeros((side.shape[1], rank))
    first[:, :count], second[:, :count] = long * scaled, short * roots
    up, down = (first, second.T) if tall else (second, first.T)
    return up, down, squares


def table(found: Difference, numbers: Mapping[int, int], size: int) -> list[str]:
    """Lines of the error at each rank: what is left of the change, as the length of the difference to the change's; of
    the layers that have a LoRA, and of all. `numbers`: rank -> numbers of the file, of `size` bytes."""
    lines = [f"{'rank':>6} {'error':>8} {'of all':>8} {'file':>10}"]
    for rank, left in found.left.items():
        error = (left / found.adapted) ** 0.5
        of_all = ((left + found.whole - found.adapted) / found.whole) ** 0.5
        lines.append(f"{rank:6} {error:8.3f} {of_all:8.3f} {numbers[rank] * size / 1e6:7.1f} MB")
    return lines
