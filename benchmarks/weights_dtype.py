"""The demo's training with float32 and with bfloat16 weights, of several seeds: the validation loss before and after it,
and the peak memory of the train stage.

    python -m benchmarks.weights_dtype FOLDER [--seeds 3] [--dtypes float32 bfloat16]

FOLDER is a clone of the project, made where there is none. The first run of each dtype compiles its graphs, the others
read them, which takes less memory."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

DTYPES = ("float32", "bfloat16")
LOSS = "validation/loss"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    given = parser.parse_args()
    if not given.folder.exists():
        subprocess.run(["git", "clone", "-q", ".", str(given.folder)], check=True)
    dvc(given.folder, "repro", "-q", "convert", "cache_latents", "cache_text")
    ends = {dtype: [] for dtype in given.dtypes}
    for seed in range(given.seeds):
        for dtype in given.dtypes:
            curve, peak = train(given.folder, dtype, seed)
            ends[dtype].append(list(curve.values())[-1])
            said = ", ".join(f"{step}: {loss:.4f}" for step, loss in curve.items())
            print(f"{dtype}, seed {seed}: {said}; peak {peak / 1e9:.2f} GB", flush=True)
    for dtype, losses in ends.items():
        spread = f", deviation {stdev(losses):.4f}" if len(losses) > 1 else ""
        print(f"{dtype}: mean of the last {mean(losses):.4f}{spread}")


def train(folder: Path, dtype: str, seed: int) -> tuple[dict[int, float], int]:
    """Step -> validation loss, and the stage's peak in bytes."""
    store = folder / ".store"
    shutil.rmtree(store / "trained", ignore_errors=True)  # the outs of finished trainings, which it would take
    settings = ["-S", f"train.weights_dtype={dtype}", "-S", f"train.seed={seed}", "-S", "train.validation_interval=600"]
    dvc(folder, "exp", "run", "-q", "--force", "--single-item", *settings, "train")
    rows = map(json.loads, (folder / "outs/train/live/log.jsonl").read_text().splitlines())
    newest = max((store / "times").glob("train-*.json"), key=lambda file: file.stat().st_mtime)
    return {row["step"]: row[LOSS] for row in rows if LOSS in row}, json.loads(newest.read_text())[-1]["peak_bytes"]


def dvc(folder: Path, *words: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PIPELINE_STORE": str(folder.resolve() / ".store")}
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main()
