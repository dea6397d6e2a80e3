"""SDXL's UNet (arXiv 2307.01952, section 2.1), under the module names of Stability's file."""

import math

import pipeline.device
import mindspore as ms
import numpy as np
from mindspore import nn, ops

from pipeline.models import kernels
from pipeline.models.attention import make_attention
from pipeline.models.config import UNetConfig
from pipeline.models.layers import GEGLU, Conv, GroupNorm, LayerNorm, Linear, SiLU, SwapHeads, UpsampleNearest


class ResBlock(nn.Cell):
    def __init__(self, in_channels: int, emb_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.in_layers = nn.SequentialCell(
            GroupNorm(groups, in_channels, eps=1e-5), SiLU(), Conv(in_channels, out_channels, 3)
        )
        self.emb_layers = nn.SequentialCell(SiLU(), Linear(emb_channels, out_channels))
        self.out_layers = nn.SequentialCell(
            GroupNorm(groups, out_channels, eps=1e-5), SiLU(), nn.Identity(), Conv(out_channels, out_channels, 3)
        )
        self.skip_connection = Conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.add = kernels.AddChannels() if kernels.on_cpu() else ops.BiasAdd()

    def construct(self, x, emb):
        """x (b, in_channels, h, w), emb (b, emb_channels) -> (b, out_channels, h, w)"""
        h = self.in_layers(x)
        b, c, height, width = h.shape
        # one number added to each channel of each sample
        h = self.add(h.reshape(1, b * c, height, width), self.emb_layers(emb).reshape(b * c)).reshape(h.shape)
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Cell):
    def __init__(self, channels: int, context_dim: int, head_dim: int, attention: str, dtype: ms.Type):
        super().__init__()
        self.heads = channels // head_dim
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim, channels, bias=False)
        self.to_v = Linear(context_dim, channels, bias=False)
        self.swap = SwapHeads()
        self.attention = make_attention(attention, head_dim, dtype)
        self.to_out = nn.SequentialCell(Linear(channels, channels))

    def split(self, x):
        """(b, tokens, channels) -> (b, heads, tokens, head_dim)"""
        b, tokens, channels = x.shape
        return self.swap(x.reshape(b, tokens, self.heads, channels // self.heads))

    def construct(self, x, context):
        """x (b, tokens, channels), context (b, context tokens, context_dim) -> (b, tokens, channels)"""
        q = self.split(self.to_q(x))
        k = self.split(self.to_k(context))
        v = self.split(self.to_v(context))
        return self.to_out(self.swap(self.attention(q, k, v)).reshape(x.shape))


class FeedForward(nn.Cell):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.SequentialCell(GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels))

    def construct(self, x):
        return self.net(x)


class TransformerBlock(nn.Cell):
    @pipeline.device.lazy_inline
    def __init__(self, channels: int, context_dim: int, head_dim: int, attention: str, dtype: ms.Type):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, head_dim, attention, dtype)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context_dim, head_dim, attention, dtype)
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)

    def construct(self, x, context):
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Cell):
    """Transformer blocks over the places of the picture, which attend to each other and to the text."""

    def __init__(
        self,
        channels: int,
        depth: int,
        context_dim: int,
        head_dim: int,
        groups: int,
        attention: str,
        dtype: ms.Type,
    ):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.transformer_blocks = nn.CellList(
            [TransformerBlock(channels, context_dim, head_dim, attention, dtype) for _ in range(depth)]
        )
        self.proj_out = Linear(channels, channels)

    def construct(self, x, context):
        """x (b, channels, h, w), context (b, tokens, context_dim) -> (b, channels, h, w)"""
        b, c, height, width = x.shape
        h = self.proj_in(self.norm(x).reshape(b, c, height * width).swapaxes(1, 2))
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h).swapaxes(1, 2).reshape(b, c, height, width)


class Downsample(nn.Cell):
    def __init__(self, channels: int):
        super().__init__()
        self.op = Conv(channels, channels, 3, stride=2)

    def construct(self, x):
        return self.op(x)


class Upsample(nn.Cell):
    def __init__(self, channels: int):
        super().__init__()
        self.upsample = UpsampleNearest()
        self.conv = Conv(channels, channels, 3)

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


class UNet(nn.Cell):
    """`attention`: one of attention.KINDS. `compute_dtype`: what everything but norms and softmax is computed in.
    `recompute`: keep only the inputs of residual and transformer blocks for the backward pass and compute the rest
    again (gradient checkpointing). MindSpore 2.10.0's CPU backend computes them again and saves no memory by it."""

    def __init__(
        self,
        config: UNetConfig,
        attention: str = "tiled",
        compute_dtype: ms.Type = ms.float32,
        recompute: bool = False,
    ):
        super().__init__()
        self.model_channels = config.model_channels
        self.compute_dtype = compute_dtype
        groups, emb_channels = config.norm_groups, 4 * config.model_channels
        levels = len(config.channel_mult)

        def resblock(in_channels, out_channels):
            return ResBlock(in_channels, emb_channels, out_channels, groups)

        def transformer(channels, depth):
            if depth == 0:
                return None
            return SpatialTransformer(
                channels, depth, config.context_dim, config.head_dim, groups, attention, compute_dtype
            )

        self.time_embed = nn.SequentialCell(
            Linear(config.model_channels, emb_channels), SiLU(), Linear(emb_channels, emb_channels)
        )
        self.label_emb = nn.SequentialCell(
            nn.SequentialCell(Linear(config.vector_dim, emb_channels), SiLU(), Linear(emb_channels, emb_channels))
        )

        ch = config.model_channels
        blocks = [nn.SequentialCell(Conv(config.latent_channels, ch, 3))]
        skips = [ch]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                out = config.model_channels * mult
                blocks.append(Block(resblock(ch, out), transformer(out, config.transformer_depth[level]), None))
                ch = out
                skips.append(ch)
            if level < levels - 1:
                blocks.append(nn.SequentialCell(Downsample(ch)))
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
                        Upsample(out) if last and level > 0 else None,
                    )
                )
                ch = out
        self.output_blocks = nn.CellList(blocks)

        self.out = nn.SequentialCell(
            GroupNorm(groups, ch, eps=1e-5), SiLU(), Conv(ch, config.latent_channels, 3)
        )
        if recompute:
            for _, cell in self.cells_and_names():
                if isinstance(cell, (ResBlock, TransformerBlock)):
                    cell.recompute()

    def construct(self, x, timesteps, context, vector):
        """x (b, 4, h, w), timesteps (b,), context (b, tokens, context_dim), vector (b, vector_dim)
        -> (b, 4, h, w) float32. Height and width are multiples of 2 to the number of downsamplings."""
        dtype = self.compute_dtype
        x, context, vector = x.astype(dtype), context.astype(dtype), vector.astype(dtype)
        emb = self.time_embed(sinusoid(timesteps, self.model_channels).astype(dtype)) + self.label_emb(vector)
        skips = ()
        for block in self.input_blocks:
            x = block(x, emb, context) if isinstance(block, Block) else block(x)
            skips = skips + (x,)
        x = self.middle_block[0](x, emb)
        x = self.middle_block[1](x, context)
        x = self.middle_block[2](x, emb)
        for i, block in enumerate(self.output_blocks):
            x = block(ops.concat((x, skips[len(skips) - 1 - i]), 1), emb, context)
        return self.out(x).astype(ms.float32)
