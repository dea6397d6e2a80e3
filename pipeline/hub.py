"""What to say of a path where nothing is: SDXL's own file, a model's name on the Hugging Face hub, or an address.
Downloads none."""

import re
from pathlib import Path

_SDXL = "sd_xl_base_1.0.safetensors"


def hint(path: object) -> str:
    """What to do about such a path; "" for all others."""
    text = str(path)
    if Path(text).name == _SDXL:
        folder = Path(text).parent
        return f"; `hf download stabilityai/stable-diffusion-xl-base-1.0 {_SDXL} --local-dir {folder}` gets it"
    if re.match(r"https?:/", text):
        return "; it is an address: download the file, and give its path"
    if re.fullmatch(r"[\w-]+/[\w.-]+", text) and not text.startswith("data/"):
        folder = f"data/base/{text.split('/')[1]}"
        return f"; if it is a model on the Hugging Face hub: `hf download {text} --local-dir {folder}`, then {folder}"
    return ""
