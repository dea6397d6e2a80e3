"""Make adapter_files.json.gz: what stands in the files of adapters that kohya's sdxl_train_network.py writes, names, shapes,
dtypes and metadata; of LoRA by its networks.lora, of DoRA, LoHa and LoKr by LyCORIS, in an SDXL of a tenth of the width.

Its `train` runs as it stands, on eight pictures, and saves at its end. Replaced are what it would read from the disk and
the network (the model, the tokenizers) and the loss, a sum over the adapter: what an adapter computes is compared elsewhere.

In an environment of its own: pip install torch==2.13.0 diffusers==0.39.0 transformers==4.57.1 lycoris-lora==4.1.3 accelerate
einops imagesize opencv-python-headless toml voluptuous pillow; then with a clone of github.com/kohya-ss/sd-scripts (commit
48d368f) `python -m tests.golden.make_adapter_files path/to/sd-scripts` in the project's folder."""

import gzip
import json
import sys
import tempfile
import types
from pathlib import Path

import diffusers.pipelines  # noqa: F401  (looks for torchvision once)
import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.golden import adapters_rule, rule

sys.path.insert(0, sys.argv[1])
torchvision = types.ModuleType("torchvision")  # of it the scripts use what makes tensors of pictures
torchvision.transforms = types.SimpleNamespace(
    Compose=lambda steps: lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1,
    ToTensor=lambda: None,
    Normalize=lambda *_: None,
)
sys.modules["torchvision"] = torchvision

import sdxl_train_network  # noqa: E402
from library import sdxl_original_unet, strategy_base, train_util  # noqa: E402
from lycoris.utils import precalculate_safetensors_hashes  # noqa: E402

CONFIG = adapters_rule.KOHYA
RUNS = {
    "lora": ("networks.lora", []),
    "texts": ("networks.lora", []),
    "dora": ("lycoris.kohya", ["algo=lora", "dora_wd=True"]),
    "loha": ("lycoris.kohya", ["algo=loha"]),
    "lokr": ("lycoris.kohya", ["algo=lokr", "factor=-1"]),
}
OF_THE_HOUR = {
    "ss_session_id", "ss_training_started_at", "ss_training_finished_at", "ss_sd_scripts_commit_hash", "modelspec.date",
}  # fmt: skip


def models() -> tuple[list[torch.nn.Module], torch.nn.Module]:
    u = sdxl_original_unet
    u.MODEL_CHANNELS, u.TIME_EMBED_DIM = CONFIG.unet.model_channels, 4 * CONFIG.unet.model_channels
    u.ADM_IN_CHANNELS = CONFIG.unet.vector_dim
    assert u.CONTEXT_DIM == CONFIG.unet.context_dim  # which stands in its classes as a number
    texts = []
    for own, made in ((CONFIG.clip_l, CLIPTextModel), (CONFIG.clip_g, CLIPTextModelWithProjection)):
        texts.append(
            made(
                CLIPTextConfig(
                    vocab_size=own.vocab_size, hidden_size=own.width, intermediate_size=4 * own.width,
                    num_hidden_layers=own.layers, num_attention_heads=own.heads, projection_dim=own.width,
                )
            )
        )  # fmt: skip
    return texts, u.SdxlUNet2DConditionModel()


class Tokens(strategy_base.TokenizeStrategy):
    tokenizer1 = tokenizer2 = None

    def tokenize(self, text):
        return [torch.zeros(1, 77, dtype=torch.long)] * 2


class Trainer(sdxl_train_network.SdxlNetworkTrainer):
    def get_tokenize_strategy(self, args):
        return Tokens()

    def load_target_model(self, args, weight_dtype, accelerator):
        texts, unet = models()
        return sdxl_train_network.sdxl_model_util.MODEL_VERSION_SDXL_BASE_V1_0, texts, torch.nn.Identity(), unet

    def process_batch(self, batch, text_encoders, unet, network, *_, **__):
        return sum(parameter.square().mean() for parameter in network.parameters() if parameter.requires_grad)

    def sample_images(self, *_):
        pass


def trained(kind: str, folder: Path) -> Path:
    for one in (
        strategy_base.TokenizeStrategy,
        strategy_base.LatentsCachingStrategy,
        strategy_base.TextEncodingStrategy,
    ):
        one._strategy = None  # of the run before, which they take to be their own
    module, network_args = RUNS[kind]
    given = adapters_rule.KOHYA_ARGUMENTS | {
        "pretrained_model_name_or_path": folder / adapters_rule.KOHYA_BASE,
        "train_data_dir": folder / "pictures",
        "output_dir": folder,
        "output_name": kind,
        "network_module": module,
    }
    line = [f"--{key}={value}" for key, value in given.items()]
    line += ["--network_train_unet_only"] if kind != "texts" else [f"--text_encoder_lr={adapters_rule.KOHYA_TEXT_RATE}"]
    line += ["--network_args", *network_args, *(["preset=full"] if network_args else [])] if network_args else []
    args = sdxl_train_network.setup_parser().parse_args(line)
    train_util.verify_command_line_training_args(args)
    Trainer().train(train_util.read_config_from_file(args, sdxl_train_network.setup_parser()))
    return folder / f"{kind}.safetensors"


def content(kind: str, file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        metadata = {key: value for key, value in opened.metadata().items() if key not in OF_THE_HOUR}
    by_rule = {
        name: value if name.endswith(".alpha") else torch.from_numpy(rule.normal(name, tuple(value.shape)))
        for name, value in tensors.items()
        if not name.startswith(adapters_rule.KOHYA_UNUSED)
    }
    if RUNS[kind][0] == "networks.lora":
        metadata["sshs_model_hash"], _ = train_util.precalculate_safetensors_hashes(by_rule, {})
    else:
        metadata["sshs_model_hash"] = precalculate_safetensors_hashes(by_rule)
    header = {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in tensors.items()}
    alphas = sorted({float(value) for name, value in tensors.items() if name.endswith(".alpha")})
    return {"tensors": dict(sorted(header.items())), "alphas": alphas, "metadata": metadata}


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / adapters_rule.KOHYA_BASE).write_bytes(adapters_rule.KOHYA_BASE.encode())
        pictures = folder / "pictures" / "1_shape"
        pictures.mkdir(parents=True)
        for number in range(adapters_rule.KOHYA_PICTURES):
            Image.new("RGB", (64, 64), (number, 0, 0)).save(pictures / f"{number}.png")
        for kind in RUNS:
            found[kind] = content(kind, trained(kind, folder))
            print(kind, len(found[kind]["tensors"]), found[kind]["metadata"])
    found["minimum"] = train_util.SS_METADATA_MINIMUM_KEYS  # that kohya's scripts write in any case
    text = json.dumps(found, separators=(",", ":"))
    Path(__file__).with_name("adapter_files.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
