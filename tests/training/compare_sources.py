"""A training on pictures against that on the cache, with the encoders and the UNet themselves:

    python -m tests.training.compare_sources CLONE [--steps 24] [--rate 1e-5]

CLONE is a clone of the repository in which `make repro` has run; its outs/train is lost. Prints the largest difference of the
losses, each as a share of the cached run's, of the first half of the steps and of all."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml


def losses(clone: Path, changes: dict) -> np.ndarray:
    """(steps,) of a training in `clone` with these keys of params.yaml's section train."""
    path = clone / "params.yaml"
    before = path.read_bytes()
    try:
        tree = yaml.safe_load(before)
        tree["train"] |= changes
        path.write_text(yaml.safe_dump(tree))
        subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "train"], cwd=clone, check=True, stdout=subprocess.DEVNULL
        )
    finally:
        path.write_bytes(before)
    rows = [json.loads(line) for line in (clone / "outs/train/live/log.jsonl").read_text().splitlines()]
    return np.array([row["train/loss"] for row in rows if "train/loss" in row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1e-5)
    given = parser.parse_args()
    settings = {
        "steps": given.steps, "learning_rate": given.rate, "log_interval": 1, "lr_warmup_steps": 0,
        "validation_share": 0.0, "keep_best": False, "sample_interval": 0,
    }  # fmt: skip
    cached = losses(given.clone, {**settings, "source": "cache"})
    live = losses(given.clone, {**settings, "source": "pictures"})
    assert len(cached) == len(live) == given.steps, (len(cached), len(live))
    apart = np.abs(live / cached - 1)
    print(
        f"losses of {cached.min():.3f} to {cached.max():.3f}; first {given.steps // 2} steps: {apart[: given.steps // 2].max():.1e}, all: {apart.max():.1e}"
    )


if __name__ == "__main__":
    main()
