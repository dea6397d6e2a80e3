"""The diffusers folder layout: from which of its tensors each tensor of Stability's layout is made.

Names follow diffusers' `UNet2DConditionModel` and `AutoencoderKL` and transformers' `CLIPTextModel` and
`CLIPTextModelWithProjection`."""

import re
from dataclasses import dataclass

from pipeline.models.config import SDXLConfig, UNetConfig, VAEConfig
from pipeline.weights.layout import Shape

FOLDER = {"unet": "unet", "clip_l": "text_encoder", "clip_g": "text_encoder_2", "vae": "vae"}


@dataclass(frozen=True)
class Recipe:
    """How a tensor is made of the source's: `parts` joined along the first axis, each of one of `shapes`.

    No parts: the source never has it (see source.py)."""

    parts: tuple[str, ...]
    shapes: tuple[Shape, ...]
    transposed: bool = False


def recipe(part: str, name: str, shape: Shape, config: SDXLConfig) -> Recipe:
    """For one component's tensor: `name` is Stability's without the component's prefix, `shape` the layout's."""
    if part == "unet":
        return Recipe((_unet(name, config.unet),), (shape,))
    if part == "vae":
        return Recipe((_vae(name, config.vae),), vae_shapes(name, shape))
    if part == "clip_l":
        return Recipe((name.removeprefix("transformer."),), (shape,))
    return _clip_g(name, shape)


def text_module(part: str, module: str) -> str:
    """transformers' name of a layer of a text encoder; of bigG's joined projections each by itself, …attn.q_proj."""
    if part == "clip_l":
        return module.removeprefix("transformer.")
    layer, rest = re.fullmatch(r"model\.transformer\.resblocks\.(\d+)\.(.+)", f"{module}.weight").groups()
    return _clip_g_module(layer, rest).removesuffix(".weight")


def vae_shapes(name: str, shape: Shape) -> tuple[Shape, ...]:
    """The shapes that files have for a tensor of the VAE, `shape` being the layout's.

    Attention is 1x1 convolutions in Stability's VAE and in diffusers' old files, Linear in diffusers' present ones and
    in single files made of those; the bytes are the same."""
    return (shape, shape[:2]) if ".attn_1." in name and len(shape) == 4 else (shape,)


def current(part: str, name: str) -> str:
    """A tensor's name in the folder of one component -> that which `recipe` has.

    The VAE's attention had other names before diffusers 0.15; CLIPTextModel has lost its `text_model.` in
    transformers 5.6."""
    if part in ("clip_l", "clip_g"):
        return re.sub(r"^(?=(?:embeddings|encoder|final_layer_norm)\.)", "text_model.", name)
    if part == "vae":
        old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
        return re.sub(
            r"(mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.", lambda m: f"{m[1]}{old[m[2]]}.", name
        )
    return name


def _replace(name: str, replacements: dict[str, str]) -> str:
    """Replace the start of `name` by the first entry that is one, up to a dot."""
    for old, new in replacements.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    return name


_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.1": "mid_block.attentions.0",
}
_UNET_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _unet(name: str, config: UNetConfig) -> str:
    if (replaced := _replace(name, _UNET_ENDS)) != name:
        return replaced
    if match := re.fullmatch(r"middle_block\.(0|2)\.(.+)", name):
        return f"mid_block.resnets.{int(match[1]) // 2}.{_replace(match[2], _UNET_RESIDUAL)}"
    side, index, module, rest = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", name).groups()
    # Stability numbers a side's blocks through; a level has its residual blocks and then, going down, the downsampler.
    if side == "input":
        level, block = divmod(int(index) - 1, config.num_res_blocks + 1)
        level_name, sampler = f"down_blocks.{level}", {"op": "downsamplers.0.conv"}
    else:
        level, block = divmod(int(index), config.num_res_blocks + 1)
        level_name, sampler = f"up_blocks.{level}", {"conv": "upsamplers.0.conv"}
    if (replaced := _replace(rest, sampler)) != rest:
        return f"{level_name}.{replaced}"
    if module == "0":
        return f"{level_name}.resnets.{block}.{_replace(rest, _UNET_RESIDUAL)}"
    return f"{level_name}.attentions.{block}.{rest}"


_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _vae(name: str, config: VAEConfig) -> str:
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(block|attn)_(\d)\.(.+)", name):
        side, kind, number, rest = match.groups()
        if kind == "block":
            return f"{side}.mid_block.resnets.{int(number) - 1}.{rest}"
        return f"{side}.mid_block.attentions.0.{_replace(rest, _VAE_ATTENTION)}"
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(.+)", name):
        side, level, rest = match.groups()
        if side == "decoder.up":  # Stability counts from the finest level, diffusers in the order of use
            level = len(config.channel_mult) - 1 - int(level)
        rest = _replace(rest, {"downsample.conv": "downsamplers.0.conv", "upsample.conv": "upsamplers.0.conv"})
        rest = re.sub(r"^block\.(\d+)\.", r"resnets.\1.", rest).replace("nin_shortcut", "conv_shortcut")
        return f"{side}_blocks.{level}.{rest}"
    return name.replace("norm_out", "conv_norm_out")


_CLIP_G_ENDS = {
    "model.token_embedding": "text_model.embeddings.token_embedding",
    "model.ln_final": "text_model.final_layer_norm",
}
_CLIP_G_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn": "self_attn",
}


def _clip_g(name: str, shape: Shape) -> Recipe:
    if name == "model.logit_scale":
        return Recipe((), (shape,))
    if name == "model.positional_embedding":
        return Recipe(("text_model.embeddings.position_embedding.weight",), (shape,))
    if name == "model.text_projection":
        return Recipe(("text_projection.weight",), (shape[::-1],), transposed=True)
    match = re.fullmatch(r"model\.transformer\.resblocks\.(\d+)\.(.+)", name)
    if match is None:
        return Recipe((_replace(name, _CLIP_G_ENDS),), (shape,))
    layer, rest = f"text_model.encoder.layers.{match[1]}", match[2]
    if joined := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
        parts = tuple(f"{layer}.self_attn.{p}_proj.{joined[1]}" for p in "qkv")
        return Recipe(parts, ((shape[0] // 3, *shape[1:]),))
    return Recipe((_clip_g_module(match[1], rest),), (shape,))


def _clip_g_module(layer: str, rest: str) -> str:
    return f"text_model.encoder.layers.{layer}.{_replace(rest, _CLIP_G_LAYER)}"
