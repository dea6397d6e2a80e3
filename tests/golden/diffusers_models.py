"""diffusers' and transformers' models of a configuration of SDXL, with the weights of a checkpoint in Stability's layout
by their own conversion. Needs PyTorch; for the scripts beside it."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipeline.models.config import CLIPConfig, SDXLConfig
from pipeline.weights.names import PREFIX

Weights = dict[str, torch.Tensor]


def models(config: SDXLConfig, source: Weights) -> dict[str, torch.nn.Module]:
    """By their folders' names, as float32; all tensors are loaded strictly. `source`: Stability's names -> tensors."""
    unet, vae, small, large = _unet(config), _vae(config), _clip(config.clip_l), _clip(config.clip_g)
    found = {
        "unet": (unet, convert_ldm_unet_checkpoint(dict(source), unet.config)),
        "vae": (vae, convert_ldm_vae_checkpoint(dict(source), vae.config)),
        "text_encoder": (small, convert_ldm_clip_checkpoint(dict(source), PREFIX["clip_l"] + "transformer.")),
        "text_encoder_2": (large, convert_open_clip_checkpoint(large, dict(source), PREFIX["clip_g"] + "model.")),
    }
    for model, weights in found.values():
        model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    return {name: model.eval() for name, (model, _) in found.items()}


def _unet(config: SDXLConfig) -> UNet2DConditionModel:
    c, pooled = config.unet, config.clip_g.projection_dim
    return UNet2DConditionModel(
        in_channels=c.latent_channels,
        out_channels=c.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=tuple(c.model_channels * m for m in c.channel_mult),
        layers_per_block=c.num_res_blocks,
        transformer_layers_per_block=(1, *c.transformer_depth[1:]),
        attention_head_dim=tuple(max(1, c.model_channels * m // c.head_dim) for m in c.channel_mult),
        cross_attention_dim=c.context_dim,
        norm_num_groups=c.norm_groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=(c.vector_dim - pooled) // 6,
        projection_class_embeddings_input_dim=c.vector_dim,
    )


def _vae(config: SDXLConfig) -> AutoencoderKL:
    c = config.vae
    levels = len(c.channel_mult)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(c.channels * m for m in c.channel_mult),
        layers_per_block=c.num_res_blocks,
        latent_channels=c.latent_channels,
        norm_num_groups=c.norm_groups,
        scaling_factor=c.scaling_factor,
    )


def _clip(config: CLIPConfig) -> CLIPTextModel | CLIPTextModelWithProjection:
    """With what SDXL's two have: quick GELU in the first, a projection and 0 for padding in the second."""
    options = {"hidden_act": "quick_gelu", "pad_token_id": config.vocab_size - 1}
    if config.projection_dim:
        options = {"hidden_act": "gelu", "projection_dim": config.projection_dim, "pad_token_id": 0}
    kind = CLIPTextModelWithProjection if config.projection_dim else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context_length,
            bos_token_id=config.vocab_size - 2,
            eos_token_id=config.vocab_size - 1,
            **options,
        )
    )
