"""Make infotext.json: what A1111's web UI, sd-parsers and ComfyUI read, by their own code, in the PNGs of infotext_rule.py;
and the names of samplers, schedules and options that the first knows.

In an environment of its own: pip install sd-parsers==0.6 pillow pydantic ruamel.yaml tqdm numpy (the last four for this
project's), and node 20; then with clones of github.com/AUTOMATIC1111/stable-diffusion-webui (v1.10.1, commit 82a973c) and
github.com/comfyanonymous/ComfyUI (e99d97a, which had its web page with it; ComfyUI_frontend's src/scripts/pnginfo.ts at
0c578ae has the same function with types)
`python -m tests.golden.make_infotext path/to/stable-diffusion-webui path/to/ComfyUI` in the project's folder.

Of A1111 the functions are run as they stand there, without the rest of their modules; of ComfyUI importA1111, in node."""

import ast
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from PIL import Image
from sd_parsers import ParserManager

from pipeline.sampling.infotext import infotext, png_info
from tests.golden.infotext_rule import CASES

MODULES, COMFYUI = Path(sys.argv[1]) / "modules", Path(sys.argv[2])


def tree(name: str) -> ast.Module:
    return ast.parse((MODULES / f"{name}.py").read_text())


def run(module: str, names: set[str], space: dict) -> SimpleNamespace:
    """The functions and patterns of a module of A1111's with these `names`, which see `space`."""
    for node in tree(module).body:
        defined = {node.name} if isinstance(node, ast.FunctionDef) else set()
        defined |= {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
        if defined & names:
            exec(compile(ast.Module([node], []), f"{module}.py", "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in names})


def reader():
    """A1111's parse_generation_parameters, without its styles and with nothing of an infotext skipped."""
    options = SimpleNamespace(infotext_styles="Ignore", infotext_skip_pasting=[], use_old_hires_fix_width_height=False)
    space = {
        "re": re, "json": json, "shared": SimpleNamespace(opts=options),
        "infotext_versions": SimpleNamespace(backcompat=lambda found: None),  # which wants a Version, and ours says none
        "prompt_parser": run("prompt_parser", {"re_attention", "re_break", "parse_prompt_attention"}, {"re": re}),
    }  # fmt: skip
    names = {"re_param_code", "re_param", "re_imagesize", "unquote", "restore_old_hires_fix_params"}
    return run("infotext_utils", names | {"parse_generation_parameters"}, space).parse_generation_parameters


def labels() -> dict[str, list[str]]:
    """What A1111 calls its samplers, schedules, and the settings that an infotext may override."""
    found = {"samplers": [], "schedules": [], "options": []}
    for module, name in (("sd_samplers_kdiffusion", "samplers_k_diffusion"), ("sd_samplers_timesteps", "samplers_timesteps")):  # fmt: skip
        for node in tree(module).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
                found["samplers"] += [entry.elts[0].value for entry in node.value.elts]
    for node in ast.walk(tree("sd_schedulers")):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Scheduler":
            found["schedules"].append(node.args[1].value)
    for node in ast.walk(tree("shared_options")):
        if isinstance(node, ast.keyword) and node.arg == "infotext":
            found["options"].append(node.value.value)
    return found


def comfyui(texts: list[str]) -> list[dict[str, dict[str, list]] | None]:
    """The settings of the nodes that it makes of each, by kind of node and name."""
    space: dict = {}
    for node in ast.parse((COMFYUI / "comfy/samplers.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("KSAMPLER_NAMES", "SAMPLER_NAMES"):
            exec(compile(ast.Module([node], []), "samplers.py", "exec"), space)
    source = (COMFYUI / "web/scripts/pnginfo.js").read_text()
    given = json.dumps({"source": source, "texts": texts, "samplers": space["SAMPLER_NAMES"]})
    script = Path(__file__).with_name("read_by_comfyui.mjs")
    ran = subprocess.run(["node", script], input=given, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    return json.loads(ran.stdout)


def main() -> None:
    a1111, found = reader(), {}
    for name, case in CASES.items():
        file = io.BytesIO()
        Image.new("RGB", (2, 2)).save(file, "PNG", pnginfo=png_info(infotext(*case)))
        with Image.open(file) as image:
            text = image.info["parameters"]  # as A1111's read_info_from_image does
        seen = ParserManager().parse(io.BytesIO(file.getvalue()))
        (sampler,) = seen.samplers
        found[name] = {
            "text": text,
            "a1111": a1111(text),
            "sd_parsers": {
                "prompts": [prompt.value for prompt in seen.prompts],
                "negative": [prompt.value for prompt in seen.negative_prompts],
                "sampler": sampler.name,
                "parameters": sampler.parameters,
                "model": sampler.model and [sampler.model.name, sampler.model.hash],
                "metadata": seen.metadata,
            },
        }
    for one, graph in zip(found.values(), comfyui([one["text"] for one in found.values()]), strict=True):
        one["comfyui"] = graph
    content = json.dumps({"labels": labels(), "read": found}, ensure_ascii=False, indent=1, sort_keys=True)
    Path(__file__).with_name("infotext.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
