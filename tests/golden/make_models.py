"""Write models_<config>.npz: what diffusers' and transformers' networks give for the weights and inputs of rule.py.

    pip install torch diffusers transformers        (made with torch 2.13.0, diffusers 0.39.0, transformers 4.57.1)
    python -m tests.golden.make_models

The mapping of Stability's names to theirs is written here for itself, apart from pipeline/weights, so that a mistake in
one shows."""

import re
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.golden import rule

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "nin_shortcut": "conv_shortcut",
}


def invert(module: torch.nn.Module, to_stability, prefix: str) -> None:
    """Give every parameter of `module` the rule's value for its Stability name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(rule.weight(prefix + to_stability(name), tuple(parameter.shape))))


def resnet(rest: str) -> str:
    inverse = {other: name for name, other in RESNET.items() if name != "nin_shortcut"}
    part, end = rest.rsplit(".", 1)
    return f"{inverse[part]}.{end}"


def unet_name(name: str, res_blocks: int = 2) -> str:
    """diffusers' UNet2DConditionModel -> Stability, of so many residual blocks at each level on the way down"""
    fixed = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    part, end = name.rsplit(".", 1)
    if part in fixed:
        return f"{fixed[part]}.{end}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        level, kind, i, rest = match.groups()
        block = 1 + (res_blocks + 1) * int(level) + int(i)
        return f"input_blocks.{block}.0.{resnet(rest)}" if kind == "resnets" else f"input_blocks.{block}.1.{rest}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(res_blocks + 1) * (1 + int(match[1]))}.0.op.{match[2]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, i, rest = match.groups()
        return f"middle_block.{2 * int(i)}.{resnet(rest)}" if kind == "resnets" else f"middle_block.1.{rest}"
    if match := re.fullmatch(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        level, kind, i, rest = match.groups()
        block = (res_blocks + 1) * int(level) + int(i)
        return f"output_blocks.{block}.0.{resnet(rest)}" if kind == "resnets" else f"output_blocks.{block}.1.{rest}"
    if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name):
        return f"output_blocks.{res_blocks + (res_blocks + 1) * int(match[1])}.2.conv.{match[2]}"
    raise KeyError(name)


def vae_name(name: str, levels: int) -> str:
    """diffusers' AutoencoderKL -> Stability"""
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for theirs, stability in (
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
    ):
        name = name.replace(f"mid_block.attentions.0.{theirs}.", f"mid.attn_1.{stability}.")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def unet_model(u) -> UNet2DConditionModel:
    """diffusers' UNet of UNetConfig `u` with the rule's weights."""
    widths = [u.model_channels * mult for mult in u.channel_mult]
    attends = [depth > 0 for depth in u.transformer_depth]
    model = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        layers_per_block=u.num_res_blocks,
        transformer_layers_per_block=[max(depth, 1) for depth in u.transformer_depth],
        attention_head_dim=[width // u.head_dim for width in widths],  # a number of heads, whatever it is called
        cross_attention_dim=u.context_dim,
        norm_num_groups=u.norm_groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=u.vector_dim,
    )
    invert(model, lambda name: unet_name(name, u.num_res_blocks), "model.diffusion_model.")
    return model


def gradients(output: torch.Tensor, model: torch.nn.Module, to_stability, prefix: str) -> dict[str, np.ndarray]:
    """Stability's name of each parameter that has a gradient -> rule.probe of that of sum(output * rule's numbers)."""
    model.zero_grad()
    (output * torch.from_numpy(rule.normal("dout", tuple(output.shape)))).sum().backward()
    return {
        prefix + to_stability(name): rule.probe(prefix + to_stability(name), parameter.grad.numpy())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def table(part: str, probes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{part}_gradient_names": np.array(list(probes)), f"{part}_gradients": np.stack(list(probes.values()))}


def unet(u) -> dict[str, np.ndarray]:
    model = unet_model(u).eval()
    seen = {}
    model.add_embedding.register_forward_pre_hook(lambda _, inputs: seen.update(vector=inputs[0].detach().numpy()))
    out = model(
        torch.from_numpy(rule.normal("x", (rule.BATCH, 4, *rule.LATENT))),
        torch.tensor(rule.TIMESTEPS),
        torch.from_numpy(rule.normal("context", (rule.BATCH, 77, u.context_dim))),
        added_cond_kwargs={
            "text_embeds": torch.from_numpy(rule.normal("pooled", (rule.BATCH, u.vector_dim - 6 * 256))),
            "time_ids": torch.tensor(rule.TIME_IDS),
        },
    ).sample
    if u != rule.MINI:
        return {"unet": out.detach().numpy(), "vector": seen["vector"]}
    probes = gradients(out, model, lambda name: unet_name(name, u.num_res_blocks), "model.diffusion_model.")
    return {"unet": out.detach().numpy(), "vector": seen["vector"], **table("unet", probes)}


def vae(config) -> dict[str, np.ndarray]:
    v = config.vae
    widths = [v.channels * mult for mult in v.channel_mult]
    model = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=v.num_res_blocks,
        norm_num_groups=v.norm_groups,
        latent_channels=4,
    ).eval()
    # a Linear of theirs is a 1x1 convolution of Stability's with the same numbers: the rule's fan-in is the same too
    invert(model, lambda name: vae_name(name, len(widths)), "first_stage_model.")
    picture = torch.from_numpy(rule.normal("pixels", (rule.BATCH, 3, *rule.PIXELS)))
    moments = model.encode(picture).latent_dist.parameters
    pixels = model.decode(torch.from_numpy(rule.normal("latents", (rule.BATCH, 4, *rule.LATENT)))).sample
    probes = {}
    for out in (moments, pixels):
        probes |= gradients(out, model, lambda name: vae_name(name, len(widths)), "first_stage_model.")
    # every fourth row and column of the pixels: small files
    outputs = {"moments": moments.detach().numpy(), "pixels": pixels[:, :, ::4, ::4].detach().numpy()}
    return outputs | table("vae", probes)


def clip_config(c, activation: str, padding: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.width,
        intermediate_size=4 * c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        hidden_act=activation,
        projection_dim=c.projection_dim or c.width,
        bos_token_id=c.vocab_size - 2,
        eos_token_id=c.vocab_size - 1,
        pad_token_id=padding,
    )


def clip_l_model(c) -> CLIPTextModel:
    """transformers' CLIP-L of CLIPConfig `c` with the rule's weights."""
    model = CLIPTextModel(clip_config(c, "quick_gelu", c.vocab_size - 1)).eval()
    invert(model, lambda name: name, "conditioner.embedders.0.transformer.")
    return model


def clip_l(config) -> dict[str, np.ndarray]:
    c = config.clip_l
    model = clip_l_model(c)
    out = model(torch.from_numpy(rule.ids(c.vocab_size, "end")), output_hidden_states=True)
    return {"clip_l": out.hidden_states[-2].detach().numpy()}


def clip_g_model(c) -> CLIPTextModelWithProjection:
    """transformers' bigG of CLIPConfig `c` with the rule's weights."""
    model = CLIPTextModelWithProjection(clip_config(c, "gelu", 0)).eval()
    prefix = "conditioner.embedders.1.model."
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            if name == "text_projection.weight":
                value = rule.weight(prefix + "text_projection", shape[::-1]).T
            elif match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", name):
                layer, part, end = match.groups()
                whole = rule.weight(
                    f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{end}", (3 * c.width, *shape[1:])
                )
                value = whole.reshape(3, *shape)["qkv".index(part)]
            else:
                value = rule.weight(prefix + clip_g_name(name), shape)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return model


def clip_g(config) -> dict[str, np.ndarray]:
    c = config.clip_g
    model = clip_g_model(c)
    out = model(torch.from_numpy(rule.ids(c.vocab_size, "zero")), output_hidden_states=True)
    return {"clip_g": out.hidden_states[-2].detach().numpy(), "pooled": out.text_embeds.detach().numpy()}


def clip_g_name(name: str) -> str:
    """transformers' CLIPTextModelWithProjection -> OpenCLIP, but for the projections"""
    name = name.removeprefix("text_model.")
    for theirs, stability in (
        ("embeddings.token_embedding", "token_embedding"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("encoder.layers", "transformer.resblocks"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("final_layer_norm", "ln_final"),
    ):
        name = name.replace(theirs, stability)
    return name


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {
        label: unet(config.unet) | vae(config) | clip_l(config) | clip_g(config)
        for label, config in rule.CONFIGS.items()
    } | {"mini": unet(rule.MINI)}
    for label, outputs in made.items():
        path = Path(__file__).parent / f"models_{label}.npz"
        np.savez_compressed(path, **outputs)
        print(path.name, path.stat().st_size, {name: a.shape for name, a in outputs.items()})
