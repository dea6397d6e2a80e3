"""SIGKILL at random moments: of a cache stage, of the dvc that runs it, of their whole process group.

    python tests/cache/kill_cache.py --kills 100          # 100 kills of each cache stage, or of --stages cache_latents
    python tests/cache/kill_cache.py --experiments        # kills in `dvc exp run`, `exp run --temp` and a queue task
    python tests/cache/kill_cache.py --damage             # a flipped byte: verify --remove, then dvc repro

Works in a copy of the project, with encoders that take no MindSpore, a tenth of a second a batch, and small shards. A
third of the pictures have a mask, a quarter a centre of interest. They are in two sets: of one each picture is mirrored
too and its caption's tags are shuffled in eight ways, of the other each is encoded at two resolutions.
After each kill: every file of the store and the outs is whole, every row that the store held is still there, no process
is left.
In the end the outs are byte for byte those of a run that nobody killed."""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.cache.building import shelf  # noqa: E402
from pipeline.cache.format import shards  # noqa: E402
from pipeline.cache.tools import verify  # noqa: E402
from pipeline.models.config import TINY  # noqa: E402
from tests.project import copy_project  # noqa: E402
from tests.weights.synthetic import write_checkpoint  # noqa: E402

PICTURES = 120
ROWS = 2 * PICTURES  # of latents
SETS = [
    {"folder": "a", "flip": True, "shuffle_tags": True, "variants": 8},
    {"folder": "b", "resolution": [64, 96]},
]
STAGES = ("cache_latents", "cache_text")

ENCODERS = '''
"""Stand-ins: slow, and a function of the inputs and the weights' bytes. Each notes how many rows it was given."""
import hashlib
import os
import time

import numpy as np


def _scale(*paths):
    return hashlib.blake2b(b"".join(open(p, "rb").read() for p in paths), digest_size=1).digest()[0] / 256


def _note(kind, rows):
    with open(os.environ["ENCODED"], "ab") as log:
        log.write(f"{kind} {rows}\\n".encode())
    time.sleep(0.1)


def vae_encoder(config, ckpt, device, precision):
    scale = _scale(ckpt)

    def encode(pixels):
        _note("latents", len({p.tobytes() for p in pixels}))
        b, _, h, w = pixels.shape
        blocks = pixels.reshape(b, 3, h // 8, 8, w // 8, 8).mean((3, 5)) * scale
        return np.concatenate([blocks, blocks, blocks[:, :2]], 1).astype(np.float32)

    return encode


def text_encoder(config, clip_l, clip_g, device, precision):
    scale = _scale(clip_l, clip_g)

    def encode(ids_l, ids_g):
        _note("text", len({i.tobytes() for i in ids_l}))
        hidden = np.stack([ids_l, ids_g], 2).astype(np.float32) * scale
        return hidden, hidden[:, :6, 0]

    return encode
'''


def make_project(root: Path) -> None:
    """A committed copy of the project with PICTURES pictures, a caption each, after `dvc repro index convert`."""
    copy_project(root)
    (root / "pipeline/models/encode.py").write_text(ENCODERS)
    (root / "pipeline/device.py").write_text("def setup(target):\n    return target\n")
    _replace(root / "pipeline/cache/format/shards.py", "ROWS_PER_SHARD = 800", "ROWS_PER_SHARD = 64")
    _replace(root / "pipeline/cache/building/engine.py", "PART_SECONDS = 30.0", "PART_SECONDS = 0.3")
    lines = []
    for number in range(PICTURES):
        name = f"{'ab'[number % 2]}/{number}"
        (root / f"data/images/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"data/images/{name}.png")
        if number % 3 == 0:
            Image.fromarray(pixels[:, :, 0]).save(root / f"data/images/{name}.mask.png")
        line = {"file_name": f"{name}.png", "text": f"red, green, blue, yellow, black, picture {number}"}
        lines.append(line | ({"bbox": [number % 60, 10, 40, 30]} if number % 4 == 0 else {}))
    (root / "data/images/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "data/images/sets.yaml").write_text(json.dumps({"sets": SETS}))
    (root / "data/base").mkdir()
    write_checkpoint(root / "data/base/tiny_sdxl.safetensors", TINY)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=root, check=True)
    for key, value in (("user.name", "test"), ("user.email", "test@example.com")):
        subprocess.run(["git", "config", key, value], cwd=root, check=True)
    dvc(root, "repro", "index", "convert")
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message=start"], cwd=root, check=True)


def captions(root: Path) -> int:
    """How many there are, with the empty one: of one set nearly eight of each picture's, of the other one."""
    count = len(set(pq.read_table(root / "outs/index/captions.parquet")["caption"].to_pylist())) + 1
    assert PICTURES // 2 * 7 < count - 1 - PICTURES // 2 <= PICTURES // 2 * 8, count
    return count


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} no longer has {old!r}"
    path.write_text(text.replace(old, new))


def environment(root: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "PIPELINE_STORE")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        "ENCODED": str(root.parent / "encoded.log"),
    }


def start(root: Path, *command: str) -> subprocess.Popen:
    """A command in a process group of its own, its output in a file."""
    log = open(root.parent / "output.log", "ab")
    return subprocess.Popen(command, cwd=root, env=environment(root), stdout=log, stderr=log, start_new_session=True)


def dvc(root: Path, *words: str) -> None:
    process = start(root, sys.executable, "-m", "dvc", *words)
    if process.wait() != 0:
        sys.exit(f"dvc {' '.join(words)} failed; see the end of {root.parent / 'output.log'}")


def processes(root: Path) -> dict[int, str]:
    """The running processes whose working directory is in `root`: pid -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if Path(os.readlink(entry / "cwd")).is_relative_to(root):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def kill(root: Path, process: subprocess.Popen, mode: str) -> bool:
    """Kill as `mode` says. Returns whether a cache stage was running."""
    stages = [
        pid for pid, command in processes(root).items() if "-m stages.cache_" in command and "-c" not in command.split()
    ]
    try:
        if mode == "group":
            os.killpg(process.pid, signal.SIGKILL)
        elif mode == "dvc":
            os.kill(process.pid, signal.SIGKILL)
        else:
            for pid in stages:
                os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    return bool(stages)


def wait_until_alone(root: Path, seconds: float = 120.0) -> None:
    """A stage whose dvc was killed must end by itself."""
    deadline = time.monotonic() + seconds
    while left := {pid: command for pid, command in processes(root).items() if "stages." in command}:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)


def rows_of(folder: Path) -> set[tuple[str, bytes, tuple[int, int]]]:
    """(fingerprint, row, bucket) of all whole files. Fails when `verify` rejects one."""
    found = set()
    for paths in verify.distinct([folder]):
        reason = verify.damage(paths[0])
        assert reason is None, reason
        shard = shards.open_shard(paths[0], verify.kind_of(paths[0]))
        made_with = shards.canonical(shard.fingerprint)
        groups = map(tuple, shelf.groups_of(shard).tolist())
        found |= {(made_with, row.tobytes(), group) for row, group in zip(shard.columns["row"], groups)}
    return found


def kill_often(root: Path, stages: list[str], kills: int, seed: int = 0) -> None:
    """Kill `kills` runs of each of the stages while it works, then let it finish and compare with an unkilled run."""
    draw = random.Random(seed)
    store = root / ".store/cache"
    log = root.parent / "encoded.log"
    for stage in stages:
        kind = stage.removeprefix("cache_")
        log.write_bytes(b"")
        done = attempts = finished = encoding = 0
        before = rows_of(store) if store.exists() else set()  # of other kinds of runs
        held = set(before)
        while done < kills:
            attempts += 1
            assert attempts < 5 * kills + 20, "the kills never hit a running stage"
            mode = draw.choice(["stage", "dvc", "group"])
            process = start(root, sys.executable, "-m", "dvc", "repro", "--single-item", stage)
            before_it = log.stat().st_size
            _wait_for_stage(root, process)
            if draw.random() < 0.75:  # else perhaps while it starts, which may take longer than that
                _wait_for_batch(process, log)
            time.sleep(draw.uniform(0.0, 2.5))
            was_killed = kill(root, process, mode)
            done, encoding = done + was_killed, encoding + (was_killed and log.stat().st_size > before_it)
            wait_until_alone(root)
            now = rows_of(store) | rows_of(root / "outs" / kind) if (root / "outs" / kind).exists() else rows_of(store)
            assert held <= now, f"{len(held - now)} rows are gone after a kill of the {mode}"
            held = now
            if process.returncode == 0:  # finished before the kill: other weights give new work
                finished += 1
                for part in {"latents": ["vae"], "text": ["clip_l", "clip_g"]}[kind]:
                    with open(root / f"outs/convert/{part}.ckpt", "ab") as file:
                        file.write(b"\0")
        dvc(root, "repro", "--single-item", stage)
        encoded = sum(int(line.split()[1]) for line in log.read_text().split("\n") if line.startswith(kind))
        component = {"latents": "vae", "text": "clip_l"}[kind]
        needed = sum(component in fingerprint for fingerprint, *_ in rows_of(store) - before)
        print(
            f"{stage}: {done} kills in {attempts} runs, {encoding} of them after a first batch, {finished} finished; "
            f"{needed} rows, {encoded} encoded",
            flush=True,
        )
        lost = encoded - needed  # what was in flight: up to a part's 0.3 s, and the batches around the encoder
        assert 0 <= lost <= done * 64, f"{lost} rows were encoded again"
        outs = {path.name: path.read_bytes() for path in (root / "outs" / kind).iterdir()}
        opened = [shards.open_shard(path, verify.kind_of(path)) for path in (root / "outs" / kind).iterdir()]
        count = sum(map(len, opened))
        masked = sum(int(shard.columns["masked"].sum()) for shard in opened if "masked" in shard.columns)
        assert (count, masked) == ((ROWS, ROWS // 3) if kind == "latents" else (captions(root), 0))
        shutil.rmtree(root / ".store")
        shutil.rmtree(root / "outs" / kind)
        dvc(root, "repro", "--single-item", "--force", stage)
        assert outs == {path.name: path.read_bytes() for path in (root / "outs" / kind).iterdir()}


def _wait_for_stage(root: Path, process: subprocess.Popen) -> None:
    """Until the stage's process is there, or dvc has ended without one."""
    while process.poll() is None and not any("-m stages.cache_" in command for command in processes(root).values()):
        time.sleep(0.02)


def _wait_for_batch(process: subprocess.Popen, log: Path) -> None:
    """Until the encoder was called, or dvc has ended."""
    size = log.stat().st_size
    while process.poll() is None and log.stat().st_size == size:
        time.sleep(0.02)


def kill_experiments(root: Path) -> None:
    """Kill the latents' stage half-way in each kind of experiment; the same command again must go on from the store."""
    log = root.parent / "encoded.log"
    for number, words in enumerate((["exp", "run"], ["exp", "run", "--temp"], ["queue"]), 1):
        log.write_bytes(b"")
        setting = ["--single-item", "cache_latents", "-S", f"cache_latents.background=[{number},2,3]"]

        def run(kill_it: bool) -> None:
            if words == ["queue"]:
                dvc(root, "exp", "run", "--queue", *setting)
                command = ["queue", "start"]
            else:
                command = [*words, *setting]
            process = start(root, sys.executable, "-m", "dvc", *command)
            wanted = 100 if kill_it else ROWS
            deadline = time.monotonic() + 600
            while _encoded(log) < wanted and (process.poll() is None or words == ["queue"]):
                assert time.monotonic() < deadline, (
                    f"dvc {' '.join(command)} does not encode; see {root.parent / 'output.log'}"
                )
                time.sleep(0.02)
            if kill_it:
                kill(root, process, "stage" if words == ["queue"] else "group")
                wait_until_alone(root)
            while any("stages." in command or "dvc" in command for command in processes(root).values()):
                assert time.monotonic() < deadline + 600, processes(root)
                time.sleep(0.1)

        run(kill_it=True)
        first = _encoded(log)
        assert 100 <= first < ROWS
        subprocess.run(["git", "checkout", "--quiet", "--force", "main"], cwd=root, check=True)
        run(kill_it=False)
        total = _encoded(log)
        print(
            f"dvc {' '.join(words)}: killed after {first} rows, {total - first} more for the {ROWS} of the set",
            flush=True,
        )
        assert total - ROWS <= 64, "the second run did not go on from the store"
        rows_of(root / ".store/cache")
        subprocess.run(["git", "checkout", "--quiet", "--force", "main"], cwd=root, check=True)


def mend_damage(root: Path) -> None:
    """A byte flips in a file that is store, cache and out at once: `verify --remove`, then `dvc repro` mend it."""
    for stage in STAGES:
        kind = stage.removeprefix("cache_")
        dvc(root, "repro", "--single-item", stage)
        victim = sorted((root / "outs" / kind).iterdir())[1]
        links = victim.stat().st_nlink
        good = victim.read_bytes()
        with open(victim, "r+b") as file:  # in place, and so under all its names
            file.seek(len(good) // 2)
            file.write(bytes([good[len(good) // 2] ^ 1]))
        command = [sys.executable, "-m", "pipeline.cache", "verify"]
        found = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True)
        assert found.returncode == 1 and victim.name in found.stdout, found
        found = subprocess.run([*command, "--remove"], cwd=root, env=environment(root), capture_output=True, text=True)
        assert not victim.exists(), found
        log = root.parent / "encoded.log"
        log.write_bytes(b"")
        dvc(root, "repro", "--single-item", stage)
        assert victim.read_bytes() == good
        encoded = sum(int(line.split()[1]) for line in log.read_text().split("\n") if line)
        print(f"{stage}: a file with {links} links was damaged; {encoded} rows were encoded again", flush=True)
        assert (0 if links < 3 else 1) <= encoded < ROWS / 2  # below 3 links the store has a copy of its own


def _encoded(log: Path) -> int:
    return sum(int(line.split()[1]) for line in log.read_text().split("\n") if line.startswith("latents"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="of each cache stage")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="that --kills kills")
    parser.add_argument("--experiments", action="store_true")
    parser.add_argument("--damage", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "project"
        root.mkdir()
        try:
            make_project(root)
            if args.experiments:
                kill_experiments(root)
            if args.damage:
                mend_damage(root)
            if args.kills:
                kill_often(root, args.stages, args.kills, args.seed)
        except BaseException:
            print((root.parent / "output.log").read_text(errors="replace")[-3000:], file=sys.stderr)
            raise
    print("nothing was lost")


if __name__ == "__main__":
    main()
