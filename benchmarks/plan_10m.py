"""The reader of both caches and an epoch's plan for 10 million samples: seconds and peak memory.

    python -m benchmarks.plan_10m FOLDER [--rows 10000000]

Rows are synthetic: all their names and numbers, in 40 buckets, and payloads of no bytes. About 3.5 GB in FOLDER."""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cache.format import checksum, lookup, shards
from pipeline.cache.format.names import EMPTY_CAPTION
from pipeline.cache.reading.plan import epoch_plan
from pipeline.cache.reading.reader import Reader
from pipeline.data.buckets import buckets
from pipeline.data.tables import SAMPLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--measure", action="store_true", help="only open what is there; without it, make it first")
    args = parser.parse_args()
    if args.measure:
        measure(args.folder)
    else:
        make(args.folder, args.rows)
        subprocess.run([sys.executable, "-m", "benchmarks.plan_10m", str(args.folder), "--measure"], check=True)


def measure(folder: Path) -> None:
    started = time.perf_counter()
    with Reader(folder / "latents", folder / "text", folder / "samples.parquet") as reader:
        opened = time.perf_counter()
        print(f"reader of {reader.n:,} samples: {opened - started:.1f} s, peak so far {peak():.2f} GB", flush=True)
        plan = epoch_plan(reader.buckets, reader.repeats, np.arange(reader.n), seed=0, epoch=0, global_batch=256)
        print(f"plan of {len(plan):,} batches: {time.perf_counter() - opened:.1f} s")
        batch = reader.read(plan[0][:16], epoch=0, seed=0)
        assert batch.time_ids.shape == (16, 6)
    print(f"together {time.perf_counter() - started:.1f} s (wanted 60), peak {peak():.2f} GB (wanted 1.5)")


def peak() -> float:
    """Gigabytes. (getrusage would count the parent's, from before the exec.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


def make(folder: Path, rows: int) -> None:
    """Shards of random names; every tenth caption belongs to two pictures, and every twentieth picture has two
    captions."""
    draw = np.random.default_rng(0)
    sizes = np.array(buckets(1024, 64), np.int32)
    images, names, captions = (draw.integers(0, 256, (rows, 16), np.uint8) for _ in range(3))
    names = names[lookup.sort_order(names)]
    captions = np.concatenate([captions[: rows - rows // 10], lookup.as_names([EMPTY_CAPTION])])
    captions = captions[lookup.sort_order(captions)]
    bucket = sizes[draw.integers(0, len(sizes), rows)]
    numbers = {"row": names, "image": images, "target_width": bucket[:, 0], "target_height": bucket[:, 1]}
    numbers |= {
        name: draw.integers(0, 5000, rows, np.int32)
        for name in ("original_height", "original_width", "crop_top", "crop_left")
    }
    numbers |= {"latent_height": bucket[:, 1] // 8, "latent_width": bucket[:, 0] // 8}
    numbers |= {name: np.zeros(rows, np.int32) for name in ("channels", "flip", "crop")}
    write(folder / "latents", shards.LATENTS, numbers, {"vae": "synthetic"})
    count = len(captions)
    numbers = {"row": captions, "tokens": np.zeros(count, np.int32), "width": np.full(count, 2048, np.int32)}
    numbers |= {"pooled_width": np.zeros(count, np.int32), "caption_tokens": draw.integers(2, 90, count, np.int32)}
    write(folder / "text", shards.TEXT, numbers, {"clip_l": "synthetic"})
    first, second = draw.integers(0, count, rows), draw.integers(0, count, rows // 20)
    image = np.concatenate([images, images[: rows // 20]])
    caption = captions[np.concatenate([first, second])]
    order = lookup.sort_order(image)
    columns = [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(order), [None, pa.py_buffer(a[order].tobytes())])
        for a in (image, caption)
    ]
    columns.insert(1, pa.repeat(pa.scalar(0, pa.int32()), len(order)))
    plain = ("chance", 1.0), ("repeats", 1.0), ("loss_weight", 1.0), ("caption_dropout", None), ("class_images", False)
    columns += [pa.repeat(pa.scalar(value, SAMPLES.field(name).type), len(order)) for name, value in plain]
    table = pa.Table.from_arrays(columns, schema=SAMPLES)
    pq.write_table(table, folder / "samples.parquet", row_group_size=1 << 17)  # as the index writes it


def write(folder: Path, kind: shards.Kind, numbers: dict[str, np.ndarray], fingerprint: dict) -> None:
    folder.mkdir(parents=True)
    count = shards.shard_count(len(numbers["row"]))
    bounds = np.searchsorted(shards.shard_of(numbers["row"], count), np.arange(count + 1))
    for index, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        part = {name: column[begin:end] for name, column in numbers.items()}
        payloads = {name: pa.array([b""] * (end - begin), pa.binary()) for name in kind.payloads}
        sums = np.full(end - begin, checksum.payload_sum(*(b"" for _ in kind.payloads)), np.uint64)
        shards.write_columns(folder / shards.shard_name(index, count), kind, part, payloads, sums, fingerprint)


if __name__ == "__main__":
    main()
