"""What to say of a path that is no path: a model's name on the Hugging Face hub, or an address. Downloads none."""

import re


def hint(path: object) -> str:
    """What to do about such a path; "" for all others."""
    text = str(path)
    if re.match(r"https?:/", text):
        return "; it is an address: download the file, and give its path"
    if re.fullmatch(r"[\w-]+/[\w.-]+", text) and not text.startswith("data/"):
        folder = f"data/base/{text.split('/')[1]}"
        return f"; if it is a model on the Hugging Face hub: `hf download {text} --local-dir {folder}`, then {folder}"
    return ""
