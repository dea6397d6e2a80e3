"""Write diffusers_folder/: diffusers' and transformers' own conversion of a small checkpoint in Stability's layout.

    pip install torch diffusers transformers pydantic pyyaml
    (made with torch 2.13.0, diffusers 0.39.0, transformers 4.57.1)
    python -m tests.golden.make_diffusers_folder

The source holds tests.weights.synthetic's values for the configuration SMALL. The UNet is saved in shards with an index, the
VAE and text encoders whole. The models are loaded strictly, so every name and shape in the folder is diffusers'."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipeline.models.config import CLIPConfig, SDXLConfig, UNetConfig, VAEConfig
from pipeline.weights import layout
from pipeline.weights.names import PREFIX
from tests.weights import synthetic

# As small as shows every kind of block: a level without attention, one of depth 1 and one of depth 2.
SMALL = SDXLConfig(
    unet=UNetConfig(4, (1, 2, 3), (0, 1, 2), context_dim=24, vector_dim=40, head_dim=4, norm_groups=2),
    vae=VAEConfig(channels=4, channel_mult=(1, 2, 2, 4), num_res_blocks=2, norm_groups=2),
    clip_l=CLIPConfig(width=8, layers=2, heads=2, vocab_size=32),
    clip_g=CLIPConfig(width=16, layers=2, heads=2, vocab_size=32, projection_dim=12),
)


def unet() -> UNet2DConditionModel:
    c = SMALL.unet
    return UNet2DConditionModel(
        in_channels=c.latent_channels,
        out_channels=c.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=tuple(c.model_channels * m for m in c.channel_mult),
        transformer_layers_per_block=(1, *c.transformer_depth[1:]),
        attention_head_dim=tuple(max(1, c.model_channels * m // c.head_dim) for m in c.channel_mult),
        cross_attention_dim=c.context_dim,
        norm_num_groups=c.norm_groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=c.vector_dim,
    )


def vae() -> AutoencoderKL:
    c = SMALL.vae
    levels = len(c.channel_mult)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(c.channels * m for m in c.channel_mult),
        layers_per_block=c.num_res_blocks,
        latent_channels=c.latent_channels,
        norm_num_groups=c.norm_groups,
    )


def clip(config: CLIPConfig, cls: type) -> torch.nn.Module:
    return cls(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context_length,
            projection_dim=config.projection_dim or config.width,
        )
    )


def save(model: torch.nn.Module, weights: dict, folder: Path, **options) -> None:
    model.half().load_state_dict(weights, strict=True)
    model.save_pretrained(folder, safe_serialization=True, **options)
    (folder / "config.json").unlink()


def main() -> None:
    source = {
        name: torch.from_numpy(synthetic.bits(name, shape, "float16").copy())
        for name, shape in layout.shapes(SMALL).items()
    }
    out = Path(__file__).parent / "diffusers_folder"
    model = unet()
    save(model, convert_ldm_unet_checkpoint(source, model.config), out / "unet", max_shard_size="60KB")
    model = vae()
    save(model, convert_ldm_vae_checkpoint(source, model.config), out / "vae")
    model = clip(SMALL.clip_l, CLIPTextModel)
    save(model, convert_ldm_clip_checkpoint(source, PREFIX["clip_l"] + "transformer."), out / "text_encoder")
    model = clip(SMALL.clip_g, CLIPTextModelWithProjection)
    save(model, convert_open_clip_checkpoint(model, source, PREFIX["clip_g"] + "model."), out / "text_encoder_2")


if __name__ == "__main__":
    main()
