"""Kill the train stage, let it go on, and compare its end with an unbroken run's.

    python -m tests.training.kill_train [--kills 30] [--seed 0]     # the stage alone, at random moments
    python -m tests.training.kill_train --experiments CLONE         # in dvc repro, exp run, exp run --temp and a queue task

The first uses a UNet of SDXL's parts (tests/training/training_samples.py), with EMA, two buckets, remainders and several states;
its moments are drawn over the whole life of a process: start, compilation, steps, states, validation, outs. The second
works in a clone of the repository in which the pipeline has run, and leaves that clone changed."""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.cache import kill_cache
from tests.cache.kill_cache import dvc
from tests.training.test_resume import ROOT, ends
from tests.training.training_samples import write_workspace

SETTINGS = [
    "train.steps=60",
    "train.ema=true",
    "train.log_interval=7",
    "train.validation_interval=20",
    "train.checkpointing_steps=5",
    "train.checkpoints_total_limit=2",
    "train.save_interval=9",
    "train.save_limit=4",
    "train.save_dtype=float16",
    "train.keep_best=true",
    "diffusion.prediction=flow",
    "train.timestep_distribution=logit_normal",
    "train.multires_noise_iterations=3",
    'train.groups=[{pattern: "*.attn?.*", learning_rate: 2.0}, {pattern: "time_embed*", freeze: true}]',
    "train.lr_scheduler=wsd",
    "train.optimizer=adamw8bit",
    "train.weights_dtype=bfloat16",
]


def start(workspace: Path, store: Path) -> subprocess.Popen:
    shutil.rmtree(store / "trained", ignore_errors=True)  # else the outs of a finished run would be taken
    environment = {
        **os.environ,
        "PIPELINE_STORE": str(store),
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.training_samples", *SETTINGS],
        cwd=workspace,
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def kill_often(kills: int, seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        workspace = write_workspace(Path(folder) / "work", buckets=((64, 64), (64, 32)))
        began = time.time()
        if start(workspace, Path(folder) / "whole").wait():
            sys.exit("the unbroken run failed")
        life = time.time() - began
        wanted = ends(workspace)
        print(f"unbroken: {life:.1f} s", flush=True)
        store, killed, ended = Path(folder) / "killed", 0, 0
        while killed < kills:
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
            if other := _differing(ends(workspace), wanted):
                sys.exit(f"after {killed} kills: another end than the unbroken run's in {other}")
        failed = start(workspace, store).wait()
        if failed or (other := _differing(ends(workspace), wanted)):
            sys.exit("the last run failed" if failed else f"the last run ended otherwise in {other}")
        print(f"{killed} kills, {ended + 1} runs came to their end, all with the same bits")


def _differing(found: tuple, wanted: tuple) -> str:
    """Which of the weights' files and curves are not the same."""
    (files, rows, curves), (other_files, other_rows, other_curves) = found, wanted
    names = {*files, *curves, *other_files, *other_curves}
    both, others = files | curves, other_files | other_curves
    other = sorted(name for name in names if both.get(name) != others.get(name))
    return ", ".join(other + (["log.jsonl"] if rows != other_rows else []))


def kill_experiments(clone: Path) -> None:
    """Each kind of run is killed when its state of step 20 is there, and then started again by the same command."""
    states = clone / ".store/train"
    for seed, words in enumerate((["repro"], ["exp", "run"], ["exp", "run", "--temp"], ["queue"]), 1):
        reset(clone)
        settings = {"train.seed": seed, "train.steps": 60, "train.checkpointing_steps": 10}
        options = [word for key, value in settings.items() for word in ("-S", f"{key}={value}")]
        if words == ["repro"]:
            tree = yaml.safe_load((clone / "params.yaml").read_text())
            tree["train"] |= {key.split(".")[1]: value for key, value in settings.items()}
            (clone / "params.yaml").write_text(yaml.safe_dump(tree))
            options = []
        before = experiments(clone)
        for attempt in ("killed", "whole"):
            if words == ["queue"]:
                dvc(clone, "exp", "run", "--queue", *options, "train")
                run = kill_cache.start(clone, sys.executable, "-m", "dvc", "queue", "start")
            else:
                run = kill_cache.start(clone, sys.executable, "-m", "dvc", *words, *options, "train")
            deadline = time.monotonic() + 900
            while attempt == "killed" and not list(states.glob("*/step-00000020")):
                assert time.monotonic() < deadline, "no state of step 20"
                time.sleep(0.05)
            if attempt == "killed":
                pids = [pid for pid, line in kill_cache.processes(clone).items() if "stages.train" in line]
                for pid in pids if words == ["queue"] else []:
                    os.kill(pid, signal.SIGKILL)
                if words != ["queue"]:
                    os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            while any("stages." in line or "dvc" in line for line in kill_cache.processes(clone).values()):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert bool(list(states.glob("*/step-*"))) == (attempt == "killed"), f"states after the {attempt} run"
            if attempt == "killed" and words != ["repro"]:
                reset(clone)
        if "--temp" in words or words == ["queue"]:
            (name,) = experiments(clone) - before
            dvc(clone, "exp", "apply", name)
        found = digest(clone)
        with tempfile.TemporaryDirectory() as store:
            environment = kill_cache.environment(clone) | {"PIPELINE_STORE": store}
            subprocess.run([sys.executable, "-m", "stages.train"], cwd=clone, env=environment, check=True)
        assert digest(clone) == found, f"dvc {' '.join(words)} ended otherwise than an unbroken run"
        print(f"dvc {' '.join(words)}: killed, went on, and ended with the unbroken run's bits", flush=True)


def reset(clone: Path) -> None:
    """The committed params, and the outs of the pipeline's run with them."""
    subprocess.run(["git", "checkout", "--quiet", "--force", "HEAD"], cwd=clone, check=True)
    dvc(clone, "repro")


def experiments(clone: Path) -> set[str]:
    command = [sys.executable, "-m", "dvc", "exp", "list", "--name-only"]
    return set(subprocess.check_output(command, cwd=clone, text=True).split())


def digest(clone: Path) -> str:
    return hashlib.sha256((clone / "outs/train/weights/unet.ckpt").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experiments", type=Path, metavar="CLONE")
    arguments = parser.parse_args()
    if arguments.experiments:
        kill_experiments(arguments.experiments.resolve())
    else:
        kill_often(arguments.kills, arguments.seed)


if __name__ == "__main__":
    main()
