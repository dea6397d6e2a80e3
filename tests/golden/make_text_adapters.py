"""Make text_adapters.npz: what transformers' text encoders give with PEFT's LoRA and DoRA in all linear layers of attention
and MLP, and the gradients of the adapters' parts, at the tiny model's size with rule.py's weights.

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.1 peft==0.21.2, then
`python -m tests.golden.make_text_adapters` in the project's folder."""

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from pipeline.models.config import TINY
from pipeline.weights.adapters import kinds
from tests.golden import adapters_rule, rule
from tests.golden.make_models import clip_g_model, clip_l_model

LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def adapted(kind: str, model: torch.nn.Module) -> dict[str, dict[str, torch.nn.Parameter]]:
    """transformers' name of each layer -> part -> parameter, with the rule's values."""
    config = LoraConfig(
        r=adapters_rule.RANK, lora_alpha=adapters_rule.ALPHA, use_dora=kind == "dora", target_modules=LAYERS
    )
    found = {}
    for name, module in get_peft_model(model, config).base_model.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        own = {kinds.DOWN: module.lora_A["default"].weight, kinds.UP: module.lora_B["default"].weight}
        if kind == "dora":
            own[kinds.MAGNITUDE] = module.lora_magnitude_vector["default"].weight
        values = adapters_rule.parts_of(kind, name, module.base_layer.weight.detach().numpy())
        with torch.no_grad():
            for part, parameter in own.items():
                parameter.copy_(torch.tensor(values[part]).reshape(parameter.shape))
        found[name] = own
    return found


def main() -> None:
    found = {}
    for kind in ("lora", "dora"):
        for encoder, model, padding in (
            ("clip_l", clip_l_model(TINY.clip_l), "end"),
            ("clip_g", clip_g_model(TINY.clip_g), "zero"),
        ):
            parts = adapted(kind, model)
            out = model(torch.from_numpy(rule.ids(TINY.clip_l.vocab_size, padding)), output_hidden_states=True)
            outputs = {"hidden": out.hidden_states[-2]}
            if encoder == "clip_g":
                outputs["pooled"] = out.text_embeds
            total = sum(
                (y * torch.tensor(rule.normal(f"along.{name}", tuple(y.shape)))).sum() for name, y in outputs.items()
            )
            total.backward()
            found |= {f"{kind}.{encoder}.{name}": y.detach().numpy() for name, y in outputs.items()}
            for layer, own in parts.items():
                for part, parameter in own.items():
                    if parameter.grad is not None:  # SDXL does not use CLIP-L's last block
                        key = f"{kind}.{encoder}.{layer}.{part}"
                        found[key] = rule.probe(key, parameter.grad.numpy())
    np.savez_compressed(Path(__file__).with_name("text_adapters.npz"), **found)


if __name__ == "__main__":
    main()
