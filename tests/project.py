"""A copy of the project to run DVC in."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LEFT_OUT = ("data/", "tests/", "benchmarks/", "demo/", "outs/", "dvc.lock")


def copy_project(root: Path) -> None:
    """The code, params.yaml, dvc.yaml and the tokenizer as they stand in the working tree; no weights, no pictures."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in listed.splitlines():
        if not name.startswith(_LEFT_OUT) and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    for folder in ("data/tokenizer", "data/loras"):
        shutil.copytree(ROOT / folder, root / folder)
