"""The whole demo by one `dvc repro` on the first of three nodes of a Ray cluster without a shared disk, against one computer:

    python -m tests.cluster_demo CLONE [--steps 40]

CLONE is a clone of the repository with the outs of `make repro`, which it loses. The nodes are network namespaces of this
computer; the first and one of the others have a rank of the training each, and these do not see CLONE. The index and both caches
must be byte for byte one computer's; losses, weights and pictures, which two ranks made, to rounding. Then a `dvc exp run` draws
other pictures there. It wants root, iproute2 (`ip`)
and Ray, so pytest does not run it."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from pipeline.weights import ckpt
from tests.cache.kill_nodes import bytes_of, inside
from tests.training.kill_nodes import FIRST, NODES, network, nodes

CACHED = ("outs/index", "outs/latents", "outs/text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    clone = given.clone.resolve()
    train = {"steps": given.steps, "learning_rate": 1e-5, "lr_warmup_steps": 0, "log_interval": 1}
    repro(clone, train, {})
    files, losses, weights, drawn = outcome(clone)
    for path in (clone / "outs", clone / ".store", clone / ".dvc/cache"):
        shutil.rmtree(path)
    with tempfile.TemporaryDirectory() as folder, network(), nodes(Path(folder), clone):
        began = time.monotonic()
        cluster = {"cluster": f"{NODES[FIRST]}:6379", "nodes": 2}
        repro(clone, {**train, "batch_size": 8}, cluster, *inside(FIRST))
        print(f"dvc repro on the cluster: {time.monotonic() - began:.0f} s", flush=True)
        found = outcome(clone)
        repro(clone, {**train, "batch_size": 8}, cluster, *inside(FIRST), command=["exp", "run", "-S", "sample.seed=7"])
        again = outcome(clone)
    assert again[:2] == found[:2] and not any((again[3][name] == drawn).all() for name, drawn in found[3].items())
    print("dvc exp run -S sample.seed=7: other pictures of the same training")
    assert found[0] == files, [name for name in files if found[0].get(name) != files[name]]
    print(f"index and caches: the same bytes, {len(files)} files")
    apart = np.abs(np.array(found[1]) / losses - 1).max()
    moved = max(float(np.abs(found[2][name] - value).max()) for name, value in weights.items())
    assert apart < 1e-4 and found[3].keys() == drawn.keys(), apart
    pixels = max(int(np.abs(found[3][name] - picture).max()) for name, picture in drawn.items())
    print(
        f"losses of {given.steps} steps: {apart:.1e} of themselves; weights: {moved:.1e}; {len(drawn)} pictures: {pixels} of 255"
    )


def repro(clone: Path, train: dict, device: dict, *before: str, command: Sequence[str] = ("repro",)) -> None:
    path = clone / "params.yaml"
    text = path.read_bytes()
    try:
        tree = yaml.safe_load(text)
        tree["train"] |= train
        tree["device"] |= device
        path.write_text(yaml.safe_dump(tree))
        environment = {**os.environ, "PIPELINE_STORE": str(clone / ".store")}
        subprocess.run([*before, sys.executable, "-m", "dvc", *command], cwd=clone, env=environment, check=True)
    finally:
        path.write_bytes(text)


def outcome(clone: Path) -> tuple[dict, list[float], dict, dict]:
    """(the bytes of the caches' files, losses, weights, pictures)"""
    files = {f"{out}/{name}": data for out in CACHED for name, data in bytes_of(clone / out).items()}
    rows = map(json.loads, (clone / "outs/train/live/log.jsonl").read_text().splitlines())
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    weights = {
        name: np.array(tensor.array()) for name, tensor in ckpt.read(clone / "outs/train/weights/unet.ckpt").items()
    }
    drawn = {
        path.relative_to(clone).as_posix(): np.array(Image.open(path).convert("RGB")).astype(int)
        for path in sorted((clone / "outs/sample").rglob("*.png"))
    }
    return files, losses, weights, drawn


if __name__ == "__main__":
    main()
