"""Pre-trains the demo's UNet in the base style with the project's own stages:  python -m demo.unet, after demo.vae

A folder in the store gets a params.yaml and stands for a project of its own: its data are thousands of base style
pictures, its base model has the trained VAE and a UNet that has learnt nothing. Its merged checkpoint is the demo's
base model. A killed run goes on where its stages can: run it again."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from demo import pictures, vae, weights
from pipeline import store
from pipeline.stage import PROJECT

WORK = Path("demo/unet")  # in the store
RESULT = WORK / "outs/merge/merged.safetensors"
PICTURES, SEED = 6000, 4
STAGES = ("index", "convert", "cache_latents", "cache_text", "train", "merge")
CHANGES = {
    "data": {"images": "images"},
    "model": {"base": "start.safetensors", "vae": "start.safetensors", "tokenizer": str(PROJECT / "data/tokenizer")},
    "index": {"resolution": 64},
    "cache_latents": {"batch_size": 32, "store": "moments"},
    "cache_text": {"batch_size": 32},
    "train": {
        "steps": 4000,
        "batch_size": 64,
        "learning_rate": 1.5e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 200,
        "adam_beta2": 0.99,
        "caption_dropout": 0.1,
        "caption_dropout_with": "zeros",
        "ema": True,
        "ema_decay": 0.998,
        "validation_share": 0.01,
        "validation_interval": 500,
        "checkpointing_steps": 250,
    },
    "merge": {"weights": "ema", "dtype": "float16"},
}


def prepare(folder: Path) -> None:
    """Lay out the project that is run."""
    parts = [weights.initial(part) for part in ("unet", "clip_l", "clip_g")] + [weights.load(store.root() / vae.PATH)]
    weights.save(folder / "start.safetensors", {name: value for part in parts for name, value in part.items()})
    if not (folder / "images").exists():
        with store.atomic(folder / "images") as images:
            pictures.write_folder(images, PICTURES, SEED, "base")
    settings = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    for section, changes in CHANGES.items():
        settings[section] |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def main() -> None:
    folder = store.root() / WORK
    prepare(folder)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    for stage in STAGES:
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main()
