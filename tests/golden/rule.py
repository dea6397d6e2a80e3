"""Weights and inputs of the golden values, by a rule that needs NumPy alone: so only outputs are stored. Used by
make_models.py, where PyTorch computes the outputs, and by the tests, where MindSpore must find them again."""

import hashlib

import numpy as np

from pipeline.models.config import TINY, CLIPConfig, SDXLConfig, UNetConfig, VAEConfig

# SDXL's proportions in a smaller width: heads of 64, groups of 32, two residual blocks a level, and as many transformer
# blocks as tell the levels apart. The projection is not square, so a transposed one can't pass.
SMALL = SDXLConfig(
    unet=UNetConfig(
        model_channels=64,
        channel_mult=(1, 2, 4),
        transformer_depth=(0, 2, 3),
        context_dim=128 + 192,
        vector_dim=160 + 6 * 256,
    ),
    vae=VAEConfig(channels=32, channel_mult=(1, 2, 4, 4)),
    clip_l=CLIPConfig(width=128, layers=4, heads=2, vocab_size=512),
    clip_g=CLIPConfig(width=192, layers=5, heads=3, vocab_size=512, projection_dim=160),
)
CONFIGS = {"tiny": TINY, "small": SMALL}
# The least UNet with every kind of block, on the way down, in the middle and up: of what a graph with its gradients is
# compared, which takes long to compile.
MINI = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    transformer_depth=(0, 1),
    context_dim=24,
    vector_dim=16 + 6 * 256,
    head_dim=32,
    num_res_blocks=1,
    norm_groups=8,
)
BATCH = 2
LATENT = (16, 8)  # height, width: not square, so that swapped sides can't pass
PIXELS = (64, 32)
TIMESTEPS = (3, 871)
TIME_IDS = ((640, 480, 16, 0, 512, 384), (300, 1024, 0, 93, 256, 768))


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 of a generator seeded by the name."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value of the parameter with this name in Stability's file, sized so that activations stay near 1."""
    value = normal(name, shape)
    if len(shape) == 0:
        return value
    if len(shape) == 1:
        return 1 + 0.2 * value if name.endswith(".weight") else 0.1 * value
    if name.endswith(("embedding.weight", "positional_embedding")):
        return 0.3 * value
    fan_in = shape[0] if name.endswith("text_projection") else int(np.prod(shape[1:]))
    return value / np.float32(np.sqrt(fan_in))


def probe(name: str, gradient: np.ndarray) -> np.ndarray:
    """What is kept of a parameter's gradient: its length, and its product with a direction of the name's own."""
    gradient = gradient.astype(np.float64).ravel()
    direction = normal("probe " + name, gradient.shape)
    return np.array([np.linalg.norm(gradient), gradient @ direction], np.float32)


def stability(name: str) -> str:
    """MindSpore's name of a parameter to Stability's."""
    for end, other in ((".gamma", ".weight"), (".beta", ".bias"), (".embedding_table", ".weight")):
        name = name.removesuffix(end) + other if name.endswith(end) else name
    return name


def ids(vocab_size: int, padding: str) -> np.ndarray:
    """(2, 77) int32: start, words, end (the largest id), then the end again (CLIP-L) or 0 (OpenCLIP)."""
    rows = np.full((BATCH, 77), vocab_size - 1 if padding == "end" else 0, np.int32)
    for row, length in enumerate((5, 75)):
        words = np.random.Generator(np.random.Philox(key=row)).integers(1, vocab_size - 2, length)
        rows[row, : length + 2] = [vocab_size - 2, *words, vocab_size - 1]
    return rows
