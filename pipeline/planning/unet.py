"""models/unet.py layer by layer, in the order in which they run, as plain numbers."""

from collections.abc import Iterator
from types import ModuleType

from pipeline.models.config import UNetConfig
from pipeline.planning import npu
from pipeline.planning.step import Block, Layer


def blocks(
    config: UNetConfig,
    batch: int,
    height: int,
    width: int,
    size: int,
    attention: str = "tiled",
    tokens: int = 77,
    form: ModuleType = npu,
) -> Iterator[Block]:
    """The blocks of a step with `batch` latents of (height, width), computed with numbers of `size` bytes; `form` is
    npu or cpu."""
    emb, groups = 4 * config.model_channels, config.head_dim

    def res(inputs: int, outputs: int, h: int, w: int) -> Block:
        n, made = batch * inputs * h * w, batch * outputs * h * w
        layers = [
            form.group_norm(n, inputs, size), form.silu(n, size), form.conv(batch, inputs, outputs, h, w, size),
            form.silu(batch * emb, size), form.linear(batch, emb, outputs, size),
            form.group_norm(made, outputs, size), form.silu(made, size),
            form.conv(batch, outputs, outputs, h, w, size),
        ]  # fmt: skip
        if inputs != outputs:
            layers.append(form.conv(batch, inputs, outputs, h, w, size, kernel=1))
        return Block(tuple(layers), size * n, recomputable=True)

    def transformer(channels: int, depth: int, h: int, w: int) -> Iterator[Block]:
        if not depth:
            return
        places, heads = h * w, channels // groups
        rows = batch * places
        n = rows * channels

        def attend(keys: int, inputs: int, itself: bool) -> list[Layer]:
            # of the text's keys and values the input is the same everywhere
            sources = batch * keys
            return [
                form.linear(rows, channels, channels, size, bias=False),
                form.linear(sources, inputs, channels, size, bias=False, shares=True),
                form.linear(sources, inputs, channels, size, bias=False, shares=True),
                form.attention(batch, places, keys, channels, heads, attention, size),
                form.linear(rows, channels, channels, size),
            ]

        yield Block(
            (form.group_norm(n, channels, size), form.transposed(n, size), form.linear(rows, channels, channels, size))
        )
        block = Block(
            (
                form.layer_norm(n, channels, size), *attend(places, channels, True),
                form.layer_norm(n, channels, size), *attend(tokens, config.context_dim, False),
                form.layer_norm(n, channels, size), form.linear(rows, channels, 8 * channels, size),
                form.geglu(rows, 4 * channels, size), form.linear(rows, 4 * channels, channels, size),
            ),
            size * n, recomputable=True,
        )  # fmt: skip
        yield from [block] * depth
        yield Block((form.linear(rows, channels, channels, size), form.transposed(n, size)))

    def skip(channels: int, h: int, w: int, joins: bool) -> Block:
        """What an output block joins waits from its input block on, and its gradient the other way round."""
        n = size * batch * channels * h * w
        return Block((Layer("skips", -n if joins else n, 0, 0),))

    yield Block((
        form.linear(batch, config.model_channels, emb, size), form.silu(batch * emb, size),
        form.linear(batch, emb, emb, size), form.linear(batch, config.vector_dim, emb, size),
        form.silu(batch * emb, size), form.linear(batch, emb, emb, size),
        Layer("text", size * batch * tokens * config.context_dim, 0, 0),
    ))  # fmt: skip
    levels = len(config.channel_mult)
    widths = [config.model_channels * mult for mult in config.channel_mult]
    sizes = [(height >> level, width >> level) for level in range(levels)]
    channels = config.model_channels
    yield Block((form.conv(batch, config.latent_channels, channels, height, width, size),))
    yield skip(channels, height, width, joins=False)
    skips = [(channels, height, width)]
    for level, (h, w) in enumerate(sizes):
        for _ in range(config.num_res_blocks):
            yield res(channels, widths[level], h, w)
            channels = widths[level]
            yield from transformer(channels, config.transformer_depth[level], h, w)
            yield skip(channels, h, w, joins=False)
            skips.append((channels, h, w))
        if level < levels - 1:
            yield Block((form.conv(batch, channels, channels, h, w, size, stride=2),))
            skips.append((channels, *sizes[level + 1]))
            yield skip(*skips[-1], joins=False)
    yield res(channels, channels, *sizes[-1])
    yield from transformer(channels, config.transformer_depth[-1], *sizes[-1])
    yield res(channels, channels, *sizes[-1])
    for level, (h, w) in reversed(list(enumerate(sizes))):
        for i in range(config.num_res_blocks + 1):
            joined = skips.pop()
            yield skip(*joined, joins=True)
            yield res(channels + joined[0], widths[level], h, w)
            channels = widths[level]
            yield from transformer(channels, config.transformer_depth[level], h, w)
            if level and i == config.num_res_blocks:
                yield Block((
                    form.upsample(batch * channels * h * w, size),
                    form.conv(batch, channels, channels, 2 * h, 2 * w, size),
                ))  # fmt: skip
    n = batch * channels * height * width
    yield Block((
        form.group_norm(n, channels, size), form.silu(n, size),
        form.conv(batch, channels, config.latent_channels, height, width, size),
    ))  # fmt: skip
