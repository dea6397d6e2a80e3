"""Kill the train stage at random moments, let it go on each time, and compare its end with an unbroken run's.

    python -m benchmarks.kill_train [--kills 30] [--seed 0]

A UNet of SDXL's parts (tests/training_samples.py), with EMA, two buckets, remainders and several states. Moments are
drawn over the whole life of a process: start, compilation, steps, states, validation, outs."""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.test_resume import ROOT, ends
from tests.training_samples import write_workspace

SETTINGS = [
    "train.steps=60",
    "train.ema=true",
    "train.log_interval=7",
    "train.validation_interval=20",
    "train.checkpointing_steps=5",
    "train.checkpoints_total_limit=2",
]


def start(workspace: Path, store: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PIPELINE_STORE": str(store),
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training_samples", *SETTINGS],
        cwd=workspace,
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        workspace = write_workspace(Path(folder) / "work", buckets=((64, 64), (64, 32)))
        began = time.time()
        if start(workspace, Path(folder) / "whole").wait():
            sys.exit("the unbroken run failed")
        life = time.time() - began
        wanted = ends(workspace)
        print(f"unbroken: {life:.1f} s", flush=True)
        store, killed, ended = Path(folder) / "killed", 0, 0
        while killed < arguments.kills:
            run = start(workspace, store)
            try:
                # the first ones compile, the later ones take the graphs from the store and live shorter
                code = run.wait(timeout=draw.uniform(0, life))
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                run.wait()
                killed += 1
                continue
            if code:
                sys.exit(f"a run failed with {code}")
            ended += 1
            if ends(workspace) != wanted:
                sys.exit(f"after {killed} kills: another end than the unbroken run's")
        if start(workspace, store).wait() or ends(workspace) != wanted:
            sys.exit("the last run failed or ended otherwise")
        print(f"{killed} kills, {ended + 1} runs came to their end, all with the same bits")


if __name__ == "__main__":
    main()
