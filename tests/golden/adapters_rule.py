"""Layers, adapters and inputs of the golden values of adapters, by a rule that needs NumPy alone."""

import numpy as np

from pipeline.models.config import TINY, CLIPConfig, SDXLConfig, UNetConfig
from pipeline.weights.adapters import kinds
from tests.golden import rule

RANK, ALPHA, FACTOR = 4, 2.0, -1
LAYERS = {"linear": (64, 96), "conv": (32, 48, 3, 3)}  # shapes of weights; lokr's second part is low-rank in one alone
# The smallest that has every kind of layer of SDXL's; of heads, widths and levels no two are the same
UNET = UNetConfig(
    16, (1, 2), (0, 1), context_dim=24, vector_dim=40 + 6 * 256, head_dim=16, num_res_blocks=1, norm_groups=8
)
# SDXL's depths and a tenth of its widths, as kohya's scripts build their UNet; and the run in which they write files of it
KOHYA = SDXLConfig(
    unet=UNetConfig(32, (1, 2, 4), (0, 2, 10), context_dim=2048, vector_dim=96 + 6 * 256),
    vae=TINY.vae,
    clip_l=CLIPConfig(width=64, layers=3, heads=2, vocab_size=64),
    clip_g=CLIPConfig(width=96, layers=2, heads=3, vocab_size=64, projection_dim=96),
)
# CLIP-L's last block, which SDXL does not use: kohya's adapters there never change from what does nothing
KOHYA_UNUSED = f"lora_te1_text_model_encoder_layers_{KOHYA.clip_l.layers - 1}_"
KOHYA_BASE, KOHYA_PICTURES, KOHYA_TEXT_RATE = "base.safetensors", 8, 5e-05
KOHYA_ARGUMENTS = {
    "resolution": 64, "network_dim": RANK, "network_alpha": ALPHA, "learning_rate": 0.001, "unet_lr": 0.001,
    "lr_scheduler": "cosine", "lr_warmup_steps": 2, "optimizer_type": "AdamW", "max_train_steps": 6, "train_batch_size": 4,
    "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "mixed_precision": "bf16", "seed": 3, "noise_offset": 0.05,
    "min_snr_gamma": 5.0, "caption_dropout_rate": 0.1, "save_precision": "float", "save_model_as": "safetensors",
    "max_data_loader_n_workers": 0,
}  # fmt: skip
INPUTS = {"linear": (2, 5, 96), "conv": (2, 48, 6, 4)}


def weight(layer: str) -> np.ndarray:
    return rule.weight(f"adapters.{layer}.weight", LAYERS[layer])


def bias(layer: str) -> np.ndarray:
    return rule.weight(f"adapters.{layer}.bias", LAYERS[layer][:1])


def x(layer: str) -> np.ndarray:
    return rule.normal(f"adapters.{layer}.x", INPUTS[layer])


def direction(layer: str, shape: tuple[int, ...]) -> np.ndarray:
    """The scalar whose gradients are kept is the output's product with this."""
    return rule.normal(f"adapters.{layer}.direction", shape)


def parts(kind: str, layer: str) -> dict[str, np.ndarray]:
    return parts_of(kind, layer, weight(layer))


def parts_of(kind: str, layer: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """As after some training: no part is zero, and magnitudes are not the weight's."""
    found = {}
    for part, shape in kinds.shapes(kind, weight.shape, RANK, FACTOR).items():
        value = rule.normal(f"adapters.{kind}.{layer}.{part}", shape)
        if part == kinds.MAGNITUDE:
            found[part] = kinds.norms(weight).reshape(shape) * (1 + np.float32(0.1) * value)
        else:
            found[part] = np.float32(0.3) * value
    return found
