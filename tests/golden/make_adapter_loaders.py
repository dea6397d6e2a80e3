"""Make adapter_loaders.npz: how ComfyUI and A1111 change each weight by the files of loaders_rule.py, which this project's
writer wrote, and how many layers of SDXL's they take from such a file; both by their own code. A key that one of them
leaves over is an error here.

What their loaders import around them (devices, the other models, Gradio) is replaced by stubs, and the models by modules
that have the weights and their names.

In an environment of its own: pip install torch==2.13.0 einops pillow safetensors; then with clones of
github.com/comfyanonymous/ComfyUI (0.3.68, commit 94c298f) and github.com/AUTOMATIC1111/stable-diffusion-webui (1.10.1,
commit 82a973c) `python -m tests.golden.make_adapter_loaders path/to/ComfyUI path/to/stable-diffusion-webui`."""

import importlib
import logging
import re
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from pipeline.models.config import SDXL_BASE, SDXLConfig
from pipeline.weights import layout
from pipeline.weights.adapters import kinds
from pipeline.weights.names import PREFIX
from tests.golden import loaders_rule, rule

COMFY, A1111 = sys.argv[1:]


class Stub(types.ModuleType):
    """A module in which every name is a class."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__.setdefault(name, type(name, (), {}))


def stub(*names: str) -> None:
    for name in names:
        module = sys.modules[name] = Stub(name)
        module.__path__ = []
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(importlib.import_module(parent), own, module)


class Messages(logging.Handler):
    """What the loaders say of a key or a layer that they can't use; ComfyUI and A1111 do not raise."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("torch", "PIL")):
            self.found.append(record.getMessage())


MESSAGES = Messages()


class Comfy:
    """comfy/lora.py and comfy/weight_adapter."""

    def __init__(self) -> None:
        sys.path.insert(0, COMFY)
        importlib.import_module("comfy")
        stub("comfy.model_management", "comfy.model_base", "comfy.cli_args")
        sys.modules["comfy.cli_args"].args = types.SimpleNamespace(mmap_torch_files=False, disable_mmap=False)
        sys.modules["comfy.model_management"].cast_to_device = lambda tensor, device, dtype, copy=False: tensor.to(
            device, dtype, copy=copy
        )
        self.lora = importlib.import_module("comfy.lora")
        self.convert = importlib.import_module("comfy.lora_convert").convert_lora

    def patches(self, path: Path, config: SDXLConfig, names: list[str]) -> dict[str, object]:
        u = config.unet
        depths = [depth for depth in u.transformer_depth for _ in range(u.num_res_blocks)]
        outputs = [depth for depth in u.transformer_depth for _ in range(u.num_res_blocks + 1)]
        model_config = types.SimpleNamespace(
            unet_config={
                "num_res_blocks": [u.num_res_blocks] * len(u.channel_mult), "channel_mult": u.channel_mult,
                "transformer_depth": depths, "transformer_depth_output": outputs,
                "transformer_depth_middle": u.transformer_depth[-1],
            }
        )  # fmt: skip
        texts = dict.fromkeys(self.name(name) for name in names if not name.startswith(PREFIX["unet"]))
        unet = dict.fromkeys(self.name(name) for name in names if name.startswith(PREFIX["unet"]))
        keys = self.lora.model_lora_keys_unet(
            types.SimpleNamespace(state_dict=lambda: unet, model_config=model_config), {}
        )
        keys = self.lora.model_lora_keys_clip(types.SimpleNamespace(state_dict=lambda: texts), keys)
        return self.lora.load_lora(self.convert(safetensors.torch.load_file(path)), keys)

    def name(self, weight: str) -> str:
        """ComfyUI's of a weight; it has transformers' modules for both text encoders."""
        if weight.startswith(PREFIX["unet"]):
            return weight.removeprefix("model.")
        weight = weight.replace(PREFIX["clip_l"], "clip_l.")
        match = re.fullmatch(rf"{re.escape(PREFIX['clip_g'])}model\.transformer\.resblocks\.(\d+)\.(.+)", weight)
        if match is None:
            return weight
        module = match[2].replace("attn.", "self_attn.").replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2")
        return f"clip_g.transformer.text_model.encoder.layers.{match[1]}.{module}"

    def changes(self, path: Path) -> dict[str, np.ndarray]:
        bases, layers = loaders_rule.weights(), list(loaders_rule.shapes(loaders_rule.CONFIG))
        patches = self.patches(path, loaders_rule.CONFIG, [weight for _, weight, _ in layers])
        found = {}
        for layer, weight, _ in layers:
            name, base = self.name(weight), torch.tensor(loaders_rule.base_of(weight, bases))
            changed = self.lora.calculate_weight([(1.0, patches.pop(name), 1.0, None, None)], base.clone(), name)
            found[layer] = (changed - base).numpy()
        assert not patches
        return found

    def count(self, path: Path, config: SDXLConfig) -> int:
        return len(self.patches(path, config, [weight for _, weight, _ in loaders_rule.shapes(config)]))


class WebUI:
    """extensions-builtin/Lora of A1111."""

    def __init__(self) -> None:
        sys.path.insert(0, f"{A1111}/extensions-builtin/Lora")
        stub(
            "gradio", "modules", "modules.shared", "modules.devices", "modules.sd_models", "modules.errors", "modules.scripts",
            "modules.sd_hijack", "modules.cache", "modules.hashes", "modules.patches", "modules.textual_inversion",
            "modules.textual_inversion.textual_inversion", "modules.models", "modules.models.sd3", "modules.models.sd3.mmdit",
            "lora_patches",
        )  # fmt: skip
        modules = sys.modules
        modules["modules.devices"].__dict__.update(cpu="cpu", device="cpu", dtype=torch.float32)
        modules["modules.sd_models"].read_state_dict = safetensors.torch.load_file
        modules["modules.sd_models"].read_metadata_from_safetensors = lambda path: safetensors.safe_open(
            path, "pt"
        ).metadata()
        modules["modules.cache"].cached_data_for_file = lambda _, __, path, read: read()
        folder = tempfile.gettempdir()
        modules["modules.shared"].cmd_opts = types.SimpleNamespace(lora_dir=folder, lyco_dir_backcompat=folder)
        modules["modules.shared"].walk_files = lambda *_, **__: []  # those in its folder of LoRAs
        self.networks, self.network = importlib.import_module("networks"), importlib.import_module("network")
        logging.getLogger("lora").setLevel(logging.INFO)

    def model(self, weights: dict[str, torch.Tensor]) -> object:
        """As the class of SDXL has it: the UNet below `model`, the text encoders as wrapped embedders."""
        parts = {part: nn.Module() for part in ("unet", "clip_l", "clip_g")}
        for name, value in weights.items():
            part = next(part for part in parts if name.startswith(PREFIX[part]))
            own = name.removeprefix("model." if part == "unet" else PREFIX[part])
            if own.endswith(".in_proj_weight"):
                attention = nn.MultiheadAttention(value.shape[1], 1, device=value.device)
                attention.in_proj_weight = nn.Parameter(value)
                put(parts[part], own.removesuffix(".in_proj_weight"), attention)
            elif own.endswith(".attn.out_proj.weight"):
                parts[part].get_submodule(own.removesuffix(".weight")).weight = nn.Parameter(value)
            elif own.endswith(".weight") and value.ndim > 1 and "embedding" not in own:
                put(parts[part], own.removesuffix(".weight"), layer(value))
        embedders = [types.SimpleNamespace(wrapped=parts[part]) for part in ("clip_l", "clip_g")]
        conditioner = types.SimpleNamespace(embedders=embedders)
        return types.SimpleNamespace(is_sdxl=True, model=parts["unet"], conditioner=conditioner)

    def load(self, path: Path, weights: dict[str, torch.Tensor]) -> object:
        model = sys.modules["modules.shared"].sd_model = self.model(weights)
        self.networks.assign_network_names_to_compvis_modules(model)
        on_disk = self.network.NetworkOnDisk("a", str(path))
        assert on_disk.sd_version.name == "SDXL" and on_disk.hash == on_disk.metadata["sshs_model_hash"]
        return self.networks.load_network("a", on_disk)

    def changes(self, path: Path) -> dict[str, np.ndarray]:
        bases = loaders_rule.weights()
        loaded = self.load(path, {name: torch.tensor(value) for name, value in bases.items()})
        self.networks.loaded_networks[:] = [loaded]
        model = sys.modules["modules.shared"].sd_model
        texts = [embedder.wrapped for embedder in model.conditioner.embedders]
        after = {}
        for part, root in zip(("unet", "clip_l", "clip_g"), (model.model, *texts)):
            for (
                module
            ) in root.modules():  # as their forward does; that of a MultiheadAttention's out_proj is not called
                if type(module) in (nn.Linear, nn.Conv2d, nn.MultiheadAttention):
                    self.networks.network_apply_weights(module)
            prefix = "model." if part == "unet" else PREFIX[part]
            after |= {prefix + name: value.detach().numpy() for name, value in root.named_parameters()}
        return {
            layer: loaders_rule.base_of(weight, after) - loaders_rule.base_of(weight, bases)
            for layer, weight, _ in loaders_rule.shapes(loaders_rule.CONFIG)
        }

    def count(self, path: Path, config: SDXLConfig) -> int:
        shapes = {name: shape for name, shape in layout.shapes(config).items() if not name.startswith(PREFIX["vae"])}
        loaded = self.load(path, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        return len(loaded.modules)


def layer(weight: torch.Tensor) -> nn.Module:
    if weight.ndim == 2:
        made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    else:
        made = nn.Conv2d(
            weight.shape[1], weight.shape[0], weight.shape[2:], padding=weight.shape[2] // 2, device="meta"
        )
    made.weight, made.bias = nn.Parameter(weight), None
    return made


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root._modules[parent]
    root.add_module(last, module)


@torch.no_grad()
def main() -> None:
    tools = {"comfy": Comfy(), "a1111": WebUI()}
    logging.getLogger().setLevel(logging.DEBUG)
    logging.getLogger().addHandler(MESSAGES)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "adapter.safetensors"
        for kind in kinds.KINDS:
            for tool, loader in tools.items():
                loaders_rule.write(path, kind)
                changes = loader.changes(path)
                found[f"{tool}.{kind}"] = np.stack([rule.probe(layer, change) for layer, change in changes.items()])
                loaders_rule.write_empty(path, kind, SDXL_BASE)
                found[f"{tool}.{kind}.layers"] = np.array(loader.count(path, SDXL_BASE))
                print(tool, kind, len(changes), found[f"{tool}.{kind}.layers"], MESSAGES.found)
                assert not MESSAGES.found, "the loader left something over"
    np.savez_compressed(Path(__file__).with_name("adapter_loaders.npz"), **found)


if __name__ == "__main__":
    main()
