"""SDXL's autoencoder: Latent Diffusion's KL autoencoder (arXiv 2112.10752), under the module names of Stability's file.

Runs in float32 (or bfloat16): in float16 SDXL's own weights overflow to NaN. `layers` is the module whose layers a cell
is made of: models/layers.py or models/cpu/layers.py."""

from types import ModuleType

import pipeline.device  # noqa: F401  (sets the environment of MindSpore before its import)

from mindspore import nn, ops

from pipeline.models import forms
from pipeline.models.config import VAEConfig


class ResnetBlock(nn.Cell):
    def __init__(self, layers: ModuleType, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = layers.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = layers.Conv(in_channels, out_channels, 3)
        self.norm2 = layers.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = layers.Conv(out_channels, out_channels, 3)
        self.nin_shortcut = layers.Conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def construct(self, x):
        h = self.conv1(ops.silu(self.norm1(x)))
        h = self.conv2(ops.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Cell):
    """Self-attention with one head as wide as the channels, over all places of the picture."""

    def __init__(self, layers: ModuleType, channels: int, groups: int, attention: str):
        super().__init__()
        self.norm = layers.GroupNorm(groups, channels, eps=1e-6)
        self.q = layers.Conv(channels, channels, 1)
        self.k = layers.Conv(channels, channels, 1)
        self.v = layers.Conv(channels, channels, 1)
        self.attention = layers.make_attention(attention, 1, channels)
        self.proj_out = layers.Conv(channels, channels, 1)

    def places(self, x):
        """(b, c, h, w) -> (b, h w, c)"""
        b, c, height, width = x.shape
        return x.reshape(b, c, height * width).swapaxes(1, 2)

    def construct(self, x):
        b, c, height, width = x.shape
        h = self.norm(x)
        q, k, v = self.places(self.q(h)), self.places(self.k(h)), self.places(self.v(h))
        h = self.attention(q, k, v).swapaxes(1, 2).reshape(b, c, height, width)
        return x + self.proj_out(h)


class Middle(nn.Cell):
    def __init__(self, layers: ModuleType, channels: int, groups: int, attention: str):
        super().__init__()
        self.block_1 = ResnetBlock(layers, channels, channels, groups)
        self.attn_1 = AttnBlock(layers, channels, groups, attention)
        self.block_2 = ResnetBlock(layers, channels, channels, groups)

    def construct(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Cell):
    def __init__(self, layers: ModuleType, channels: int):
        super().__init__()
        # one row below and one column to the right, as Latent Diffusion pads; not one on every side
        self.conv = layers.Conv(channels, channels, 3, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x):
        return self.conv(x)


class Upsample(nn.Cell):
    def __init__(self, layers: ModuleType, channels: int):
        super().__init__()
        self.upsample = layers.UpsampleNearest()
        self.conv = layers.Conv(channels, channels, 3)

    def construct(self, x):
        return self.conv(self.upsample(x))


class DownLevel(nn.Cell):
    def __init__(self, layers: ModuleType, in_channels: int, out_channels: int, blocks: int, groups: int, last: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.CellList([ResnetBlock(layers, a, b, groups) for a, b in zip(widths, widths[1:])])
        self.downsample = nn.Identity() if last else Downsample(layers, out_channels)

    def construct(self, x):
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class UpLevel(nn.Cell):
    def __init__(self, layers: ModuleType, in_channels: int, out_channels: int, blocks: int, groups: int, last: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.CellList([ResnetBlock(layers, a, b, groups) for a, b in zip(widths, widths[1:])])
        self.upsample = nn.Identity() if last else Upsample(layers, out_channels)

    def construct(self, x):
        for block in self.block:
            x = block(x)
        return self.upsample(x)


class Encoder(nn.Cell):
    def __init__(self, layers: ModuleType, config: VAEConfig, attention: str):
        super().__init__()
        widths = [config.channels] + [config.channels * mult for mult in config.channel_mult]
        levels = len(config.channel_mult)
        groups = config.norm_groups
        self.conv_in = layers.Conv(3, config.channels, 3)
        self.down = nn.CellList(
            [
                DownLevel(layers, widths[i], widths[i + 1], config.num_res_blocks, groups, last=i == levels - 1)
                for i in range(levels)
            ]
        )
        self.mid = Middle(layers, widths[-1], groups, attention)
        self.norm_out = layers.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = layers.Conv(widths[-1], 2 * config.latent_channels, 3)

    def construct(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(ops.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Cell):
    def __init__(self, layers: ModuleType, config: VAEConfig, attention: str):
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        widths.append(widths[-1])
        levels = len(config.channel_mult)
        groups = config.norm_groups
        self.conv_in = layers.Conv(config.latent_channels, widths[-1], 3)
        self.mid = Middle(layers, widths[-1], groups, attention)
        # up.0 is the level of full resolution, so the levels run from the last to the first
        self.up = nn.CellList(
            [
                UpLevel(layers, widths[i + 1], widths[i], config.num_res_blocks + 1, groups, last=i == 0)
                for i in range(levels)
            ]
        )
        self.norm_out = layers.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = layers.Conv(widths[0], 3, 3)

    def construct(self, x):
        x = self.mid(self.conv_in(x))
        for level in self.up[::-1]:
            x = level(x)
        return self.conv_out(ops.silu(self.norm_out(x)))


class VAEEncoder(nn.Cell):
    def __init__(self, config: VAEConfig, attention: str = "tiled", layers: ModuleType | None = None):
        super().__init__()
        layers = layers or forms.chosen()
        self.encoder = Encoder(layers, config, attention)
        self.quant_conv = layers.Conv(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def construct(self, pixels):
        """pixels (b, 3, H, W) in [-1, 1] -> moments (b, 8, H/8, W/8): mean, then log variance, both unscaled."""
        return self.quant_conv(self.encoder(pixels))


class VAEDecoder(nn.Cell):
    def __init__(self, config: VAEConfig, attention: str = "tiled", layers: ModuleType | None = None):
        super().__init__()
        layers = layers or forms.chosen()
        self.post_quant_conv = layers.Conv(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(layers, config, attention)

    def construct(self, latents):
        """latents (b, 4, h, w), unscaled (already divided by the scaling factor) -> pixels (b, 3, 8h, 8w)"""
        return self.decoder(self.post_quant_conv(latents))
