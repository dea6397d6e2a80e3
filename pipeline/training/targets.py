"""Which of the UNet's weights have an adapter. Needs no MindSpore."""

from collections.abc import Mapping, Sequence

from pipeline.training import groups
from pipeline.training.groups import Groups


def targets(shapes: Mapping[str, tuple[int, ...]], patterns: Sequence[str], frozen: Groups) -> list[str]:
    """Names, in order, of the weights of linear layers and convolutions that one of the patterns (as in groups.py)
    matches, and that no group freezes. `shapes` are of names below `model.diffusion_model.`"""
    return [
        name
        for name in adaptable(shapes)
        if any(groups.matches(pattern, name) for pattern in patterns) and groups.factor(frozen, name) > 0
    ]


def adaptable(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The weights of linear layers and convolutions."""
    return [name for name, shape in shapes.items() if len(shape) > 1]


def frozen_dtype(precision: str, weights_dtype: str) -> str:
    """In what the weights under an adapter are kept, norms excepted: in the computation's half precision, which each is
    cast to anyway, or else as train.weights_dtype says."""
    return weights_dtype if precision == "float32" else precision
