"""Which of the trained weights `merge.weights` means."""

import re
from pathlib import Path

from pipeline.models.config import SDXLConfig
from pipeline.stage import StageError

_NAMES = {"raw": "", "ema": "_ema", "best": "_best"}
_MAKE = {
    "raw": "run `dvc repro train`",
    "ema": "set train.ema to true and train again",
    "best": "set train.keep_best to true and train again",
}


def file_name(which: str | int, adapter: bool) -> str:
    """In the train stage's outs: of "raw", "ema" or "best" weights or of those of a step; of an adapter, or the UNet."""
    end = "safetensors" if adapter else "ckpt"
    if isinstance(which, int):
        return f"step-{which:08d}.{end}"
    return f"{'adapter' if adapter else 'unet'}{_NAMES[which]}.{end}"


def trained_parts(text_encoders: str) -> list[str]:
    """The components beside the UNet that its file holds, by train.text_encoders: they were trained with it."""
    return [part for part in ("clip_l", "clip_g") if text_encoders in (part, "both")]


def unused_parameters(part: str, config: SDXLConfig) -> tuple[str, ...]:
    """How the parameters of a text encoder begin that a checkpoint has and SDXL does not use: decay would change them, and nothing else."""
    if part == "clip_g":
        return ("model.logit_scale",)
    text = "transformer.text_model"
    return f"{text}.encoder.layers.{config.clip_l.layers - 1}.", f"{text}.final_layer_norm."


def there(files: list[str], adapter: bool) -> list[str | int]:
    """What merge.weights may be, of these files."""
    end = "safetensors" if adapter else "ckpt"
    steps = [int(match[1]) for file in files if (match := re.fullmatch(rf"step-(\d{{8}})\.{end}", file))]
    return [name for name in _NAMES if file_name(name, adapter) in files] + sorted(steps)


def find(folder: Path, wanted: str | int, adapter: bool = False) -> Path:
    """The file in `folder`, the train stage's out, of `wanted`: "raw", "ema", "best" or a step. Raises StageError, which
    says which are there, when it is not."""
    path = folder / file_name(wanted, adapter)
    if path.exists():
        return path
    found = ", ".join(map(str, there([file.name for file in folder.glob("*")], adapter)))
    make = _MAKE[wanted] if isinstance(wanted, str) else "see train.save_interval and train.save_limit"
    choose = f"set merge.weights to one that is there ({found}), or " if found else ""
    raise StageError(f"{path} does not exist and merge.weights: {wanted} asks for it; {choose}{make}")
