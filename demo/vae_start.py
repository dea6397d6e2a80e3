"""Where the demo's VAE starts: an autoencoder that keeps the mean colour of each 8×8 block, and learns the rest.

From random weights it spends most of the little time that a CPU has in learning that, because the norms before the
two last convolutions take the level of a flat picture away. Here every residual branch ends in zeros, and red, green
and blue go through the shortcuts untouched. The last norms leave them as they are by channels of plus and minus LEVEL
beside them in their group, and silu(x) - silu(-x) = x undoes the last activation."""

import numpy as np

from pipeline.models.config import VAEConfig

LEVEL = 8.0
COLORS = 3
BLUR = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
MEAN = np.array([[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]])  # of 2×2 pixels: the padding is below and right


def start(weights: dict[str, np.ndarray], config: VAEConfig) -> dict[str, np.ndarray]:
    """Random initial weights (the VAE's own names) → the weights to start from, of the same names and shapes."""
    weights = {name: value.copy() for name, value in weights.items()}
    center = np.zeros((3, 3))
    center[1, 1] = 1

    def carry(layer: str, kernel: np.ndarray) -> None:
        """Let the layer's first channels be those of its input, through `kernel`."""
        weights[f"{layer}.weight"][:COLORS] = 0
        for color in range(COLORS):
            weights[f"{layer}.weight"][color, color] = kernel
        weights[f"{layer}.bias"][:COLORS] = 0

    def signs(layer: str, channels: int) -> list[tuple[int, int]]:
        """Let each colour stand with both signs in a group with +LEVEL and -LEVEL; → the two places of each."""
        width = channels // config.norm_groups
        places = []
        for color in range(COLORS):
            first = color * width
            weights[f"{layer}.weight"][first : first + width] = 0
            weights[f"{layer}.bias"][first : first + width] = 0
            weights[f"{layer}.bias"][first : first + 2] = LEVEL, -LEVEL
            weights[f"{layer}.weight"][first + 2 : first + 4, color, 0, 0] = 1, -1
            places.append((first + 2, first + 3))
        return places

    def join(layer: str, places: list[tuple[int, int]], channels: int) -> None:
        """Let the layer's first outputs be the colours that `signs` has put at `places`, after the norm and SiLU."""
        deviation = LEVEL * np.sqrt(2 / (channels // config.norm_groups))  # of a group, about
        weights[f"{layer}.weight"][:COLORS] = 0
        weights[f"{layer}.bias"][:COLORS] = 0
        for color, (plus, minus) in enumerate(places):
            weights[f"{layer}.weight"][color, [plus, minus], 1, 1] = deviation, -deviation

    for name in weights:
        if name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight", "proj_out.bias")):
            weights[name][:] = 0
    levels, last = len(config.channel_mult), config.channels * config.channel_mult[-1]
    latent = config.latent_channels

    carry("encoder.conv_in", center)
    for level in range(levels - 1):
        carry(f"encoder.down.{level}.downsample.conv", MEAN)
        if 0 < level and f"encoder.down.{level}.block.0.nin_shortcut.weight" in weights:
            carry(f"encoder.down.{level}.block.0.nin_shortcut", np.ones((1, 1)))
    join("encoder.conv_out", signs(f"encoder.down.{levels - 1}.block.0.nin_shortcut", last), last)
    weights["quant_conv.weight"][:, :, 0, 0] = np.eye(2 * latent)
    weights["quant_conv.bias"][:] = [0] * latent + [-6] * latent

    weights["post_quant_conv.weight"][:, :, 0, 0] = np.eye(latent)
    weights["post_quant_conv.bias"][:] = 0
    carry("decoder.conv_in", center)
    for level in range(levels - 1, 0, -1):
        carry(f"decoder.up.{level}.upsample.conv", BLUR)
        if f"decoder.up.{level}.block.0.nin_shortcut.weight" in weights:
            carry(f"decoder.up.{level}.block.0.nin_shortcut", np.ones((1, 1)))
    join("decoder.conv_out", signs("decoder.up.0.block.0.nin_shortcut", config.channels), config.channels)
    return weights
