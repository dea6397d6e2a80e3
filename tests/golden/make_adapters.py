"""Make adapters.npz: outputs, gradients and merged weights of LyCORIS' own modules, and for DoRA of PEFT's, whose gradient
takes the norm for a constant (as its paper, and this project, have it).

In an environment of its own (not the project's): pip install torch==2.13.0 lycoris-lora==4.1.3 peft==0.21.2, then
`python -m tests.golden.make_adapters` in the project's folder."""

from pathlib import Path

import numpy as np
import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoraConfig, get_peft_model
from torch import nn

from pipeline.weights.adapters import kinds
from tests.golden import adapters_rule as rule
from tests.golden.rule import probe

MODULES = {"lora": LoConModule, "dora": LoConModule, "loha": LohaModule, "lokr": LokrModule}


def base(layer: str) -> nn.Module:
    outputs, inputs, *kernel = rule.LAYERS[layer]
    made = nn.Conv2d(inputs, outputs, kernel, padding=1) if kernel else nn.Linear(inputs, outputs)
    made.load_state_dict({"weight": torch.tensor(rule.weight(layer)), "bias": torch.tensor(rule.bias(layer))})
    return made


def of_lycoris(kind: str, layer: str) -> tuple[nn.Module, dict[str, nn.Parameter], np.ndarray]:
    """(what computes, part -> parameter, the merged weight)"""
    options = {"weight_decompose": True} if kind == "dora" else {}
    options |= {"factor": rule.FACTOR} if kind == "lokr" else {}
    original = base(layer)
    module = MODULES[kind]("golden", original, 1.0, rule.RANK, rule.ALPHA, **options)
    own = dict(module.named_parameters())
    wanted = rule.parts(kind, layer)
    assert {name: tuple(p.shape) for name, p in own.items()} == {name: v.shape for name, v in wanted.items()}
    with torch.no_grad():
        for name, value in wanted.items():
            own[name].copy_(torch.tensor(value))
    # what LyCORIS 4.1.3 computes with: its get_merged_weight multiplies LoHa and LoKr by the scale twice
    if kind in ("loha", "lokr"):
        merged = original.weight + module.get_weight(rule.LAYERS[layer])
    else:
        merged, _ = module.get_merged_weight(1.0, rule.LAYERS[layer])
    merged = merged.detach().numpy()
    module.apply_to()
    return original, own, merged


def of_peft(layer: str) -> tuple[nn.Module, dict[str, nn.Parameter], np.ndarray]:
    model = nn.Sequential()
    model.add_module("golden", base(layer))
    config = LoraConfig(r=rule.RANK, lora_alpha=rule.ALPHA, use_dora=True, target_modules=["golden"])
    model = get_peft_model(model, config)
    adapted = model.base_model.model.golden
    own = {
        kinds.DOWN: adapted.lora_A["default"].weight,
        kinds.UP: adapted.lora_B["default"].weight,
        kinds.MAGNITUDE: adapted.lora_magnitude_vector["default"].weight,
    }
    with torch.no_grad():
        for name, value in rule.parts("dora", layer).items():
            own[name].copy_(torch.tensor(value).reshape(own[name].shape))
    return model, own, None


def main() -> None:
    found = {}
    for kind in kinds.KINDS:
        for layer in rule.LAYERS:
            model, parts, merged = of_lycoris(kind, layer)
            if kind == "dora":
                model, parts, _ = of_peft(layer)
            x = torch.tensor(rule.x(layer), requires_grad=True)
            y = model(x)
            (y * torch.tensor(rule.direction(layer, tuple(y.shape)))).sum().backward()
            key = f"{kind}.{layer}"
            found[f"{key}.y"] = y.detach().numpy()
            found[f"{key}.merged"] = probe(f"{key}.merged", merged)
            found[f"{key}.x"] = probe(f"{key}.x", x.grad.numpy())
            for name, parameter in parts.items():
                found[f"{key}.{name}"] = probe(f"{key}.{name}", parameter.grad.numpy())
    np.savez_compressed(Path(__file__).with_name("adapters.npz"), **found)


if __name__ == "__main__":
    main()
