"""Adapter files for other tools' loaders, by a rule that needs NumPy alone: one adapter of every layer that can have one, in
the UNet of adapters_rule.py and in the tiny model's text encoders."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.models.config import TINY, SDXLConfig
from pipeline.training.targets import targets, text_targets
from pipeline.weights import layout
from pipeline.weights.adapters import file, kinds
from pipeline.weights.names import PREFIX
from tests.golden import adapters_rule, rule

CONFIG = replace(TINY, unet=adapters_rule.UNET)
METADATA = {"ss_base_model_version": "sdxl_base_v1-0"}


def weights(config: SDXLConfig = CONFIG) -> dict[str, np.ndarray]:
    """By Stability's names, all but the VAE's."""
    return {
        name: rule.weight(name, s) for name, s in layout.shapes(config).items() if not name.startswith(PREFIX["vae"])
    }


def shapes(config: SDXLConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(kohya's name of a layer, Stability's of its weight, shape); bigG's joined projections are three."""
    prefix = PREFIX["unet"]
    unet = {name.removeprefix(prefix): s for name, s in layout.shapes(config).items() if name.startswith(prefix)}
    for name in targets(unet, ["*"], ()):
        yield file.layer_name(name), prefix + name, unet[name]
    for part in ("clip_l", "clip_g"):
        for name, shape in text_targets(part, config).items():
            yield file.layer_name(name, part), PREFIX[part] + name, shape


def base_of(weight: str, bases: dict[str, np.ndarray]) -> np.ndarray:
    """Of a joined projection, ….attn.k_proj.weight, its rows."""
    if weight in bases:
        return bases[weight]
    stem, one = weight.removesuffix("_proj.weight").rsplit(".", 1)
    return np.split(bases[f"{stem}.in_proj_weight"], 3)["qkv".index(one)]


def write(
    path: Path, kind: str, config: SDXLConfig = CONFIG, bases: dict[str, np.ndarray] | None = None, size: float = 1.0
) -> None:
    """`bases`: those of a model in place of the rule's; `size`: of the parts, to those of adapters_rule.py."""
    bases, parts = bases or weights(config), {}
    for layer, weight, _ in shapes(config):
        base = base_of(weight, bases)
        for part, value in adapters_rule.parts_of(kind, layer, base).items():
            none = kinds.norms(base).reshape(value.shape) if part == kinds.MAGNITUDE else 0
            parts[f"{layer}.{part}"] = (none + np.float32(size) * (value - none)).astype(np.float32)
    file.write(path, parts, alphas(parts), METADATA)


def alphas(parts: dict[str, np.ndarray]) -> dict[str, float]:
    own: dict[str, set[str]] = {}
    for name in parts:
        layer, part = kinds.apart(name)
        own.setdefault(layer, set()).add(part)
    rank = adapters_rule.RANK
    return {layer: rank * kinds.scale(found, rank, adapters_rule.ALPHA) for layer, found in own.items()}


def write_empty(path: Path, kind: str, config: SDXLConfig) -> None:
    """Of rank 1, of zeros: for its names."""
    parts = {
        f"{layer}.{part}": np.zeros(part_shape, np.float16)
        for layer, _, shape in shapes(config)
        for part, part_shape in kinds.shapes(kind, shape, 1).items()
    }
    file.write(path, parts, alphas(parts), METADATA)
