"""Adapters in the layers of a network: what pipeline/weights/adapters/kinds.py says, as cells.

LoRA in a linear layer is two narrow layers beside it, so that nothing of the weight's size is computed. All others, and
LoRA in a convolution and in bigG's joined projections, compute the changed weight, and the layer with it. Parts are float32, the layer computes in the
dtype of its input as without an adapter."""

from collections.abc import Iterator
from types import ModuleType

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from pipeline.models.clip import FusedAttention
from pipeline.models.layers import Conv, Linear
from pipeline.weights.adapters import kinds

Parts = dict[str, Parameter]


class _Beside(nn.Cell):
    """base(x) + s up(down(x))"""

    def __init__(self, layers: ModuleType, base: nn.Cell, parts: Parts, scale: float):
        super().__init__(auto_prefix=False)
        rank = parts[kinds.DOWN].shape[0]
        self.base, self.fork, self.scale = base, layers.Fork(), scale
        self.lora_down = layers.Linear(base.in_channels, rank, bias=False)
        self.lora_up = layers.Linear(rank, base.out_channels, bias=False)
        self.lora_down.weight, self.lora_up.weight = parts[kinds.DOWN], parts[kinds.UP]

    def construct(self, x):
        x, beside = self.fork(x)
        return self.base(x) + self.lora_up(self.lora_down(beside) * self.scale)


class _Lora(nn.Cell):
    """The weight with up down added"""

    def __init__(self, parts: Parts, scale: float):
        super().__init__(auto_prefix=False)
        self.down, self.up, self.scale = parts[kinds.DOWN], parts[kinds.UP], scale
        self.matmul = ops.MatMul()

    def construct(self, weight):
        rank = self.down.shape[0]
        change = self.matmul(self.up.reshape(-1, rank), self.down.reshape(rank, -1) * self.scale)
        return weight.astype(ms.float32) + change.reshape(weight.shape)


class _Dora(nn.Cell):
    """The weight with up down added, and then each output's row with the length m. The gradient takes the row's own length
    for a constant (arXiv 2402.09353, section 4.3)."""

    def __init__(self, parts: Parts, scale: float):
        super().__init__(auto_prefix=False)
        self.lora, self.magnitude = _Lora(parts, scale), parts[kinds.MAGNITUDE]

    def construct(self, weight):
        whole = self.lora(weight)
        rows = whole.reshape(whole.shape[0], -1)
        fixed = ops.stop_gradient(rows)
        gains = self.magnitude.reshape(-1, 1) / ops.sqrt((fixed * fixed).sum(-1, keepdims=True))
        return (rows * gains).reshape(weight.shape)


class _Loha(nn.Cell):
    def __init__(self, parts: Parts, scale: float):
        super().__init__(auto_prefix=False)
        self.a1, self.b1, self.a2, self.b2 = (parts[f"hada_w{n}_{side}"] for n in (1, 2) for side in "ab")
        self.scale, self.matmul = scale, ops.MatMul()

    def construct(self, weight):
        change = self.matmul(self.a1, self.b1) * self.matmul(self.a2, self.b2 * self.scale)
        return weight.astype(ms.float32) + change.reshape(weight.shape)


class _Lokr(nn.Cell):
    """The Kronecker product as the outer product of all numbers, put in order."""

    def __init__(self, parts: Parts, scale: float):
        super().__init__(auto_prefix=False)
        self.w1, self.scale = parts["lokr_w1"], scale
        self.whole = "lokr_w2" in parts
        if self.whole:
            self.w2 = parts["lokr_w2"]
        else:
            self.a, self.b = parts["lokr_w2_a"], parts["lokr_w2_b"]
        self.matmul, self.transpose = ops.MatMul(), ops.Transpose()

    def construct(self, weight):
        w2 = self.w2 if self.whole else self.matmul(self.a, self.b * self.scale)
        (o1, i1), o2 = self.w1.shape, w2.shape[0]
        outer = self.matmul(self.w1.reshape(-1, 1), w2.reshape(1, -1))
        change = self.transpose(outer.reshape(o1, i1, o2, -1), (0, 2, 1, 3))
        return weight.astype(ms.float32) + change.reshape(weight.shape)


_CHANGES = {"lora": _Lora, "dora": _Dora, "loha": _Loha, "lokr": _Lokr}


class _Changed(nn.Cell):
    """The layer with its weight changed."""

    def __init__(self, base: nn.Cell, change: nn.Cell):
        super().__init__(auto_prefix=False)
        self.base, self.change = base, change

    def construct(self, x):
        return self.base.compute(x, self.change(self.base.weight))


class _Joined(nn.Cell):
    """A weight of three layers, one below the other, each changed by itself."""

    def __init__(self, first: nn.Cell, second: nn.Cell, third: nn.Cell):
        super().__init__(auto_prefix=False)
        self.first, self.second, self.third = first, second, third

    def construct(self, weight):
        first, second, third = ms.mint.chunk(weight, 3, 0)
        return ops.concat((self.first(first), self.second(second), self.third(third)), 0)


def attach(
    network: nn.Cell, layers: ModuleType, kind: str, targets: list[str], rank: int, alpha: float, factor: int, seed: int
) -> None:
    """Put an adapter of this kind (one of kinds.py's) into each layer of `network` whose weight's name is one of
    `targets`, with the first values of `kinds.start`; all other parameters are frozen. The network has its weights by
    now, and keeps their names; a part's is its layer's and kinds.py's. bigG's joined projections have all three of
    …attn.q_proj.weight, k_proj and v_proj, or none."""
    for parameter in network.get_parameters():
        parameter.requires_grad = False
    places = {base.weight.name: (parent, leaf, base) for parent, leaf, base in list(_layers(network))}
    joined = {name: attention for attention in _joined(network) for name in _projections(attention)}

    def change(target: str, values: np.ndarray) -> tuple[Parts, float]:
        parts = {}
        for part, shape in kinds.shapes(kind, values.shape, rank, factor).items():
            start = Tensor(kinds.start(target, part, shape, values, seed))
            parts[part] = Parameter(start, f"{target.removesuffix('.weight')}.{part}")
        return parts, kinds.scale(parts, rank, alpha)

    for target in (target for target in targets if target not in joined):
        parent, leaf, base = places[target]
        found = change(target, base.weight.astype(ms.float32).asnumpy())
        if kind == "lora" and isinstance(base, Linear):
            cell = _Beside(layers, base, *found)
        else:
            cell = _Changed(base, _CHANGES[kind](*found))
        parent._cells[leaf] = cell  # as an attribute it would rename its parameters
        if isinstance(parent, nn.SequentialCell):
            parent.cell_list = tuple(parent._cells.values())
    for attention in {id(joined[target]): joined[target] for target in targets if target in joined}.values():
        values = np.split(attention.in_proj_weight.astype(ms.float32).asnumpy(), 3)
        changes = [_CHANGES[kind](*change(*one)) for one in zip(_projections(attention), values, strict=True)]
        attention._cells["adapted"] = _Joined(*changes)


def _layers(network: nn.Cell) -> Iterator[tuple[nn.Cell, str, nn.Cell]]:
    """(parent, its name for the child, child) of each linear layer and convolution."""
    for _, parent in network.cells_and_names():
        for leaf, child in parent.name_cells().items():
            if isinstance(child, (Linear, Conv)):
                yield parent, leaf, child


def _joined(network: nn.Cell) -> list[FusedAttention]:
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, FusedAttention)]


def _projections(attention: FusedAttention) -> list[str]:
    """What the three weights would be called, were they apart."""
    module = attention.in_proj_weight.name.removesuffix("in_proj_weight")
    return [f"{module}{one}_proj.weight" for one in "qkv"]
