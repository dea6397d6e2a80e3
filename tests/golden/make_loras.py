"""Write loras/: LoRAs of the UNet and both text encoders of make_diffusers_folder.py's base, saved by diffusers and by
LyCORIS themselves, and of every weight that they change what PEFT's and LyCORIS' own merging makes of it (merged.npz).

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.1 peft==0.21.2
lycoris-lora==4.1.3 pydantic ruamel.yaml, then `python -m tests.golden.make_loras` in the project's folder.

diffusers.safetensors has DoRA in the UNet, with ranks and alphas by pattern, rank-stabilised LoRA in the first text
encoder and LoRA in the second; lora.safetensors LoRA, with convolutions; lokr.safetensors LoKr (LyCORIS 4.1.3 merges LoHa
and LoKr by their own modules' training form, see make_adapters.py)."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from lycoris.config import PRESET
from lycoris.kohya import create_network
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from pipeline.weights import layout
from tests.golden.diffusers_models import models
from tests.golden.make_diffusers_folder import SMALL
from tests.golden.rule import normal, probe
from tests.weights import synthetic

OUT = Path(__file__).with_name("loras")
PARTS = ("unet", "text_encoder", "text_encoder_2")
# LyCORIS' "full" names diffusers' time embedding twice, which it then refuses.
UNET_LAYERS = {
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "unet_target_name": ["conv_in", "conv_out"],
}
WEIGHT = 0.7  # with which the LoRA's change counts; DoRA's and LoKr's count whole


def base() -> dict[str, torch.nn.Module]:
    shapes = layout.shapes(SMALL)
    return models(SMALL, {n: torch.from_numpy(synthetic.bits(n, s, "float16").copy()) for n, s in shapes.items()})


def fill(module: torch.nn.Module, names) -> None:
    """Small random numbers in the parameters that `names` chooses; magnitudes stay near what they are."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if names(name):
                noise = torch.from_numpy(0.2 * normal(name, tuple(parameter.shape)))
                parameter.copy_(parameter * (1 + noise) if "magnitude" in name else noise)


def of_diffusers() -> dict[str, np.ndarray]:
    made = base()
    attention = ["q_proj", "k_proj", "v_proj", "out_proj"]
    configs = {
        "unet": LoraConfig(
            r=3, lora_alpha=2, use_dora=True, rank_pattern={"to_k": 2}, alpha_pattern={"attn2.to_v": 5, "to_k": 1},
            target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2", "conv1"],
        ),
        "text_encoder": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=[*attention, "fc1"]),
        "text_encoder_2": LoraConfig(r=2, lora_alpha=4, target_modules=[*attention, "fc2"]),
    }  # fmt: skip
    for part, config in configs.items():
        made[part].add_adapter(config)
        fill(made[part], lambda name: ".lora_" in name)
    StableDiffusionXLPipeline.save_lora_weights(
        OUT,
        weight_name="diffusers.safetensors",
        **{
            f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(made[part]))
            for part in PARTS
        },
        **_collate_lora_metadata({part: made[part] for part in PARTS}),
    )
    found = {}
    for part in PARTS:
        for name, module in made[part].named_modules():
            if isinstance(module, LoraLayer):
                module.merge()
                found[f"{part}/{name}.weight"] = module.get_base_layer().weight.detach().numpy()
    return found


def of_lycoris(kind: str) -> dict[str, np.ndarray]:
    made = base()
    encoders = [made["text_encoder"], made["text_encoder_2"]]
    PRESET["diffusers"] = PRESET["full"] | UNET_LAYERS
    network = create_network(1.0, 3, 2.0, made["vae"], encoders, made["unet"], algo=kind, preset="diffusers")
    layers = {f"lora_{s}_{name}".replace(".", "_"): (part, name, module)
              for s, part in zip(("unet", "te1", "te2"), PARTS) for name, module in made[part].named_modules()}  # fmt: skip
    network.apply_to(encoders, made["unet"], True, True)
    fill(network, lambda name: True)
    network.save_weights(str(OUT / f"{kind}.safetensors"), torch.float32, {})
    found = {}
    with torch.no_grad():
        for lora in network.loras:
            part, name, module = layers[lora.lora_name]
            weight = module.weight
            if kind == "lokr":
                merged = weight + lora.get_weight(weight.shape)
            else:
                merged, _ = lora.get_merged_weight(WEIGHT, weight.shape)
            found[f"{part}/{name}.weight"] = merged.numpy()
    return found


def main() -> None:
    OUT.mkdir(exist_ok=True)
    found = {"diffusers": of_diffusers(), "lora": of_lycoris("lora"), "lokr": of_lycoris("lokr")}
    probes = {f"{file}:{name}": probe(name, value) for file, own in found.items() for name, value in own.items()}
    np.savez_compressed(OUT / "merged.npz", names=list(probes), probes=np.stack(list(probes.values())))


if __name__ == "__main__":
    main()
