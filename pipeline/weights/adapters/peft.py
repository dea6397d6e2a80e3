"""LoRAs as diffusers writes them (`save_lora_weights`), in kohya's words: names of parts, old and new, and the alphas,
which stand in the metadata alone."""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache

from pipeline.stage import StageError, shown
from pipeline.weights.adapters import kinds

_NOT_SAID = object()
METADATA = "lora_adapter_metadata"
_SAVED = re.compile(
    r"base_model\.model\.|(down_blocks|mid_block|up_blocks|time_embedding|add_embedding|conv_in|conv_out)\b"
)
_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")  # before diffusers 0.26
_ENDS = {
    re.compile(r"\.(lora_A(\.default)?|lora(_linear_layer)?\.down)\.weight"): kinds.DOWN,
    re.compile(r"\.(lora_B(\.default)?|lora(_linear_layer)?\.up)\.weight"): kinds.UP,
    re.compile(r"\.lora_magnitude_vector(\.default)?(\.weight)?"): kinds.MAGNITUDE,
}


def renamed(name: str) -> str:
    """unet.….to_q.lora_A.weight -> unet.….to_q.lora_down.weight, with DoRA's magnitudes called dora_scale; any other name
    as it is."""
    if match := _PROCESSOR.search(name):
        layer = f"to_{match[1]}.0" if match[1] == "out" else f"to_{match[1]}"
        return f"{name[: match.start()]}.{layer}.lora_{match[2]}.weight"
    for pattern, part in _ENDS.items():
        if (match := pattern.search(name)) and match.end() == len(name):
            return f"{name[: match.start()]}.{part}"
    return name


def is_of_peft(layer: str) -> bool:
    """Whether a layer has the name by which PEFT itself saves it (`save_pretrained`), which knows of no component."""
    return _SAVED.match(layer) is not None


def alphas(metadata: Mapping[str, str], path: object) -> Callable[[str, int], float | None]:
    """Of a file's metadata the function of a layer, such as unet.….to_q, and its rank that gives its alpha, as PEFT scales
    by alpha / rank; None where they say nothing, and PEFT takes the rank. It raises StageError, which calls the file by
    `path`, for metadata that are not diffusers'."""

    @cache
    def said() -> dict:
        try:
            found = json.loads(metadata[METADATA])
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise StageError(
                f"{path}: {METADATA} of its metadata is not a JSON object; save the LoRA again by diffusers"
            )
        return found

    def alpha(layer: str, rank: int) -> float | None:
        component, dot, module = layer.partition(".")
        if not dot or METADATA not in metadata:  # kohya's names, whose alphas are tensors
            return None
        found = said()
        number = found.get(f"{component}.lora_alpha", _NOT_SAID)
        patterns = found.get(f"{component}.alpha_pattern") or {}
        for name, own in patterns.items() if isinstance(patterns, dict) else ():
            if f".{module}".endswith(f".{name.removeprefix('^')}"):
                number = own
                break
        if number is _NOT_SAID:
            return None
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise StageError(f"{path}: the alpha of {shown(layer)} is {shown(repr(number))}; wanted a number")
        # rsLoRA (arXiv 2312.03732) divides by the root of the rank
        return number * math.sqrt(rank) if found.get(f"{component}.use_rslora") is True else float(number)

    return alpha
