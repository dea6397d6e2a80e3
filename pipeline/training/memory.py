"""What training keeps on a device, in bytes. Plain numbers; imports no MindSpore.

Parameters, gradients and optimizer state are exact. Activations are an estimate from below: the tensors that the
layers' backward passes need, counted by layer from the configuration. MindSpore's CPU backend took about four times as
much (a UNet of 33 million parameters, batch 10, 32x32 latents, float32); an NPU was not measured."""

from math import prod

from pipeline.models.config import UNetConfig

FLOAT32, FLOAT16 = 4, 2
Shapes = dict[str, tuple[int, ...]]


def sharded(shape: tuple[int, ...], ranks: int) -> bool:
    """Whether ZeRO-1 cuts a parameter of this shape into slices of its first axis. The others (vectors, and first axes
    that do not divide: less than a thousandth of SDXL) are kept whole on each rank, which costs less than sending
    them."""
    return ranks > 1 and len(shape) > 1 and shape[0] % ranks == 0


def parameters(shapes: Shapes, param_fp16: bool) -> int:
    """Bytes of the weights; norms stay float32. `shapes` are of MindSpore's names, whose norms have gamma and beta."""
    return sum(
        prod(shape) * (FLOAT16 if param_fp16 and not is_norm(name) else FLOAT32) for name, shape in shapes.items()
    )


def is_norm(name: str) -> bool:
    return name.endswith((".gamma", ".beta"))


def gradients(shapes: Shapes, param_fp16: bool, accumulation: int) -> int:
    """Bytes of the gradients, in the weights' dtypes, and of the float32 totals when micro-batches are accumulated."""
    totals = sum(map(prod, shapes.values())) * FLOAT32 if accumulation > 1 else 0
    return parameters(shapes, param_fp16) + totals


def optimizer(shapes: Shapes, kind: str, ranks: int) -> int:
    """Bytes of the optimizer's state on one rank; `ranks` > 1 when it is sharded over that many. The step count is one
    of the numbers."""
    if kind == "adafactor":
        return FLOAT32 * (1 + sum(shape[0] + (prod(shape[1:]) if len(shape) > 1 else 1) for shape in shapes.values()))
    return FLOAT32 * (1 + sum(2 * prod(shape) // (ranks if sharded(shape, ranks) else 1) for shape in shapes.values()))


def ema(shapes: Shapes) -> int:
    return FLOAT32 * sum(map(prod, shapes.values()))


def activations(
    config: UNetConfig,
    batch: int,
    height: int,
    width: int,
    precision: str,
    attention: str,
    recompute: bool,
    tokens: int = 77,
) -> int:
    """An estimate of the bytes kept for the backward pass of `batch` latents of (height, width); all in the dtype of
    `precision`. With `recompute` each residual and transformer block keeps its input, and one block at a time is
    whole."""
    size = FLOAT32 if precision == "float32" else FLOAT16
    kept, largest = 0, 0
    for kind, channels, inputs, h, w in _blocks(config, height, width):
        places = h * w
        if kind == "res":
            # inputs of both norms, SiLUs and convolutions, and the sum
            whole = places * (3 * inputs + 4 * channels)
        else:
            heads = channels // config.head_dim
            scores = heads * places * (places + tokens) if attention == "plain" else 0
            # three norms, q k v and output of self-attention, q and output of cross-attention, residuals, and the
            # GEGLU's 8 + 4 + 4 times as wide tensors; the text's keys and values
            whole = places * channels * 30 + 2 * tokens * channels + scores
        whole *= batch * size
        largest = max(largest, whole)
        kept += batch * size * places * inputs if recompute else whole
    return kept + largest if recompute else kept


def _blocks(config: UNetConfig, height: int, width: int):
    """Yield (kind, channels, input channels, height, width) of each residual ("res") and transformer block."""
    widths = [config.model_channels * mult for mult in config.channel_mult]
    levels = len(widths)
    sizes = [(height >> level, width >> level) for level in range(levels)]
    channels, skips = config.model_channels, [config.model_channels]
    for level in range(levels):
        for _ in range(config.num_res_blocks):
            yield "res", widths[level], channels, *sizes[level]
            channels = widths[level]
            yield from [("transformer", channels, channels, *sizes[level])] * config.transformer_depth[level]
            skips.append(channels)
        if level < levels - 1:
            skips.append(channels)
    yield "res", channels, channels, *sizes[-1]
    yield from [("transformer", channels, channels, *sizes[-1])] * config.transformer_depth[-1]
    yield "res", channels, channels, *sizes[-1]
    for level in reversed(range(levels)):
        for _ in range(config.num_res_blocks + 1):
            yield "res", widths[level], channels + skips.pop(), *sizes[level]
            channels = widths[level]
            yield from [("transformer", channels, channels, *sizes[level])] * config.transformer_depth[level]
