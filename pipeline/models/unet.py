"""SDXL's UNet (arXiv 2307.01952, section 2.1), under the module names of Stability's file. `layers` is the module whose
layers a cell is made of: models/layers.py or models/cpu/layers.py."""

import math
from types import ModuleType

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from pipeline.models import forms
from pipeline.models.config import UNetConfig


class ResBlock(nn.Cell):
    def __init__(self, layers: ModuleType, in_channels: int, emb_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.fork = layers.Fork()
        self.in_layers = nn.SequentialCell(
            layers.GroupNorm(groups, in_channels, eps=1e-5), layers.SiLU(), layers.Conv(in_channels, out_channels, 3)
        )
        self.emb_layers = nn.SequentialCell(layers.SiLU(), layers.Linear(emb_channels, out_channels))
        self.out_layers = nn.SequentialCell(
            layers.GroupNorm(groups, out_channels, eps=1e-5),
            layers.SiLU(),
            nn.Identity(),
            layers.Conv(out_channels, out_channels, 3),
        )
        self.skip_connection = (
            layers.Conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )
        self.add = layers.AddToChannels()

    def construct(self, x, emb):
        """x (b, in_channels, h, w), emb (b, emb_channels) -> (b, out_channels, h, w)"""
        x, skipped = self.fork(x)
        h = self.add(self.in_layers(x), self.emb_layers(emb))
        return self.skip_connection(skipped) + self.out_layers(h)


class CrossAttention(nn.Cell):
    def __init__(
        self, layers: ModuleType, channels: int, context_dim: int, head_dim: int, attention: str, dtype: ms.Type
    ):
        super().__init__()
        self.fork = layers.Fork()
        self.to_q = layers.Linear(channels, channels, bias=False)
        self.to_k = layers.Linear(context_dim, channels, bias=False)
        self.to_v = layers.Linear(context_dim, channels, bias=False)
        self.attention = layers.make_attention(attention, channels // head_dim, head_dim, dtype)
        self.to_out = nn.SequentialCell(layers.Linear(channels, channels))

    def construct(self, x, context):
        """x (b, tokens, channels), context (b, context tokens, context_dim) -> (b, tokens, channels)"""
        for_k, for_v = self.fork(context)
        return self.to_out(self.attention(self.to_q(x), self.to_k(for_k), self.to_v(for_v)))


class FeedForward(nn.Cell):
    def __init__(self, layers: ModuleType, channels: int):
        super().__init__()
        self.net = nn.SequentialCell(
            layers.GEGLU(channels, 4 * channels), nn.Identity(), layers.Linear(4 * channels, channels)
        )

    def construct(self, x):
        return self.net(x)


class TransformerBlock(nn.Cell):
    def __init__(
        self, layers: ModuleType, channels: int, context_dim: int, head_dim: int, attention: str, dtype: ms.Type
    ):
        super().__init__()
        self.fork = layers.Fork()
        self.attn1 = CrossAttention(layers, channels, channels, head_dim, attention, dtype)
        self.ff = FeedForward(layers, channels)
        self.attn2 = CrossAttention(layers, channels, context_dim, head_dim, attention, dtype)
        self.norm1 = layers.LayerNorm(channels)
        self.norm2 = layers.LayerNorm(channels)
        self.norm3 = layers.LayerNorm(channels)

    def construct(self, x, context):
        x, skipped = self.fork(x)
        h, places = self.fork(self.norm1(x))
        x, skipped = self.fork(skipped + self.attn1(h, places))
        x, skipped = self.fork(skipped + self.attn2(self.norm2(x), context))
        return skipped + self.ff(self.norm3(x))


class SpatialTransformer(nn.Cell):
    """Transformer blocks over the places of the picture, which attend to each other and to the text."""

    def __init__(
        self,
        layers: ModuleType,
        channels: int,
        depth: int,
        context_dim: int,
        head_dim: int,
        groups: int,
        attention: str,
        dtype: ms.Type,
    ):
        super().__init__()
        self.fork = layers.Fork()
        self.norm = layers.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = layers.Linear(channels, channels)
        self.transformer_blocks = nn.CellList(
            [TransformerBlock(layers, channels, context_dim, head_dim, attention, dtype) for _ in range(depth)]
        )
        self.proj_out = layers.Linear(channels, channels)

    def construct(self, x, context):
        """x (b, channels, h, w), context (b, tokens, context_dim) -> (b, channels, h, w)"""
        b, c, height, width = x.shape
        x, skipped = self.fork(x)
        h = self.proj_in(self.norm(x).reshape(b, c, height * width).swapaxes(1, 2))
        for block in self.transformer_blocks:
            h = block(h, context)
        return skipped + self.proj_out(h).swapaxes(1, 2).reshape(b, c, height, width)


class Downsample(nn.Cell):
    def __init__(self, layers: ModuleType, channels: int):
        super().__init__()
        self.op = layers.Conv(channels, channels, 3, stride=2)

    def construct(self, x):
        return self.op(x)


class Upsample(nn.Cell):
    def __init__(self, layers: ModuleType, channels: int):
        super().__init__()
        self.upsample = layers.UpsampleNearest()
        self.conv = layers.Conv(channels, channels, 3)

    def construct(self, x):
        return self.conv(self.upsample(x))


class Block(nn.SequentialCell):
    """A residual block, then perhaps a transformer, then perhaps an upsampling, numbered in that order."""

    def __init__(self, resblock: ResBlock, transformer: SpatialTransformer | None, resample: Upsample | None):
        super().__init__([cell for cell in (resblock, transformer, resample) if cell is not None])
        self.attends = transformer is not None
        self.resamples = resample is not None

    def construct(self, x, emb, context):
        x = self.cell_list[0](x, emb)
        if self.attends:
            x = self.cell_list[1](x, context)
        if self.resamples:
            x = self.cell_list[-1](x)
        return x


def sinusoid(timesteps, dim: int):
    """Sinusoidal embedding (arXiv 1706.03762, 3.5), cosines first, max period 10,000: timesteps (b,) -> (b, dim)
    float32"""
    half = dim // 2
    frequencies = ms.Tensor(np.exp(-math.log(10000) * np.arange(half) / half).astype(np.float32))
    angles = timesteps.astype(ms.float32).reshape(-1, 1) * frequencies
    return ops.concat((ops.cos(angles), ops.sin(angles)), 1)


def recompute_blocks(unet: nn.Cell) -> None:
    """Have the backward pass compute residual and transformer blocks again, with all cells that they have by now."""
    for _, cell in unet.cells_and_names():
        if isinstance(cell, (ResBlock, TransformerBlock)):
            cell.recompute()


class UNet(nn.Cell):
    """`attention`: one of attention.KINDS. `compute_dtype`: what everything but norms and softmax is computed in.
    `recompute`: keep only the inputs of residual and transformer blocks for the backward pass and compute the rest
    again (gradient checkpointing). MindSpore 2.10.0's CPU backend computes them again and saves no memory by it.
    `layers`: what it is made of, by default the form that the device wants."""

    def __init__(
        self,
        config: UNetConfig,
        attention: str = "tiled",
        compute_dtype: ms.Type = ms.float32,
        recompute: bool = False,
        layers: ModuleType | None = None,
    ):
        super().__init__()
        layers = layers or forms.chosen()
        self.model_channels = config.model_channels
        self.compute_dtype = compute_dtype
        self.fork = layers.Fork()
        groups, emb_channels = config.norm_groups, 4 * config.model_channels
        levels = len(config.channel_mult)

        def resblock(in_channels, out_channels):
            return ResBlock(layers, in_channels, emb_channels, out_channels, groups)

        def transformer(channels, depth):
            if depth == 0:
                return None
            return SpatialTransformer(
                layers, channels, depth, config.context_dim, config.head_dim, groups, attention, compute_dtype
            )

        self.time_embed = nn.SequentialCell(
            layers.Linear(config.model_channels, emb_channels), layers.SiLU(), layers.Linear(emb_channels, emb_channels)
        )
        self.label_emb = nn.SequentialCell(
            nn.SequentialCell(
                layers.Linear(config.vector_dim, emb_channels), layers.SiLU(), layers.Linear(emb_channels, emb_channels)
            )
        )

        ch = config.model_channels
        blocks = [nn.SequentialCell(layers.Conv(config.latent_channels, ch, 3))]
        skips = [ch]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                out = config.model_channels * mult
                blocks.append(Block(resblock(ch, out), transformer(out, config.transformer_depth[level]), None))
                ch = out
                skips.append(ch)
            if level < levels - 1:
                blocks.append(nn.SequentialCell(Downsample(layers, ch)))
                skips.append(ch)
        self.input_blocks = nn.CellList(blocks)

        self.middle_block = nn.CellList(
            [resblock(ch, ch), transformer(ch, config.transformer_depth[-1]), resblock(ch, ch)]
        )

        blocks = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                out = config.model_channels * mult
                last = i == config.num_res_blocks
                blocks.append(
                    Block(
                        resblock(ch + skips.pop(), out),
                        transformer(out, config.transformer_depth[level]),
                        Upsample(layers, out) if last and level > 0 else None,
                    )
                )
                ch = out
        self.output_blocks = nn.CellList(blocks)

        self.out = nn.SequentialCell(
            layers.GroupNorm(groups, ch, eps=1e-5), layers.SiLU(), layers.Conv(ch, config.latent_channels, 3)
        )
        if recompute:
            recompute_blocks(self)

    def construct(self, x, timesteps, context, vector):
        """x (b, 4, h, w), timesteps (b,), context (b, tokens, context_dim), vector (b, vector_dim)
        -> (b, 4, h, w) float32. Height and width are multiples of 2 to the number of downsamplings."""
        dtype = self.compute_dtype
        x, context, vector = x.astype(dtype), context.astype(dtype), vector.astype(dtype)
        emb = self.time_embed(sinusoid(timesteps, self.model_channels).astype(dtype)) + self.label_emb(vector)
        skips = ()
        for block in self.input_blocks:
            x = block(x, emb, context) if isinstance(block, Block) else block(x)
            x, skip = self.fork(x)
            skips = skips + (skip,)
        x = self.middle_block[0](x, emb)
        x = self.middle_block[1](x, context)
        x = self.middle_block[2](x, emb)
        for i, block in enumerate(self.output_blocks):
            x = block(ops.concat((x, skips[len(skips) - 1 - i]), 1), emb, context)
        return self.out(x).astype(ms.float32)
