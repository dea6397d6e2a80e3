"""The tables of the index for 10 million samples: seconds and peak memory of building, writing and reading them.

Rows are synthetic and come as they would from 1,000 tars; no picture is opened. `python -m benchmarks.index_10m
[ROWS]`."""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data import memo
from pipeline.data.buckets import buckets
from pipeline.data.examine import EXAMINED
from pipeline.data.index import tabulate
from pipeline.data.part import Part
from pipeline.data.said import Focus

PER_PART = 10_000
WORDS = pa.array("a photo of red blue old small house cat tree street at night in the rain by morning light".split())


def parts(rows: int) -> Iterator[tuple[Part, pa.Table, int]]:
    """Random hashes and sizes, 1 picture in 1,000 rejected, a distinct caption of about 60 letters for each picture."""
    generator = np.random.default_rng(0)
    for start in range(0, rows, PER_PART):
        count = min(PER_PART, rows - start)
        numbers = pa.array(np.arange(start, start + count)).cast(pa.string())
        bad = pa.array(generator.random(count) < 0.001)
        hashes = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), count, [None, pa.py_buffer(generator.bytes(16 * count))]
        )
        width, height = (pa.array(generator.integers(256, 6000, count, dtype=np.int32)) for _ in range(2))
        reasons = pc.if_else(bad, pa.scalar("broken: JPEG image file is truncated"), pa.scalar(None, pa.string()))
        ignored, alpha = [pa.array(np.zeros(count, bool))] * 2
        phashes = pa.array(generator.integers(0, 2**64, count, dtype=np.uint64))
        no_mask = [pa.nulls(count, field.type) for field in list(EXAMINED)[len(memo.FOUND) :]]
        found = pa.table([hashes, width, height, reasons, ignored, phashes, alpha, *no_mask], schema=EXAMINED)
        words = [WORDS.take(pa.array(generator.integers(0, len(WORDS), count))) for _ in range(12)]
        texts = pc.binary_join_element_wise(*words, numbers, " ")
        paths = pc.binary_join_element_wise(f"{start // PER_PART:05}.tar!", numbers, ".jpg", "")
        nulls, origins = pa.nulls(count, pa.string()), pa.repeat(pa.scalar(""), count)
        stamps = np.zeros((count, 4), np.int64)
        focus = np.full((count, len(Focus._fields)), np.nan)
        part = Part("", paths, stamps, np.arange(count), texts, nulls, origins, np.ones(count), focus, nulls, stamps)
        yield part, found, 0


def read(out: Path) -> int:
    """Read both tables through, a row group at a time; the number of pictures that are used."""
    used = sum(batch["rejected"].null_count for batch in pq.ParquetFile(out / "images.parquet").iter_batches())
    captions = sum(len(batch) for batch in pq.ParquetFile(out / "captions.parquet").iter_batches())
    assert captions == used
    return used


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="?", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    start, before = time.perf_counter(), peak()
    for _ in parts(rows):
        pass
    made = time.perf_counter() - start
    print(f"{rows:,} rows, made in {made:.1f} s; peak {before:.2f} GB before and {peak():.2f} GB after that")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PIPELINE_STORE"] = f"{folder}/store"
        out = Path(folder, "index")
        start = time.perf_counter()
        summary = tabulate(parts(rows), out, buckets(1024, 64), 64, None, 0.05)
        written = time.perf_counter() - start
        start = time.perf_counter()
        assert read(out) == summary.used
        seconds = time.perf_counter() - start
        sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(out.iterdir())}
    print(f"made and written in {written:.1f} s, so written in {written - made:.1f} s; read in {seconds:.1f} s")
    print(f"peak {peak():.2f} GB")
    print(", ".join(f"{name} {size:.0f} MB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
