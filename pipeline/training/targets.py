"""Which weights of the UNet and of the text encoders have an adapter. Needs no MindSpore."""

import re
from collections.abc import Mapping, Sequence

from pipeline.models.config import SDXLConfig
from pipeline.training import groups
from pipeline.training.groups import Groups
from pipeline.weights import layout
from pipeline.weights.names import PREFIX

_TEXT_LAYERS = re.compile(r".+\.(self_attn\.\w+_proj|mlp\.\w+|attn\.out_proj)\.weight")
_JOINED = "attn.in_proj_weight"


def targets(shapes: Mapping[str, tuple[int, ...]], patterns: Sequence[str], frozen: Groups) -> list[str]:
    """Names, in order, of the weights of linear layers and convolutions that one of the patterns (as in groups.py)
    matches, and that no group freezes. `shapes` are of names below `model.diffusion_model.`"""
    return [
        name
        for name in adaptable(shapes)
        if any(groups.matches(pattern, name) for pattern in patterns) and groups.factor(frozen, name) > 0
    ]


def text_targets(part: str, config: SDXLConfig) -> dict[str, tuple[int, ...]]:
    """The weights of a text encoder that have an adapter, by Stability's names below its prefix -> shapes: those of all
    linear layers in attention and MLP, as kohya's scripts have them, but not in CLIP-L's last block, which SDXL does not
    use. bigG's joined projections are three, …attn.q_proj.weight, k_proj and v_proj."""
    unused = f"transformer.text_model.encoder.layers.{config.clip_l.layers - 1}."
    found = {}
    for name, shape in layout.shapes(config).items():
        own = name.removeprefix(PREFIX[part])
        if own == name or own.startswith(unused):
            continue
        if own.endswith(_JOINED):
            found |= {own.replace(_JOINED, f"attn.{one}_proj.weight"): (shape[0] // 3, shape[1]) for one in "qkv"}
        elif _TEXT_LAYERS.fullmatch(own):
            found[own] = shape
    return found


def adaptable(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The weights of linear layers and convolutions."""
    return [name for name, shape in shapes.items() if len(shape) > 1]


def frozen_dtype(precision: str, weights_dtype: str) -> str:
    """In what the weights under an adapter are kept, norms excepted: in the computation's half precision, which each is
    cast to anyway, or else as train.weights_dtype says."""
    return weights_dtype if precision == "float32" else precision
