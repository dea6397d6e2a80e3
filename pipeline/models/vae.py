"""SDXL's autoencoder: Latent Diffusion's KL autoencoder (arXiv 2112.10752), under the module names of Stability's file.

Runs in float32 (or bfloat16): in float16 SDXL's own weights overflow to NaN."""

import pipeline.device  # noqa: F401  (sets the environment of MindSpore before its import)
from mindspore import nn, ops

from pipeline.models.attention import make_attention
from pipeline.models.config import VAEConfig
from pipeline.models.layers import Conv, GroupNorm, UpsampleNearest


class ResnetBlock(nn.Cell):
    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = Conv(in_channels, out_channels, 3)
        self.norm2 = GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.nin_shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def construct(self, x):
        h = self.conv1(ops.silu(self.norm1(x)))
        h = self.conv2(ops.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Cell):
    """Self-attention with one head as wide as the channels, over all places of the picture."""

    def __init__(self, channels: int, groups: int, attention: str):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.q = Conv(channels, channels, 1)
        self.k = Conv(channels, channels, 1)
        self.v = Conv(channels, channels, 1)
        self.attention = make_attention(attention, channels)
        self.proj_out = Conv(channels, channels, 1)

    def construct(self, x):
        b, c, height, width = x.shape
        h = self.norm(x)
        q = self.q(h).reshape(b, 1, c, height * width).swapaxes(2, 3)
        k = self.k(h).reshape(b, 1, c, height * width).swapaxes(2, 3)
        v = self.v(h).reshape(b, 1, c, height * width).swapaxes(2, 3)
        h = self.attention(q, k, v).swapaxes(2, 3).reshape(b, c, height, width)
        return x + self.proj_out(h)


class Middle(nn.Cell):
    def __init__(self, channels: int, groups: int, attention: str):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups, attention)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def construct(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Cell):
    def __init__(self, channels: int):
        super().__init__()
        # one row below and one column to the right, as Latent Diffusion pads; not one on every side
        self.conv = Conv(channels, channels, 3, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x):
        return self.conv(x)


class Upsample(nn.Cell):
    def __init__(self, channels: int):
        super().__init__()
        self.upsample = UpsampleNearest()
        self.conv = Conv(channels, channels, 3)

    def construct(self, x):
        return self.conv(self.upsample(x))


class DownLevel(nn.Cell):
    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, last: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.CellList([ResnetBlock(a, b, groups) for a, b in zip(widths, widths[1:])])
        self.downsample = nn.Identity() if last else Downsample(out_channels)

    def construct(self, x):
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class UpLevel(nn.Cell):
    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, last: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.CellList([ResnetBlock(a, b, groups) for a, b in zip(widths, widths[1:])])
        self.upsample = nn.Identity() if last else Upsample(out_channels)

    def construct(self, x):
        for block in self.block:
            x = block(x)
        return self.upsample(x)


class Encoder(nn.Cell):
    def __init__(self, config: VAEConfig, attention: str):
        super().__init__()
        widths = [config.channels] + [config.channels * mult for mult in config.channel_mult]
        levels = len(config.channel_mult)
        groups = config.norm_groups
        self.conv_in = Conv(3, config.channels, 3)
        self.down = nn.CellList(
            [
                DownLevel(widths[i], widths[i + 1], config.num_res_blocks, groups, last=i == levels - 1)
                for i in range(levels)
            ]
        )
        self.mid = Middle(widths[-1], groups, attention)
        self.norm_out = GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, 3)

    def construct(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(ops.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Cell):
    def __init__(self, config: VAEConfig, attention: str):
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        widths.append(widths[-1])
        levels = len(config.channel_mult)
        groups = config.norm_groups
        self.conv_in = Conv(config.latent_channels, widths[-1], 3)
        self.mid = Middle(widths[-1], groups, attention)
        # up.0 is the level of full resolution, so the levels run from the last to the first
        self.up = nn.CellList(
            [
                UpLevel(widths[i + 1], widths[i], config.num_res_blocks + 1, groups, last=i == 0)
                for i in range(levels)
            ]
        )
        self.norm_out = GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = Conv(widths[0], 3, 3)

    def construct(self, x):
        x = self.mid(self.conv_in(x))
        for level in self.up[::-1]:
            x = level(x)
        return self.conv_out(ops.silu(self.norm_out(x)))


class VAEEncoder(nn.Cell):
    def __init__(self, config: VAEConfig, attention: str = "tiled"):
        super().__init__()
        self.encoder = Encoder(config, attention)
        self.quant_conv = Conv(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def construct(self, pixels):
        """pixels (b, 3, H, W) in [-1, 1] -> moments (b, 8, H/8, W/8): mean, then log variance, both unscaled."""
        return self.quant_conv(self.encoder(pixels))


class VAEDecoder(nn.Cell):
    def __init__(self, config: VAEConfig, attention: str = "tiled"):
        super().__init__()
        self.post_quant_conv = Conv(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config, attention)

    def construct(self, latents):
        """latents (b, 4, h, w), unscaled (already divided by the scaling factor) -> pixels (b, 3, 8h, 8w)"""
        return self.decoder(self.post_quant_conv(latents))
