"""Which flags the other trainers' scripts have: flags.json, which tests/test_docs_flags.py holds against the pages.

python -m tests.reference.make_flags MINDONE SD_SCRIPTS DIFFUSERS: folders of git clones, of which the named commits are read.
MindONE's example was taken out of mindspore-lab/mindone; Mark-ZhouWX/mindone still has its last state."""

import ast
import json
import subprocess
import sys
from pathlib import Path

FLAGS = Path(__file__).with_name("flags.json")
# name -> repository, commit, the script, the function that makes its parser, and where further such functions are
SCRIPTS = {
    "mindone": (
        "Mark-ZhouWX/mindone", "f3e78447", "examples/stable_diffusion_xl/train.py", "get_parser_train", "",
    ),
    "kohya": ("kohya-ss/sd-scripts", "48d368fa", "sdxl_train.py", "setup_parser", "library"),
    "diffusers": (
        "huggingface/diffusers", "58eb52c0", "examples/text_to_image/train_text_to_image_sdxl.py", "parse_args", "",
    ),
}  # fmt: skip


def git(clone: str, *words: str) -> str:
    return subprocess.run(["git", "-C", clone, *words], capture_output=True, text=True, check=True).stdout


def functions(text: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}


def flags(function: str, known: dict[str, ast.FunctionDef], seen: set[str]) -> set[str]:
    """Those that a function adds to its parser, itself or by the functions that it calls."""
    seen.add(function)
    found = set()
    for call in (node for node in ast.walk(known[function]) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name == "add_argument":
            words = [word.value for word in call.args if isinstance(word, ast.Constant)]
            found |= {word for word in words if word.startswith("--")}
        elif name in known and name not in seen and ("argument" in name or "parser" in name):
            found |= flags(name, known, seen)
    return found


def main(*clones: str) -> None:
    found = {}
    for (name, (repository, commit, script, function, library)), clone in zip(SCRIPTS.items(), clones, strict=True):
        files = git(clone, "ls-tree", "-r", "--name-only", commit, "--", library).split() if library else []
        known = {}
        for file in [*(file for file in files if file.endswith(".py")), script]:
            known |= functions(git(clone, "show", f"{commit}:{file}"))
        listed = sorted(flags(function, known, set()))
        found[name] = {"repository": repository, "commit": commit, "script": script, "flags": listed}
    FLAGS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
