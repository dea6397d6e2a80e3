"""Make unet_adapters.npz: what diffusers' UNet gives with an adapter in all its linear layers and convolutions, PEFT's
LoRA and DoRA, LyCORIS' LoHa and LoKr, and the gradients of the adapters' parts; with rule.py's weights and inputs, for
the configuration of adapters_rule.py.

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.1 peft==0.21.2
lycoris-lora==4.1.3, then `python -m tests.golden.make_unet_adapters` in the project's folder."""

from pathlib import Path

import numpy as np
import torch
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoraConfig, get_peft_model
from torch import nn

from pipeline.weights.adapters import kinds
from tests.golden import adapters_rule, rule
from tests.golden.make_models import unet_model, unet_name

Parts = dict[str, dict[str, nn.Parameter]]  # by the layer's name in Stability's file, and the part's


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}


def stability(layer: str) -> str:
    return unet_name(f"{layer}.weight", adapters_rule.UNET.num_res_blocks).removesuffix(".weight")


def with_peft(kind: str, model: nn.Module) -> tuple[nn.Module, Parts]:
    config = LoraConfig(
        r=adapters_rule.RANK,
        lora_alpha=adapters_rule.ALPHA,
        use_dora=kind == "dora",
        target_modules=list(layers(model)),
    )
    model, found = get_peft_model(model, config), {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            own = {kinds.DOWN: module.lora_A["default"].weight, kinds.UP: module.lora_B["default"].weight}
            if kind == "dora":
                own[kinds.MAGNITUDE] = module.lora_magnitude_vector["default"].weight
            found[stability(name)] = own
    return model, found


def with_lycoris(kind: str, model: nn.Module) -> tuple[nn.Module, Parts]:
    found = {}
    for name, layer in layers(model).items():
        options = {"factor": adapters_rule.FACTOR} if kind == "lokr" else {}
        module = {"loha": LohaModule, "lokr": LokrModule}[kind](
            name.replace(".", "_"), layer, 1.0, adapters_rule.RANK, adapters_rule.ALPHA, **options
        )
        found[stability(name)] = dict(module.named_parameters())
        module.apply_to()
    return model, found


def main() -> None:
    u, found = adapters_rule.UNET, {}
    for kind in kinds.KINDS:
        model = unet_model(u).eval()
        bases = {stability(name): layer.weight.detach().numpy().copy() for name, layer in layers(model).items()}
        model, parts = (with_peft if kind in ("lora", "dora") else with_lycoris)(kind, model)
        assert parts.keys() == bases.keys()
        with torch.no_grad():
            for layer, own in parts.items():
                values = adapters_rule.parts_of(kind, layer, bases[layer])
                assert own.keys() == values.keys(), (layer, own.keys(), values.keys())
                for part, parameter in own.items():
                    parameter.copy_(torch.tensor(values[part]).reshape(parameter.shape))
        out = model(
            torch.from_numpy(rule.normal("x", (rule.BATCH, 4, *rule.LATENT))),
            torch.tensor(rule.TIMESTEPS),
            torch.from_numpy(rule.normal("context", (rule.BATCH, 77, u.context_dim))),
            added_cond_kwargs={
                "text_embeds": torch.from_numpy(rule.normal("pooled", (rule.BATCH, u.vector_dim - 6 * 256))),
                "time_ids": torch.tensor(rule.TIME_IDS),
            },
        ).sample
        (out * torch.from_numpy(rule.normal("dout", tuple(out.shape)))).sum().backward()
        found[f"{kind}.output"] = out.detach().numpy()
        names = [f"{kind}.{layer}.{part}" for layer, own in parts.items() for part in own]
        values = [parameter.grad for own in parts.values() for parameter in own.values()]
        found[f"{kind}.names"] = np.array(names)
        found[f"{kind}.gradients"] = np.stack([rule.probe(name, value.numpy()) for name, value in zip(names, values)])
        print(kind, len(parts), float(out.detach().abs().max()))
    np.savez_compressed(Path(__file__).with_name("unet_adapters.npz"), **found)


if __name__ == "__main__":
    main()
