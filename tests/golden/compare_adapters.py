"""Draw with diffusers: the demo's base and our adapter by `load_lora_weights`, against what the sample stage drew.

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.1 peft==0.21.2 pillow; then in
a workspace that has run all stages with train.adapter lora or dora (diffusers knows no other)

    python -m tests.golden.compare_adapters "a large red circle on a dark blue background" ...   # sample.prompts

prints the PSNR of each picture to ours, and to that of the base alone. With merged.safetensors rounded to float16 the
pictures differ by that; merge.dtype float32 leaves it out."""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.models.config import TINY, CLIPConfig
from pipeline.weights.names import PREFIX

STEPS, GUIDANCE, SIDE, SEED = 40, 5.0, 64, 0  # params.yaml's
BASE, ADAPTER, DRAWN = Path("data/base/tiny_sdxl.safetensors"), Path("outs/train/weights"), Path("outs/sample")


def unet(source: dict) -> UNet2DConditionModel:
    c = TINY.unet
    model = UNet2DConditionModel(
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
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=c.vector_dim,
        sample_size=SIDE // TINY.vae.factor,
    )
    return loaded(model, convert_ldm_unet_checkpoint(source, model.config))


def vae(source: dict) -> AutoencoderKL:
    c = TINY.vae
    levels = len(c.channel_mult)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(c.channels * m for m in c.channel_mult),
        layers_per_block=c.num_res_blocks,
        latent_channels=c.latent_channels,
        norm_num_groups=c.norm_groups,
        scaling_factor=c.scaling_factor,
    )
    return loaded(model, convert_ldm_vae_checkpoint(source, model.config))


def clip(config: CLIPConfig, kind: type, tokenizer: CLIPTokenizer) -> torch.nn.Module:
    return kind(
        CLIPTextConfig(
            vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=4 * config.width,
            num_hidden_layers=config.layers, num_attention_heads=config.heads,
            max_position_embeddings=config.context_length, projection_dim=config.projection_dim or config.width,
            hidden_act="quick_gelu" if kind is CLIPTextModel else "gelu", eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )  # fmt: skip


def loaded(model: torch.nn.Module, weights: dict) -> torch.nn.Module:
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    return model.eval()


def noise(number: int) -> np.ndarray:
    """As pipeline/sampling/draw.py's noise_of."""
    draw = np.random.Philox(key=np.array([SEED, number], np.uint64), counter=np.zeros(4, np.uint64))
    side = SIDE // TINY.vae.factor
    return np.random.Generator(draw).standard_normal((4, side, side), np.float32)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b).mean()
    return 10 * np.log10(255**2 / error) if error else float("inf")


def pipe() -> StableDiffusionXLPipeline:
    source = load_file(BASE)
    tokenizers = [
        CLIPTokenizer("data/tokenizer/vocab.json", "data/tokenizer/merges.txt", pad_token=pad)
        for pad in ("<|endoftext|>", "!")
    ]
    large = clip(TINY.clip_g, CLIPTextModelWithProjection, tokenizers[1])
    small = clip(TINY.clip_l, CLIPTextModel, tokenizers[0])
    return StableDiffusionXLPipeline(
        vae=vae(source),
        unet=unet(source),
        text_encoder=loaded(small, convert_ldm_clip_checkpoint(source, PREFIX["clip_l"] + "transformer.")),
        text_encoder_2=loaded(large, convert_open_clip_checkpoint(large, source, PREFIX["clip_g"] + "model.")),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),  # fmt: skip
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def draw(made: StableDiffusionXLPipeline, prompt: str, number: int) -> np.ndarray:
    drawn = made(
        prompt, width=SIDE, height=SIDE, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        latents=torch.from_numpy(noise(number)[None]), output_type="np",
    )  # fmt: skip
    return np.round(drawn.images[0] * 255).astype(np.uint8)


def main() -> None:
    made = pipe()
    made.set_progress_bar_config(disable=True)
    prompts = sys.argv[1:]
    before = [draw(made, prompt, number) for number, prompt in enumerate(prompts)]
    made.load_lora_weights(ADAPTER, weight_name="adapter.safetensors")
    for number, prompt in enumerate(prompts):
        base, tuned = (np.asarray(Image.open(DRAWN / f"{number:02d}_{which}.png")) for which in ("base", "tuned"))
        after = draw(made, prompt, number)
        print(
            f"{prompt}: base {psnr(base, before[number]):.1f} dB, with the adapter {psnr(tuned, after):.1f} dB "
            f"(base and adapter: {psnr(base, tuned):.1f} dB)"
        )


if __name__ == "__main__":
    main()
