"""What stages read must not be what they write."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.params import Params

OUTS = "outs"
BASE_UNET = f"{OUTS}/convert/unet.ckpt"


def faults(params: "Params") -> Iterator[tuple[str, str]]:
    outs = Path(os.path.realpath(OUTS))
    given = {"data.images": params.data.images}
    given |= {f"model.{key}": getattr(params.model, key) for key in ("base", "vae", "tokenizer", "lora_folder")}
    if params.train.init_from != BASE_UNET:
        given["train.init_from"] = params.train.init_from
    for number, lora in enumerate(params.model.loras):
        inside = os.path.relpath(os.path.join(params.model.lora_folder, lora.path), params.model.lora_folder)
        if inside != lora.path and not inside.startswith(".."):
            yield f"model.loras.{number}.path", f"{lora.path} is in model.lora_folder; name it from there: {inside}"
        elif Path(lora.path).is_absolute() or ".." in Path(lora.path).parts:
            yield (
                f"model.loras.{number}.path",
                f"{lora.path} lies outside of model.lora_folder ({params.model.lora_folder}), which DVC watches; put the "
                "file into that folder, or set model.lora_folder to the one that it is in",
            )
    for key, value in given.items():
        if "://" in value:  # far away
            continue
        path = Path(os.path.realpath(value))
        if path.is_relative_to(outs):
            yield key, f"{value} is an out of the stages, which would depend on themselves; copy it out of {OUTS}/"
        elif outs.is_relative_to(path):
            yield key, f"{value} holds {OUTS}/, so the stages would depend on themselves; wanted a folder of its own"
