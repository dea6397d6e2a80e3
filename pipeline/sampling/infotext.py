"""What a PNG says of how it was drawn, in the form of A1111's `parameters`, which its own users' tools, ComfyUI, Civitai
and others read: the prompt, "Negative prompt: …", and a last line of settings."""

import json
import re

from PIL.PngImagePlugin import PngInfo

from pipeline.sampling.picture import Picture

# sample.sampler -> A1111's names of the sampler and of its schedule of sigmas
NAMES = {
    "euler": ("Euler", "Automatic"),
    "euler_ancestral": ("Euler a", "Automatic"),
    "dpmpp_2m": ("DPM++ 2M", "Automatic"),
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
    "ddim": ("DDIM", "Automatic"),
    "unipc": ("UniPC", "Automatic"),
}
_BRACKETS = re.compile(r"[()\[\]\\]")  # A1111 weighs words after one without its partner too
_HASH = 10  # hex digits of a file's SHA-256 that A1111 shows


def infotext(
    picture: Picture,
    sampler: str,
    rescale: float,
    zero_terminal_snr: bool,
    model: str,
    sha256: str | None,
    flow_shift: float | None = None,
    emphasis: str = "a1111",
) -> str:
    """`model` is the name of the file of weights and `sha256` its hash, None when they lie in no single file;
    `flow_shift` that of rectified flow, by Forge's name; `emphasis` params.cache_text.emphasis: where brackets are
    plain text, A1111 is told so.

    The noise is of this pipeline and no other draws the same of a seed. "Prompt number" tells which of a seed's noises
    it was."""
    name, schedule = NAMES[sampler]
    texts = picture.prompt, picture.negative_prompt or ""
    settings = {
        "Steps": picture.steps,
        "Sampler": name,
        "Schedule type": schedule,
        "CFG scale": f"{picture.guidance_scale:g}",
        "Seed": picture.seed,
        "Size": f"{picture.width}x{picture.height}",
        "Model hash": sha256 and sha256[:_HASH],
        "Model": model,
        "CFG Rescale": f"{rescale:g}" if rescale and picture.guidance_scale != 1 else None,
        "Noise Schedule": "Zero Terminal SNR" if zero_terminal_snr else None,
        "Shift": None if flow_shift is None else f"{flow_shift:g}",
        "Emphasis": "None" if emphasis == "none" and any(map(_BRACKETS.search, texts)) else None,
        "Prompt number": picture.number,
    }
    last = ", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None)
    # with a line for an empty one too: ComfyUI's importer makes a graph only where it finds it
    return "\n".join([texts[0], f"Negative prompt: {texts[1]}", last])


def png_info(text: str) -> PngInfo:
    """The chunk that a PNG holds it in: tEXt where it is Latin-1, else iTXt."""
    info = PngInfo()
    info.add_text("parameters", text)
    return info


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(letter in text for letter in ',:\n"') else text
