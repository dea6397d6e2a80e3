"""The kinds of adapters: how few numbers change a weight W (o, i) of a linear layer or (o, i, k, k) of a convolution.

The parts of each have the names and shapes that kohya's scripts and LyCORIS give them in files (arXiv 2309.14859):
- lora: W + s up down, `lora_down` (r, i[, k, k]), `lora_up` (o, r[, 1, 1]) (arXiv 2106.09685);
- dora: m (W + s up down) / |W + s up down| with the norm of each output's row and `dora_scale` m (o, 1[, 1, 1])
  (arXiv 2402.09353, eq. 5);
- loha: W + s (w1_a w1_b) ∘ (w2_a w2_b), `hada_w1_a` (o, r), `hada_w1_b` (r, i k k), and 2 alike (arXiv 2108.06098);
- lokr: W + s w1 ⊗ w2, `lokr_w1` (o1, i1) and `lokr_w2` (o2, i2[, k, k]), or its `lokr_w2_a` (o2, r) and `lokr_w2_b`
  (r, i2 k k) where that is less (arXiv 2309.14859).
s = alpha / r, but 1 for a lokr of two whole parts, which has no rank. Needs no MindSpore."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from math import prod

import numpy as np

Shape = tuple[int, ...]
Parts = Mapping[str, np.ndarray]

DOWN, UP, MAGNITUDE = "lora_down.weight", "lora_up.weight", "dora_scale"
ALPHA = "alpha"
KINDS = ("lora", "dora", "lokr", "loha")
_PART = re.compile(r"(.+)\.(lora_(?:down|up)\.weight|dora_scale|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)")


def shapes(kind: str, shape: Shape, rank: int, factor: int = -1) -> dict[str, Shape]:
    """The parts of an adapter of a weight of this shape. `factor` is lokr's: into what outputs and inputs are split."""
    outputs, inputs, *kernel = shape
    ones = (1,) * len(kernel)
    if kind in ("lora", "dora"):
        parts = {DOWN: (rank, inputs, *kernel), UP: (outputs, rank, *ones)}
        return parts | ({MAGNITUDE: (outputs, 1, *ones)} if kind == "dora" else {})
    if kind == "loha":
        width = inputs * prod(kernel)
        return {f"hada_w{n}_{side}": (outputs, rank) if side == "a" else (rank, width) for n in (1, 2) for side in "ab"}
    (o1, o2), (i1, i2) = split(outputs, factor), split(inputs, factor)
    parts = {"lokr_w1": (o1, i1)}
    if rank < max(o2, i2) / 2:
        return parts | {"lokr_w2_a": (o2, rank), "lokr_w2_b": (rank, i2 * prod(kernel))}
    return parts | {"lokr_w2": (o2, i2, *kernel)}


def apart(name: str) -> tuple[str, str]:
    """The name of a part of a layer's adapter -> the layer's, and the part's."""
    return _PART.fullmatch(name).groups()


def split(number: int, factor: int) -> tuple[int, int]:
    """Two factors of a number, the smaller first: `factor` and the other where it divides it, else the two nearest each
    other of which the smaller is not above `factor`; -1: the two nearest (LyCORIS' `factorization`)."""
    if factor > 0 and number % factor == 0:
        return tuple(sorted((factor, number // factor)))
    most = number if factor < 0 else factor
    small = max(n for n in range(1, int(number**0.5) + 1) if number % n == 0 and (n <= most or n == 1))
    return small, number // small


def kind_of(names: Iterable[str]) -> str:
    """Of the names of an adapter's parts."""
    names = set(names)
    if DOWN in names:
        return "dora" if MAGNITUDE in names else "lora"
    return "loha" if "hada_w1_a" in names else "lokr"


def scale(parts: Mapping, rank: int, alpha: float) -> float:
    """What the product of the parts is multiplied by."""
    return 1.0 if "lokr_w2" in parts and "lokr_w1" in parts else alpha / rank


def start(name: str, part: str, shape: Shape, weight: np.ndarray, seed: int) -> np.ndarray:
    """A part's first values, float32, with which the adapter changes nothing: a function of the seed, the weight's name
    and the part's, with the distributions that kohya's scripts and LyCORIS have. `weight` is W, for the magnitudes."""
    if part == MAGNITUDE:
        return norms(weight).reshape(shape)
    if part in (UP, "hada_w2_a", "lokr_w2", "lokr_w2_b"):
        return np.zeros(shape, np.float32)
    key = hashlib.blake2b(f"{seed}/{name}/{part}".encode(), digest_size=16).digest()
    draw = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
    if part.startswith("hada"):
        return draw.standard_normal(shape, np.float32) * np.float32(0.1 if part == "hada_w1_a" else 1.0)
    bound = prod(shape[1:]) ** -0.5  # torch's kaiming_uniform_ with a = sqrt(5)
    return draw.uniform(-bound, bound, shape).astype(np.float32)


def norms(weight: np.ndarray) -> np.ndarray:
    """(o,) float32: the norm of each output's row."""
    return np.sqrt(np.square(weight.reshape(len(weight), -1).astype(np.float32)).sum(1))


def product(parts: Parts, shape: Shape) -> np.ndarray:
    """What lora's, loha's or lokr's parts say, before its scale, float32 of a weight's shape."""
    parts = {name: np.asarray(part, np.float32) for name, part in parts.items()}
    if UP in parts:
        up, down = parts[UP], parts[DOWN]
        return (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(shape)
    if "hada_w1_a" in parts:
        first, second = (parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in (1, 2))
        return (first * second).reshape(shape)
    w1 = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    w2 = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    w2 = w2.reshape(shape[0] // len(w1), shape[1] // w1.shape[1], -1)
    return np.einsum("ab,cdk->acbdk", w1, w2).reshape(shape)


def rank_of(parts: Mapping) -> int | None:
    """Of anything with shapes; None: a lokr of two whole parts."""
    for part, axis in ((DOWN, 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if part in parts:
            return parts[part].shape[axis]
    return None


def changed(weight: np.ndarray, parts: Parts, alpha: float | None, strength: float = 1.0) -> np.ndarray:
    """W with the adapter, float32; `strength` times the change that it makes. alpha None: as large as the rank."""
    weight = np.asarray(weight, np.float32)
    rank = rank_of(parts)
    factor = scale(parts, rank, rank if alpha is None else alpha) if rank else 1.0
    change = product(parts, weight.shape) * np.float32(factor)
    if MAGNITUDE in parts:
        magnitude, whole = np.asarray(parts[MAGNITUDE], np.float32), weight + change
        if magnitude.size != len(weight):
            raise ValueError(f"{MAGNITUDE} {magnitude.shape} of a weight {weight.shape}")
        gains = magnitude.reshape(-1) / norms(whole)
        change = whole * gains.reshape(-1, *(1,) * (weight.ndim - 1)) - weight
    return weight + np.float32(strength) * change
