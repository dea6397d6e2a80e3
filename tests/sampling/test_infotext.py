"""The text of the drawn PNGs, read by a parser of A1111's form that knows nothing of how it is written.

sd-parsers 0.6 of PyPI read two of these texts as they were meant, once and by hand."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from pipeline.params import Sample
from pipeline.sampling.infotext import NAMES, infotext, png_info
from pipeline.sampling.picture import Picture
from pipeline.sampling.samplers import SAMPLERS

SHA = "0123456789abcdef" * 4


def parsed(text: str) -> dict[str, str]:
    """By A1111's rules: the last line holds `Key: value` pairs with commas between, where it has three or more; a value
    that holds a comma or a colon is a JSON string; all before "Negative prompt:" at a line's begin is the prompt."""
    *lines, last = text.strip().split("\n")
    pair = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    pairs = pair.findall(last)
    assert len(pairs) >= 3
    found = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    begins = next((number for number, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    found["prompt"] = "\n".join(line.strip() for line in lines[:begins])
    found["negative"] = "\n".join(line.strip() for line in lines[begins:]).removeprefix("Negative prompt:").strip()
    return found


def picture(**own) -> Picture:
    plain = {"prompt": "a red circle", "negative_prompt": None, "width": 64, "height": 96, "steps": 20}
    return Picture(**(plain | {"guidance_scale": 5.0, "seed": 7, "number": 2} | own))


def read(text: str) -> str:
    """Through a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(file, "PNG", pnginfo=png_info(text))
    with Image.open(io.BytesIO(file.getvalue())) as image:
        image.load()
        return image.text["parameters"]


def test_all_is_there():
    found = parsed(read(infotext(picture(negative_prompt="a square"), "euler", 0.0, False, "merged", SHA)))
    assert found == {
        "prompt": "a red circle", "negative": "a square", "Steps": "20", "Sampler": "Euler", "Schedule type": "Automatic",
        "CFG scale": "5", "Seed": "7", "Size": "64x96", "Model hash": "0123456789", "Model": "merged",
        "Prompt number": "2",
    }  # fmt: skip


def test_a1111_is_told_where_brackets_are_text():
    weighted = picture(prompt="a (red:1.3) circle")
    assert parsed(infotext(weighted, "euler", 0.0, False, "base", None, emphasis="none"))["Emphasis"] == "None"
    for one, emphasis in ((weighted, "a1111"), (picture(), "none"), (picture(prompt="a (red"), "none")):
        assert "Emphasis" not in infotext(one, "euler", 0.0, False, "base", None, emphasis=emphasis)
    negative = picture(negative_prompt="[red]")
    assert "Emphasis: None" in infotext(negative, "euler", 0.0, False, "base", None, emphasis="none")


def test_what_is_not_there_is_left_out():
    text = infotext(picture(), "ddim", 0.0, False, "base", None)
    assert "Negative" not in text and "Model hash" not in text
    found = parsed(infotext(picture(guidance_scale=2.5), "dpmpp_2m_karras", 0.7, True, "base", None))
    assert (found["Sampler"], found["Schedule type"], found["CFG scale"]) == ("DPM++ 2M", "Karras", "2.5")
    assert (found["CFG Rescale"], found["Noise Schedule"]) == ("0.7", "Zero Terminal SNR")


def test_what_has_no_effect_on_a_picture_is_not_said():
    assert "CFG Rescale" not in infotext(picture(guidance_scale=1.0), "euler", 0.7, True, "base", None)
    found = parsed(infotext(picture(), "euler", 0.0, False, "base", None, flow_shift=2.5))
    assert found["Shift"] == "2.5"


@pytest.mark.parametrize(
    "prompt", ["", "a, b: c", "two\nlines", "日本の猫", "Steps: 3", "é\u2028e", "(red:1.2) <lora:x:1>", "a" * 5000]
)
def test_any_prompt_comes_back(prompt):
    found = parsed(read(infotext(picture(prompt=prompt, negative_prompt="x, y: z"), "unipc", 0.0, False, "m", SHA)))
    assert (found["prompt"], found["negative"], found["Seed"]) == (prompt, "x, y: z", "7")


@pytest.mark.parametrize("model", ["a, b", "x: y", 'say "hi"', "日本"])
def test_any_name_of_a_model_comes_back(model):
    found = parsed(read(infotext(picture(), "euler", 0.0, False, model, SHA)))
    assert (found["Model"], found["Size"]) == (model, "64x96")


def test_every_sampler_has_its_name():
    allowed = Sample.model_fields["sampler"].annotation.__args__
    assert set(NAMES) == set(SAMPLERS) == set(allowed)
