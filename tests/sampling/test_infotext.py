"""The text of the drawn PNGs: what A1111's and ComfyUI's own code and sd-parsers read in it (tests/golden/make_infotext.py),
and a parser of A1111's form that knows nothing of how it is written."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.params import Sample
from pipeline.sampling.infotext import NAMES, infotext, png_info
from pipeline.sampling.samplers import SAMPLERS
from tests.golden.infotext_rule import CASES, SHA, picture

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "infotext.json").read_text("utf-8"))


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


def read(text: str) -> str:
    """Through a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(file, "PNG", pnginfo=png_info(text))
    with Image.open(io.BytesIO(file.getvalue())) as image:
        image.load()
        return image.text["parameters"]


def meant(name: str) -> dict[str, str | None]:
    """What a program is to read in the PNG of a case, under A1111's names; of brackets nothing (see below)."""
    one, sampler, rescale, zero_terminal_snr, model, sha256, *further = CASES[name]
    return {
        "Prompt": one.prompt, "Negative prompt": one.negative_prompt or "", "Steps": str(one.steps),
        "Sampler": NAMES[sampler][0], "Schedule type": NAMES[sampler][1], "CFG scale": f"{one.guidance_scale:g}",
        "Seed": str(one.seed), "Size-1": str(one.width), "Size-2": str(one.height), "Model": model,
        "Model hash": sha256 and sha256[:10], "CFG Rescale": f"{rescale:g}" if rescale else None,
        "Noise Schedule": "Zero Terminal SNR" if zero_terminal_snr else None,
        "Shift": f"{further[0]:g}" if further and further[0] else None, "Prompt number": str(one.number),
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a1111_reads_what_is_meant(name):
    found = GOLDEN["read"][name]
    assert read(infotext(*CASES[name])) == found["text"]  # what it was given
    wanted = meant(name)
    assert {key: found["a1111"].get(key) for key in wanted} == wanted
    own = parsed(found["text"])  # by the parser of the tests below
    width, height = own.pop("Size").split("x")
    own |= {"Prompt": own.pop("prompt"), "Negative prompt": own.pop("negative"), "Size-1": width, "Size-2": height}
    assert own.items() <= found["a1111"].items()


@pytest.mark.parametrize("name", CASES)
def test_sd_parsers_reads_what_is_meant(name):
    found, wanted = GOLDEN["read"][name]["sd_parsers"], meant(name)
    assert found["prompts"] == [wanted["Prompt"]] * bool(wanted["Prompt"])
    assert found["negative"] == [wanted["Negative prompt"]] * bool(wanted["Negative prompt"])
    assert found["sampler"] == wanted["Sampler"]
    assert found["parameters"] == {
        "scheduler": wanted["Schedule type"], "cfg_scale": wanted["CFG scale"], "seed": wanted["Seed"],
        "steps": wanted["Steps"],
    }  # fmt: skip
    if name != "quoted":  # it takes a value apart at the commas in its quotes
        assert found["model"] == [wanted["Model"], wanted["Model hash"]]


# infotext's names of samplers -> ComfyUI's. The others it leaves at what its node has: euler_a and unipc are none of its names.
IN_COMFYUI = {"Euler": "euler", "DPM++ 2M": "dpmpp_2m", "DDIM": "ddim"}


@pytest.mark.parametrize("name", CASES)
def test_comfyui_reads_what_is_meant(name):
    found, wanted = GOLDEN["read"][name]["comfyui"], meant(name)
    prompt = wanted["Prompt"].replace("<lora:x:1>", "").strip()  # which becomes a node of its own
    assert [text.strip() for text in found["CLIPTextEncode"]["text"]] == [prompt, wanted["Negative prompt"]]
    sampler = {"sampler_name": IN_COMFYUI.get(wanted["Sampler"]), "scheduler": "normal"}  # Karras it does not look at
    sampler |= {"steps": int(wanted["Steps"]), "cfg": float(wanted["CFG scale"]), "seed": int(wanted["Seed"])}
    assert found["KSampler"] == {key: [value] for key, value in sampler.items() if value is not None}
    up = {key: -(-int(wanted[size]) // 64) * 64 for key, size in (("width", "Size-1"), ("height", "Size-2"))}
    assert found["EmptyLatentImage"] == {key: [value] for key, value in up.items()}
    if name != "quoted":  # it cuts a value at its colon
        assert found["CheckpointLoaderSimple"]["ckpt_name"] == [f"{wanted['Model']}.safetensors"]


def test_a1111_weighs_words_only_where_they_were_weighed_here():
    found = {name: one["a1111"].get("Emphasis") for name, one in GOLDEN["read"].items()}
    assert found.pop("brackets") == found.pop("half") == "None" and found.pop("weights") == "Original"
    assert set(found.values()) == {None}


def test_a1111_has_these_samplers_schedules_and_options():
    names = GOLDEN["labels"]
    assert {name for name, _ in NAMES.values()} <= set(names["samplers"])
    assert {schedule for _, schedule in NAMES.values()} <= set(names["schedules"])
    assert {"Model hash", "Noise Schedule", "Emphasis"} <= set(names["options"])


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
    for one, emphasis in ((weighted, "a1111"), (picture(), "none")):
        assert "Emphasis" not in infotext(one, "euler", 0.0, False, "base", None, emphasis=emphasis)
    negative = picture(negative_prompt="[red]")
    assert "Emphasis: None" in infotext(negative, "euler", 0.0, False, "base", None, emphasis="none")


def test_what_is_not_there_is_left_out():
    text = infotext(picture(), "ddim", 0.0, False, "base", None)
    assert "Model hash" not in text
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
