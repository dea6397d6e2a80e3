"""A small project whose stages write, within a second, outs of the real ones' form, for the report's tests.

Names and texts that come from outside try to run a script. As a program (`python -m tests.report.report_samples STAGE`) it is
the stages of that project."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from pipeline import times
from tests.data.data_sets import picture
from tests.project import ROOT

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror=window.hacked=1>{{ 7 * 6 }}"
EVIL_NAME = '"><img src=x onerror=window.hacked=1>'
SIZES = [(64, 64), (64, 64), (96, 48), (48, 96), (64, 64), (64, 40), (40, 64), (128, 64)]
EXPERIMENTS = {"faster": {"train.learning_rate": 2e-3, "train.sample_interval": 50}, "longer": {"train.steps": 800}}
SECONDS = 61  # that each stage seems to have taken
STAGES = {
    "index": (["data/images"], ["data.images"], ["outs/index"]),
    "convert": ([], ["model.config"], ["outs/convert/vae.ckpt"]),
    "cache_latents": (["outs/index", "outs/convert/vae.ckpt"], ["cache_latents.crop"], ["outs/latents"]),
    "train": (
        ["outs/latents"],
        ["train.steps", "train.learning_rate", "train.sample_interval"],
        ["outs/train/live/log.jsonl", "outs/train/live/pictures"],
    ),
    "sample": (["outs/train/live/log.jsonl"], ["sample.prompts"], ["outs/sample"]),
}


def write_project(root: Path, *stages: str) -> None:
    """The project with pictures and settings, and the outs of the named stages, made without DVC."""
    images = root / "data/images"
    images.mkdir(parents=True)
    for number, size in enumerate(SIZES):
        (images / f"{number}.png").write_bytes(picture(number, *size))
        (images / f"{number}.txt").write_text(f"picture {number}")
    (images / f"{EVIL_NAME}.png").write_bytes(picture(99, 64, 64))
    (images / f"{EVIL_NAME}.txt").write_text(EVIL)
    (images / f"bad {EVIL_NAME}.png").write_bytes(b"no picture")
    (images / f"alone {EVIL_NAME}.txt").write_text("of no picture")
    edit(root / "params.yaml", ROOT / "params.yaml", {"index.max_rejected": 0.5, "sample.prompts": ["a star", EVIL]})
    listed = {}
    for name, (deps, params, outs) in STAGES.items():
        command = f"python -m tests.report.report_samples {name}"
        listed[name] = {"desc": f"Do {name}", "cmd": command, "deps": deps, "params": params, "outs": outs}
    with open(root / "dvc.yaml", "w") as file:
        YAML().dump({"stages": listed}, file)
    for stage in stages:
        run(stage, root)


def edit(file: Path, source: Path, values: dict[str, object]) -> None:
    """Write `source` with other values of keys such as train.steps to `file`."""
    yaml = YAML()
    tree = yaml.load(source)
    for key, value in values.items():
        section, name = key.split(".")
        tree[section][name] = value
    with open(file, "w") as stream:
        yaml.dump(tree, stream)


def write_repository(root: Path) -> None:
    """The project under git and DVC with its stages run, and the experiments "faster" and "longer"."""
    write_project(root)
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".gitignore", ".dvc/.gitignore"):
        shutil.copy2(ROOT / name, root / name)
    command(root, "git", "init", "--quiet", "--initial-branch=main")
    command(root, "dvc", "repro")
    command(root, "git", "add", "--all")
    command(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message=start")
    for name, changes in EXPERIMENTS.items():
        words = [word for key, value in changes.items() for word in ("-S", f"{key}={value}")]
        command(root, "dvc", "exp", "run", "-n", name, *words)
        command(root, "git", "reset", "--quiet", "--hard")  # the experiment's settings and outs stay in the workspace
    command(root, "dvc", "checkout", "--quiet", "--force")


def command(root: Path, program: str, *words: str) -> str:
    """Run git or dvc in the project; -> what it printed."""
    env = {k: v for k, v in os.environ.items() if k != "DVC_ROOT"} | {"PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run([program, *words], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(stage: str, root: Path) -> None:
    params = YAML(typ="safe").load(root / "params.yaml")
    for out in STAGES[stage][2]:
        (root / out).parent.mkdir(parents=True, exist_ok=True)
    {"index": _index, "convert": _convert, "cache_latents": _latents, "train": _train, "sample": _sample}[stage](
        root, params
    )
    deps, keys, _ = STAGES[stage]
    values = {key: params[key.partition(".")[0]][key.partition(".")[2]] for key in keys}
    times.note(stage, values, deps, time.time() - SECONDS)


def _index(root: Path, params: dict) -> None:
    from pipeline.data.index import index
    from pipeline.data.sources import open_source
    from pipeline.report import data_page

    sizes, out, source = [(32, 64), (64, 64), (64, 32)], root / "outs/index", open_source(str(root / "data/images"))
    index(source, out, sizes, 32, 2.0, 10**6, 0.5, 1)
    data_page.write(out, source, params["data"]["images"], 10**6, out / "report.html")


def _convert(root: Path, params: dict) -> None:
    (root / "outs/convert/vae.ckpt").write_bytes(b"weights")


def _latents(root: Path, params: dict) -> None:
    import pyarrow.parquet as pq

    from pipeline.cache.format import shards
    from tests.cache.cache_samples import latent, write_cache

    rows = pq.read_table(root / "outs/index/images.parquet").to_pylist()
    used = [latent(row["image"], (row["bucket_width"], row["bucket_height"])) for row in rows if not row["rejected"]]
    made_with = {"crop": "center", "interpolation": "lanczos", "background": [255, 255, 255]}
    write_cache(root / "outs/latents", shards.LATENTS, used, made_with)


def _train(root: Path, params: dict) -> None:
    live, train, draw = root / "outs/train/live", params["train"], np.random.default_rng(0)
    (live / "pictures").mkdir(exist_ok=True)
    with open(live / "log.jsonl", "w") as file:
        for step in range(train["steps"] + 1):
            level = 0.1 + 0.4 * math.exp(-step * train["learning_rate"] * 10)
            if step % 100 == 0:
                timesteps = {f"validation/loss_t{t}": level * 100 / t for t in (100, 500, 900)}
                file.write(json.dumps({"step": step, "validation/loss": level, **timesteps}) + "\n")
            if step:
                values = {"loss": level + 0.05 * draw.standard_normal(), "grad_norm": 1.0, "images_per_second": 100.0}
                values |= {"step_seconds": 0.16, "data_wait_seconds": 0.001, "learning_rate": train["learning_rate"]}
                file.write(json.dumps({"step": step, **{f"train/{k}": v for k, v in values.items()}}) + "\n")
            if train["sample_interval"] and step and step % train["sample_interval"] == 0:
                (live / f"pictures/step-{step:08d}.png").write_bytes(picture(step, 256, 64))


def _sample(root: Path, params: dict) -> None:
    folder = root / "outs/sample"
    folder.mkdir(exist_ok=True)
    for number in range(len(params["sample"]["prompts"])):
        (folder / f"{number:02d}_base.png").write_bytes(picture(number, 64, 64))
        Image.new("RGB", (64, 64), (200, 40 * number, 0)).save(folder / f"{number:02d}_tuned.png")
    (folder / "grid.png").write_bytes(picture(7, 128, 128))


if __name__ == "__main__":
    run(sys.argv[1], Path())
