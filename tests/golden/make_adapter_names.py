"""Make adapter_names.json.gz: names and shapes of SDXL's adapters, of its UNet and of both text encoders, as kohya's scripts
and LyCORIS make them by their own code, the modelspec that the former write, and the `ss_` keys that they know.

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers lycoris-lora==4.1.3 einops;
then with a clone of github.com/kohya-ss/sd-scripts (commit 48d368f) `python -m tests.golden.make_adapter_names path/to/sd-scripts` in the project's folder."""

import gzip
import json
import re
import sys
import types
from pathlib import Path

SCRIPTS = Path(sys.argv[1])
sys.path.insert(0, str(SCRIPTS))
utils = types.ModuleType("library.utils")  # whose other parts want OpenCV and torchvision
utils.setup_logging = lambda: None
sys.modules["library.utils"] = utils

import torch  # noqa: E402
from library import sai_model_spec  # noqa: E402
from library.sdxl_original_unet import SdxlUNet2DConditionModel  # noqa: E402
from lycoris.kohya import create_network  # noqa: E402
from networks.lora import LoRANetwork  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

RANK, ALPHA = 8, 4
torch.Tensor.cpu = lambda tensor: tensor  # LyCORIS takes DoRA's norms there, and these tensors have shapes alone


def sdxl() -> torch.nn.Module:
    with torch.device("meta"):
        return SdxlUNet2DConditionModel()


def text_encoders() -> list[torch.nn.Module]:
    """SDXL's, as kohya's library/sdxl_model_util.py makes them."""
    with torch.device("meta"):
        large = CLIPTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
        )
        small = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        return [CLIPTextModel(small), CLIPTextModelWithProjection(large)]


def shapes(network: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def main() -> None:
    unet = sdxl()
    network = LoRANetwork([], unet, lora_dim=RANK, alpha=ALPHA)
    network.apply_to([], unet, False, True)
    found = {"lora": shapes(network)}
    for kind, options in (
        ("dora", {"algo": "lora", "dora_wd": "True"}),
        ("loha", {"algo": "loha"}),
        ("lokr", {"algo": "lokr", "factor": "-1"}),
    ):
        unet = sdxl()
        network = create_network(1.0, RANK, ALPHA, None, [], unet, preset="full", **options)
        network.apply_to([], unet, False, True)
        found[kind] = shapes(network)
    texts = text_encoders()
    network = LoRANetwork(texts, sdxl(), lora_dim=RANK, alpha=ALPHA)
    network.apply_to(texts, None, True, False)
    found["texts"] = shapes(network)
    texts = text_encoders()
    network = create_network(1.0, RANK, ALPHA, None, texts, sdxl(), preset="full", algo="lokr", factor="-1")
    network.apply_to(texts, None, True, False)
    found["texts_lokr"] = shapes(network)
    of_an_adapter, of_a_model = (
        sai_model_spec.build_metadata(
            None, v2=False, v_parameterization=False, sdxl=True, lora=lora, textual_inversion=False, timestamp=0.0,
            title="t", reso=(1024, 1024), is_stable_diffusion_ckpt=not lora,
        )
        for lora in (True, False)
    )  # fmt: skip
    keys = sorted(set(re.findall(r'"(ss_\w+)"', (SCRIPTS / "train_network.py").read_text())))
    content = json.dumps(
        {"names": found, "modelspec": of_an_adapter, "modelspec_model": of_a_model, "ss": keys}, separators=(",", ":")
    )
    target = Path(__file__).with_name("adapter_names.json.gz")
    target.write_bytes(gzip.compress(content.encode(), mtime=0))


if __name__ == "__main__":
    main()
