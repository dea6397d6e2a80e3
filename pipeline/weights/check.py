"""Checks of checkpoints, whose messages name tensors: what was found and what was wanted."""

import re
from collections.abc import Iterator, Mapping

from pipeline.stage import shown
from pipeline.weights.layout import Shape
from pipeline.weights.numeric import count_nonfinite, finite
from pipeline.weights.tensor import NUMPY, Tensor

MOST = 10  # named per kind of fault; the rest is counted


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[Shape, ...]]) -> str:
    """What keeps `found` from being exactly `wanted` (name -> the shapes it may have); "" when nothing does."""
    missing = [f"{name} {_shapes(shapes)}" for name, shapes in wanted.items() if name not in found]
    unknown = [described(name, tensor) for name, tensor in found.items() if name not in wanted]
    both = [(name, found[name], shapes) for name, shapes in wanted.items() if name in found]
    misshaped = [f"{n} {_shape(t.shape)}, wanted {_shapes(shapes)}" for n, t, shapes in both if t.shape not in shapes]
    types = [f"{n} {shown(t.dtype)}, wanted {', '.join(NUMPY)}" for n, t, _ in both if t.dtype not in NUMPY]
    kinds = {"missing": missing, "of another shape": misshaped, "of another type": types, "unknown": unknown}
    return "\n".join(listed(kind, names) for kind, names in kinds.items() if names)


def listed(kind: str, names: list[str]) -> str:
    """`names` under a heading that counts them, cut at MOST. `kind`: as of several."""
    if len(names) == 1:
        kind = re.sub(r"^(fault|tensor)s\b", r"\1", kind)
    more = [f"    and {len(names) - MOST:,} more"] if len(names) > MOST else []
    return "\n".join([f"  {len(names):,} {kind}:", *(f"    {name}" for name in names[:MOST]), *more])


def described(name: str, tensor: Tensor) -> str:
    """A tensor's name, dtype and shape."""
    return f"{shown(name)} {shown(tensor.dtype)} {_shape(tensor.shape)}"


def chunks(name: str, tensor: Tensor, faults: list[str]) -> Iterator[memoryview]:
    """The tensor's chunks as they are; NaN and infinite values among them add a line to `faults` at the end."""
    nan = infinite = 0
    for chunk in tensor.chunks():
        if not finite(chunk, tensor.dtype):
            more_nan, more_infinite = count_nonfinite(chunk, tensor.dtype)
            nan, infinite = nan + more_nan, infinite + more_infinite
        yield chunk
    if nan or infinite:
        faults.append(f"{name}: {nan:,} NaN and {infinite:,} infinite among {tensor.count:,} values")


def _shapes(shapes: tuple[Shape, ...]) -> str:
    return " or ".join(map(_shape, shapes))


def _shape(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")" if shape else "scalar"
