"""A project in which DVC runs each stage in seconds: index, convert, both caches and merge are the real ones, but for the
encoders' networks, which would be compiled in each run; train and sample are stood in for by scripts."""

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.models.config import TINY
from tests import quick_python
from tests.project import copy_project
from tests.weights import provenance_samples
from tests.weights.synthetic import write_checkpoint

ALL = ["index", "convert", "cache_latents", "cache_text", "train", "merge", "sample"]

TRAIN = """
import hashlib, json, shutil
from pathlib import Path
import numpy as np
import yaml
from pipeline.weights.adapters.file import write
from pipeline.weights.chosen import trained_parts

stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["train"]
params = yaml.safe_load(Path("params.yaml").read_text())
digest = hashlib.sha256(json.dumps([params["train"], params["diffusion"]]).encode())
for dep in stage["deps"]:
    for file in sorted(Path(dep).rglob("*")) if Path(dep).is_dir() else [Path(dep)]:
        if file.suffix in (".parquet", ".ckpt", ".json"):
            digest.update(file.read_bytes())
for out in [o for kind in ("outs", "metrics", "plots") for o in stage.get(kind, [])]:
    out = Path(out if isinstance(out, str) else next(iter(out)))
    folder = out if not out.suffix else out.parent
    folder.mkdir(parents=True, exist_ok=True)
    (out if out.suffix else out / "stand_in.json").write_text(json.dumps({"digest": int(digest.hexdigest()[:6], 16)}))
parts = [*trained_parts(params["train"]["text_encoders"]), "unet"]
found, weights = digest.digest(), bytearray()
for part in parts:
    weights += Path(f"outs/convert/{part}.ckpt").read_bytes()
    weights[-2:] = bytes([found[0], found[1] & 0x3F])  # its last tensor's last value, below 2
if params["train"]["adapter"] == "none":
    Path("outs/train/weights/unet.ckpt").write_bytes(weights)
    weights[-2:] = bytes([found[2], found[3] & 0x3F])
    Path("outs/train/weights/step-00000300.ckpt").write_bytes(weights)
else:
    layer, rank = "lora_unet_middle_block_1_proj_in", params["train"]["rank"]
    values = np.full((128, rank), found[0] / 256, np.float32)
    parts = {f"{layer}.lora_up.weight": values, f"{layer}.lora_down.weight": np.ones_like(values.T)}
    write(Path("outs/train/weights/adapter.safetensors"), parts, {layer: rank}, {})
facts = json.loads(Path("facts.json").read_text())
Path("outs/train/weights/run.json").write_text(json.dumps(facts | {"name": digest.hexdigest()}))
"""


ENCODE = '''
"""In place of pipeline/models/encode.py: outputs that the weights count in."""

import zlib

import numpy as np


def _factor(*files):
    return np.float32(sum(zlib.crc32(file.read_bytes()) for file in files) % 1000)


def vae_encoder(config, ckpt, device, precision):
    factor = _factor(ckpt)

    def encode(pixels):
        means = pixels.reshape(*pixels.shape[:2], pixels.shape[2] // 8, 8, -1, 8).mean((3, 5))
        return factor * np.concatenate([means, means, means[:, :2]], axis=1)

    return encode


def text_encoder(config, clip_l, clip_g, device, precision):
    factor = _factor(clip_l, clip_g)

    def encode(ids_l, ids_g):
        hidden = np.repeat((ids_l + ids_g)[..., None], config.unet.context_dim, axis=2)
        return factor * hidden.astype(np.float32) / 1e6, hidden[:, 0, : config.clip_g.projection_dim].astype(np.float32)

    return encode
'''


@contextlib.contextmanager
def project_in(folder: Path) -> Iterator[Path]:
    """A committed copy of the project with six pictures and random tiny weights, in which nothing was run; and a `python`
    that begins quickly, as long as it is there."""
    root, quick = folder / "project", folder / "python"
    quick.mkdir()
    copy_project(root)
    (root / "data/images").mkdir()
    lines = []
    for number in range(6):
        picture(root, number)
        lines.append(f'{{"file_name": "{number}.png", "text": "picture {number}"}}\n')
    (root / "data/images/metadata.jsonl").write_text("".join(lines))
    (root / "data/base").mkdir()
    write_checkpoint(root / "data/base/tiny_sdxl.safetensors", TINY, seed=0, dtype="float16")
    write_checkpoint(root / "data/base/other.safetensors", TINY, seed=1, dtype="float16")
    (root / "pipeline/models/encode.py").write_text(ENCODE)
    (root / "stages/train.py").write_text(TRAIN)
    (root / "facts.json").write_text(json.dumps(provenance_samples.run()))
    (root / "stages/sample.py").write_text(
        "from pathlib import Path\n"
        "Path('outs/sample').mkdir(parents=True)\n"
        "Path('outs/sample/grid.png').write_bytes(b'')\n"
        "Path('outs/sample/metrics.json').write_text('{}')\n"
    )
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message=start")
    with quick_python.folder(quick) as programs, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        yield root


def picture(root: Path, number: int) -> None:
    save(root / f"data/images/{number}.png", number, 64, 64)


def save(path: Path, seed: int, width: int, height: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=root, check=True)


def ran(root: Path, *words: str) -> list[str]:
    """Run dvc and return the stages that it ran, in the graph's order."""
    return stages_of(dvc(root, *words))


def stages_of(output: str) -> list[str]:
    found = set(re.findall(r"Running stage '([^']+)'", output))
    return [stage for stage in ALL if stage in found]


def dvc(root: Path, *words: str) -> str:
    """Run dvc and return what it printed."""
    env = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "PIPELINE_STORE")}
    done = subprocess.run(["python", "-m", "dvc", *words], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def changed(root: Path, *settings: str) -> str:
    """As `dvc exp run -S ... -S ...`, but that no experiment is kept, which takes longer than the stages."""
    from dvc.utils.hydra import apply_overrides  # slow to import

    apply_overrides(root / "params.yaml", list(settings))
    return dvc(root, "repro")


def ran_changed(root: Path, *settings: str) -> list[str]:
    return stages_of(changed(root, *settings))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
