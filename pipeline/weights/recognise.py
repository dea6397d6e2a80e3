"""What a file is that does not hold a whole SDXL: the models and parts that people have beside it."""

import re

from pipeline.weights.tensor import Tensor

_CONV_IN = re.compile(r"(model\.diffusion_model\.)?input_blocks\.0\.0\.weight|(unet/)?conv_in\.weight")
_PARTS = {  # component -> what to call it, and its names in single files and in diffusers' and transformers' own
    "unet": ("UNet", r"model\.diffusion_model\.|(input|output|down|up)_blocks\."),
    "clip_l": ("text encoders", r"conditioner\.|(clip_[lg]\.)?(transformer\.)?text_model\.|embeddings\."),
    "vae": ("VAE", r"first_stage_model\.|(encoder|decoder)\.(mid|mid_block|conv_in|conv_out)\b"),
}
_ADAPTER = re.compile(r"(^|\.)(lora|lycoris)_|\.(lora|hada|lokr|oft|dora)_|\.alpha$")
_KINDS = {  # a name that no other model has
    r"(^|\.)joint_blocks\.": "Stable Diffusion 3",
    r"(^|\.)(double|single)_(stream_modulation|blocks)": "Flux",
    r"^control_model\.|controlnet_|^input_hint_block\.|zero_convs\.": "a ControlNet",
    r"^cond_stage_model\.transformer\.": "Stable Diffusion 1",
    r"^cond_stage_model\.model\.": "Stable Diffusion 2",
    r"^conditioner\.embedders\.0\.model\.": "SDXL's refiner, which has one text encoder and another UNet",
    r"^(emb_params|clip_[lg]|string_to_param.*)$": "a textual inversion: an embedding, and no model",
}


def is_adapter(found: dict[str, Tensor]) -> bool:
    """Whether most tensors have names of an adapter's."""
    return 2 * sum(bool(_ADAPTER.search(name)) for name in found) > len(found)


def what(found: dict[str, Tensor], wanted: list[str]) -> str:
    """What these tensors seem to be in place of the components `wanted`, as the end of a sentence; "" when that is
    not to be seen."""
    if is_adapter(found):
        return (
            "seems to be an adapter (LoRA, LyCORIS), which changes a base model: that one is model.base, and this "
            "goes into model.loras"
        )
    for pattern, kind in _KINDS.items():
        if any(re.search(pattern, name) for name in found):
            return f"seems to be {kind}"
    conv = next((tensor for name, tensor in found.items() if _CONV_IN.fullmatch(name) and len(tensor.shape) == 4), None)
    if conv is not None and conv.shape[1] in (8, 9):
        kind = {8: "edits pictures (InstructPix2Pix)", 9: "fills masked parts (inpainting)"}[conv.shape[1]]
        return f"seems to be a model that {kind}: its UNet has {conv.shape[1]} input channels, the base model's 4"
    there = [part for part, (_, pattern) in _PARTS.items() if any(re.match(pattern, name) for name in found)]
    lacks = [_PARTS[part][0] for part in wanted if part in _PARTS and part not in there]
    if there and lacks:
        has = " and the ".join(_PARTS[part][0] for part in there)
        hint = ""
        if len(wanted) > 1:
            hint = "; model.vae may name another file" if lacks == ["VAE"] else "; model.base wants the whole model"
        return f"seems to hold the {has} alone, without the {' and the '.join(lacks)}{hint}"
    return ""
