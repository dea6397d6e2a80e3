"""The two sizes of SDXL that the same code builds: `sdxl-base` and `tiny`. Plain numbers; imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """Table 1 of SDXL (arXiv 2307.01952). Level i has `model_channels * channel_mult[i]` channels and
    `transformer_depth[i]` transformer blocks after each of its residual blocks (0: no attention at that level);
    the middle block has the last level's depth."""

    model_channels: int
    channel_mult: tuple[int, ...]
    transformer_depth: tuple[int, ...]
    context_dim: int  # width of the joined text hidden states
    vector_dim: int  # pooled text embedding, and six sinusoids of 256 for the size and crop numbers
    head_dim: int = 64
    num_res_blocks: int = 2
    norm_groups: int = 32
    latent_channels: int = 4


@dataclass(frozen=True)
class VAEConfig:
    """Latent Diffusion's KL autoencoder (arXiv 2112.10752); every level but the last halves height and width."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int = 2
    norm_groups: int = 32
    latent_channels: int = 4
    scaling_factor: float = 0.13025

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class CLIPConfig:
    """A CLIP text transformer (arXiv 2103.00020). The feed-forward layer is four times as wide as `width`."""

    width: int
    layers: int
    heads: int
    vocab_size: int = 49408
    context_length: int = 77
    projection_dim: int | None = None  # only OpenCLIP's pooled output is used, so only it has one


@dataclass(frozen=True)
class SDXLConfig:
    unet: UNetConfig
    vae: VAEConfig
    clip_l: CLIPConfig
    clip_g: CLIPConfig

    def tokens(self, chunks: int) -> int:
        """Of a caption's joined hidden states: 75 of each chunk, begin and end."""
        return chunks * (self.clip_l.context_length - 2) + 2

    def text_bytes(self, chunks: int) -> int:
        """Of a caption as it is cached: hidden states in float16, pooled text in float32."""
        return 2 * self.tokens(chunks) * self.unet.context_dim + 4 * self.clip_g.projection_dim


SDXL_BASE = SDXLConfig(
    unet=UNetConfig(
        model_channels=320,
        channel_mult=(1, 2, 4),
        transformer_depth=(0, 2, 10),
        context_dim=768 + 1280,
        vector_dim=1280 + 6 * 256,
    ),
    vae=VAEConfig(channels=128, channel_mult=(1, 2, 4, 4)),
    clip_l=CLIPConfig(width=768, layers=12, heads=12),
    clip_g=CLIPConfig(width=1280, layers=32, heads=20, projection_dim=1280),
)

TINY = SDXLConfig(
    unet=UNetConfig(
        model_channels=32,
        channel_mult=(1, 2, 4),
        transformer_depth=(0, 1, 1),
        context_dim=64 + 96,
        vector_dim=96 + 6 * 256,
        head_dim=32,
        norm_groups=8,
    ),
    vae=VAEConfig(channels=16, channel_mult=(1, 2, 4, 8), num_res_blocks=1, norm_groups=4),
    clip_l=CLIPConfig(width=64, layers=3, heads=2, vocab_size=1024),
    clip_g=CLIPConfig(width=96, layers=3, heads=3, vocab_size=1024, projection_dim=96),
)

CONFIGS = {"sdxl-base": SDXL_BASE, "tiny": TINY}
