"""A million small pictures in tars: seconds and peak memory of the index, first and again, and of what both caches are to
hold; and what DVC itself takes for a folder of single files and for the same in tars.

    python -m benchmarks.tars_1m FOLDER [--pictures 1000000] [--files 20000]

Pictures are JPEGs of 64×64 pixels, all different, 10,000 to a tar. About 3.5 GB in FOLDER for a million."""

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

PER_TAR = 10_000
WORDS = "a photo of red blue old small house cat tree street at night in the rain by morning light".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=20_000, help="of the comparison of DVC with single files; 0: none")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--measure", choices=("index", "latents", "text"), help="one step in this process")
    given = parser.parse_args()
    os.environ["PIPELINE_STORE"] = str(given.folder / "store")
    if given.measure:
        seconds = time.perf_counter()
        print(
            f"{given.measure}: {_STEPS[given.measure](given)}, {time.perf_counter() - seconds:.1f} s, peak {peak():.2f} GB"
        )
        return
    begin = time.perf_counter()
    with Pool(given.workers) as pool:
        jobs = [(given.folder / "tars", start, given.pictures) for start in range(0, given.pictures, PER_TAR)]
        pool.starmap(write_tar, jobs)
    print(f"{given.pictures:,} pictures in {len(jobs)} tars made in {time.perf_counter() - begin:.0f} s", flush=True)
    time.sleep(3)  # until the memo trusts the files' times
    for step in ("index", "index", "latents", "text"):
        words = [sys.executable, "-m", "benchmarks.tars_1m", str(given.folder), "--measure", step]
        subprocess.run([*words, "--workers", str(given.workers)], check=True)
    if given.files:
        dvc(given.folder / "dvc-tars", lambda folder: write_tar(folder, 0, given.files, given.files))
        dvc(given.folder / "dvc-files", lambda folder: write_files(folder, given.files))


def pictures(start: int, end: int) -> Iterator[tuple[str, bytes, bytes]]:
    """(name, picture, caption) each."""
    for number in range(start, end):
        draw = np.random.default_rng(number)
        small = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((64, 64), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
        yield f"{number:08}", file.getvalue(), " ".join([*draw.choice(WORDS, 12), str(number)]).encode()


def write_tar(folder: Path, start: int, count: int, per_tar: int = PER_TAR) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{start // per_tar:05}.tar", "w") as tar:
        for name, picture, caption in pictures(start, min(start + per_tar, count)):
            for end, data in ((".jpg", picture), (".txt", caption)):
                member = tarfile.TarInfo(name + end)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_files(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture, caption in pictures(0, count):
        (folder / f"{name}.jpg").write_bytes(picture)
        (folder / f"{name}.txt").write_bytes(caption)


def index(given: argparse.Namespace) -> str:
    from pipeline.data.buckets import buckets
    from pipeline.data.index import index as run
    from pipeline.data.sources import open_source
    from pipeline.report import data_page

    source, out = open_source(str(given.folder / "tars")), given.folder / "index"
    summary = run(source, out, buckets(64, 32), 32, None, 10**6, 0.05, given.workers)
    data_page.write(out, source, "tars", 10**6, out / "report.html")
    return f"{summary.used:,} pictures, {summary.read:,} of them read, {len(summary.near):,} near copies"


def latents(given: argparse.Namespace) -> str:
    from pipeline.cache.building.latents import Preparation, make_job
    from pipeline.data.sources import open_source

    how = Preparation("moments", "center", 1, False, "lanczos", (255, 255, 255))
    job = make_job(given.folder / "index/images.parquet", open_source(str(given.folder / "tars")), {}, how, None, 8, 2)
    return f"{len(job.wanted.rows):,} rows"


def text(given: argparse.Namespace) -> str:
    from pipeline.cache.building.text import make_job

    return f"{len(make_job(given.folder / 'index/captions.parquet', {}, None, None, 1, 16).wanted.rows):,} rows"


_STEPS: dict[str, Callable[[argparse.Namespace], str]] = {"index": index, "latents": latents, "text": text}


def dvc(folder: Path, write: Callable[[Path], None]) -> None:
    """What DVC takes to hash a data set of a stage that does nothing, and to see that it has not changed."""
    write(folder / "data")
    stage = "stages: {a: {cmd: echo 1 > out, deps: [data], outs: [out]}}\n"
    (folder / "dvc.yaml").write_text(stage)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    found = []
    for _ in range(2):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=folder, check=True, capture_output=True)
        found.append(f"{time.perf_counter() - begin:.1f} s")
    count = sum(1 for _ in (folder / "data").iterdir())
    print(f"DVC, a stage on a folder of {count:,} files: first {found[0]}, unchanged {found[1]}", flush=True)


def peak() -> float:
    """Gigabytes of this process."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
