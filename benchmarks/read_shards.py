"""Shuffled training batches from our shards against what other trainers write, at SDXL's row sizes.

    python -m benchmarks.read_shards FOLDER [--rows 2000] [--layouts | --against COMMIT]

A sample is a latent's moments (8, 128, 128) float16, hidden states (77, 2048) float16 and a pooled embedding (1280)
float32:
583 kB. Each form is written (about 1.2 GB for 2,000 rows; the next form only when the one before it is removed), read
once to warm the page cache, then read three times in one shuffled order, in batches of 16; the best pass counts. Each
reader ends with the same three arrays a batch. `datasets` must be installed for its line (benchmarks/requirements.in).

--layouts reads 512 rows from Parquet files of other row group sizes, column types and compressions instead. --against
reads our shards alone, with this code and with that of another commit in turn, and gives the ratio of both speeds."""

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from pipeline.cache.format import lookup, shards
from pipeline.cache.format.names import EMPTY_CAPTION, latent_row
from pipeline.cache.reading import reader
from pipeline.data import captions
from pipeline.data.tables import SAMPLES

BATCH = 16
PASSES = 3
LATENT, CONTEXT, POOLED = (8, 128, 128), (77, 2048), (1280,)
SAMPLE_BYTES = 2 * int(np.prod(LATENT)) + 2 * int(np.prod(CONTEXT)) + 4 * int(np.prod(POOLED))


def sample(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(number)
    latent = draw.standard_normal(LATENT, np.float32).astype(np.float16)
    context = draw.standard_normal(CONTEXT, np.float32).astype(np.float16)
    return latent, context, draw.standard_normal(POOLED, np.float32)


def image(number: int) -> bytes:
    return np.random.default_rng([1, number]).bytes(16)


# ---- one writer and one reader for each form; a reader gives a batch for each list of sample numbers -----------------


def write_ours(folder: Path, rows: int) -> None:
    count = shards.shard_count(rows)
    for kind in ("latents", "text"):
        (folder / kind).mkdir(parents=True)
    names = [image(n) for n in range(rows)]
    place = shards.shard_of(lookup.as_names([latent_row(name, False, 0) for name in names]), count)
    for index in range(count):
        latents = [latent_dict(names[n], sample(n)[0]) for n in np.flatnonzero(place == index).tolist()]
        shards.write(
            folder / "latents" / shards.shard_name(index, count), shards.LATENTS, latents, {"vae": "benchmark"}
        )
    keys = [*(captions.name(f"caption {n}", None) for n in range(rows)), EMPTY_CAPTION]
    count = shards.shard_count(len(keys))
    place = shards.shard_of(lookup.as_names(keys), count)
    for index in range(count):
        texts = [text_dict(keys[n], *sample(n)[1:]) for n in np.flatnonzero(place == index).tolist()]
        shards.write(folder / "text" / shards.shard_name(index, count), shards.TEXT, texts, {"clip_l": "benchmark"})
    columns = {"image": names, "set": [0] * rows, "caption": keys[:-1], "chance": [1.0] * rows, "repeats": [1.0] * rows}
    columns |= {"loss_weight": [1.0] * rows, "caption_dropout": [None] * rows, "class_images": [False] * rows}
    columns |= {"buckets": [None] * rows}
    pq.write_table(pa.table(columns, schema=SAMPLES), folder / "samples.parquet")


def latent_dict(name: bytes, latent: np.ndarray) -> dict:
    channels, height, width = latent.shape
    numbers = dict.fromkeys(("original_height", "original_width", "target_height", "target_width"), 1024)
    shape = {"channels": channels, "latent_height": height, "latent_width": width}
    crop = dict.fromkeys(("crop_top", "crop_left", "flip", "crop"), 0)
    return {"row": latent_row(name, False, 0), "image": name, "latent": latent.tobytes(), **shape, **numbers, **crop}


def text_dict(name: bytes, context: np.ndarray, pooled: np.ndarray) -> dict:
    tokens, width = context.shape
    payloads = {"context": context.tobytes(), "pooled": pooled.tobytes()}
    return {"row": name, **payloads, "tokens": tokens, "width": width, "pooled_width": len(pooled), "caption_tokens": 9}


def read_ours(folder: Path, batches: list[list[int]]) -> Iterator[tuple[np.ndarray, ...]]:
    with reader.Reader(folder / "latents", folder / "text", folder / "samples.parquet") as rows:
        for batch in batches:
            found = rows.read(np.array(batch), epoch=0, seed=0)
            yield found.latents, found.context, found.pooled


def write_npy(folder: Path, rows: int) -> None:
    folder.mkdir()
    for number in range(rows):
        for name, array in zip(("latent", "context", "pooled"), sample(number), strict=True):
            np.save(folder / f"{number}_{name}.npy", array)


def read_npy(folder: Path, batches: list[list[int]]) -> Iterator[tuple[np.ndarray, ...]]:
    for batch in batches:
        yield tuple(
            np.stack([np.load(f"{folder}/{n}_{name}.npy") for n in batch]) for name in ("latent", "context", "pooled")
        )


def write_npz(folder: Path, rows: int) -> None:
    folder.mkdir()
    for number in range(rows):
        latent, context, pooled = sample(number)
        np.savez(folder / f"{number}.npz", latent=latent, context=context, pooled=pooled)


def read_npz(folder: Path, batches: list[list[int]]) -> Iterator[tuple[np.ndarray, ...]]:
    for batch in batches:
        rows = []
        for number in batch:
            with np.load(f"{folder}/{number}.npz") as file:
                rows.append((file["latent"], file["context"], file["pooled"]))
        yield tuple(np.stack(arrays) for arrays in zip(*rows, strict=True))


def write_safetensors(folder: Path, rows: int) -> None:
    folder.mkdir()
    for number in range(rows):
        latent, context, pooled = sample(number)
        safetensors.numpy.save_file(
            {"latent": latent, "context": context, "pooled": pooled}, folder / f"{number}.safetensors"
        )


def read_safetensors(folder: Path, batches: list[list[int]]) -> Iterator[tuple[np.ndarray, ...]]:
    for batch in batches:
        rows = [safetensors.numpy.load_file(f"{folder}/{number}.safetensors") for number in batch]
        yield tuple(np.stack([row[name] for row in rows]) for name in ("latent", "context", "pooled"))


def write_datasets(folder: Path, rows: int) -> None:
    import datasets

    def generate(numbers):
        for number in numbers:
            latent, context, pooled = sample(number)
            yield {"latent": latent.reshape(-1), "context": context.reshape(-1), "pooled": pooled}

    lengths = {"latent": ("float16", LATENT), "context": ("float16", CONTEXT), "pooled": ("float32", POOLED)}
    features = datasets.Features(
        {
            name: datasets.List(datasets.Value(dtype), length=int(np.prod(shape)))
            for name, (dtype, shape) in lengths.items()
        }
    )
    made = datasets.Dataset.from_generator(
        generate,
        features=features,
        cache_dir=str(folder / "cache"),
        gen_kwargs={"numbers": list(range(rows))},
        writer_batch_size=100,
    )
    made.save_to_disk(str(folder / "saved"))
    del made
    shutil.rmtree(folder / "cache")


def read_datasets(folder: Path, batches: list[list[int]]) -> Iterator[tuple[np.ndarray, ...]]:
    import datasets

    rows = datasets.load_from_disk(str(folder / "saved")).with_format("numpy")
    for batch in batches:
        found = rows[batch]
        yield tuple(
            found[name].reshape(len(batch), *shape)
            for name, shape in (("latent", LATENT), ("context", CONTEXT), ("pooled", POOLED))
        )


def read_sequentially(folder: Path, batches: list[list[int]]) -> Iterator[tuple[np.ndarray, ...]]:
    """The bytes of our own files from begin to end, a batch's worth a read into one buffer, and nothing done with
    them."""
    buffer = memoryview(bytearray(BATCH * SAMPLE_BYTES))
    for path in [*sorted((folder / "latents").iterdir()), *sorted((folder / "text").iterdir())]:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                yield ()


FORMS: dict[str, tuple[Callable, Callable]] = {
    "three .npy a sample (MindONE)": (write_npy, read_npy),
    ".npz a sample (kohya)": (write_npz, read_npz),
    ".safetensors a sample (ai-toolkit)": (write_safetensors, read_safetensors),
    "Arrow through datasets (diffusers)": (write_datasets, read_datasets),
    "our shards": (write_ours, read_ours),
}


def shuffled(rows: int) -> list[list[int]]:
    order = np.random.default_rng(0).permutation(rows).tolist()
    return [order[start : start + BATCH] for start in range(0, rows, BATCH)]


def seconds(read: Callable, folder: Path, batches: list[list[int]]) -> float:
    """The best of PASSES passes, after one that warms the page cache."""
    best = float("inf")
    for number in range(PASSES + 1):
        started = time.perf_counter()
        for _ in read(folder, batches):
            pass
        if number:
            best = min(best, time.perf_counter() - started)
    return best


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compare(folder: Path, rows: int) -> None:
    print(f"{rows} samples of {SAMPLE_BYTES / 1e3:.0f} kB, batches of {BATCH}, warm; {os.cpu_count()} cores\n")
    print("| form | samples/s | GB/s | kB a sample on disk |\n|---|---|---|---|")
    batches, rates = shuffled(rows), {}

    def report(name: str, taken: float, held: int) -> None:
        rates[name] = rows / taken
        print(
            f"| {name} | {rates[name]:,.0f} | {rates[name] * SAMPLE_BYTES / 1e9:.2f} | {held / rows / 1e3:.0f} |",
            flush=True,
        )

    for name, (write, read) in FORMS.items():
        if "datasets" in name and importlib.util.find_spec("datasets") is None:
            print(f"| {name} | not installed | | |")
            continue
        place = folder / "form"
        write(place, rows)
        os.sync()
        report(name, seconds(read, place, batches), size(place))
        if read is read_ours:
            report("plain sequential read of our files", seconds(read_sequentially, place, batches), size(place))
        shutil.rmtree(place)
    ours, npy = rates["our shards"], rates["three .npy a sample (MindONE)"]
    other = max(rate for name, rate in rates.items() if name in FORMS and not name.startswith(("our", "three")))
    plain = rates["plain sequential read of our files"]
    print(f"\nours: {ours / npy:.1f} x three .npy (wanted 5), {ours / other:.1f} x the best other form (wanted 2),")
    print(f"{ours / plain:.0%} of a plain sequential read (wanted 60 %)")


# ---- layouts of a Parquet file ---------------------------------------------------------------------------------------


def layouts(folder: Path, rows: int = 512) -> None:
    """Shuffled rows of one Parquet file with pyarrow's own reader, and from known offsets as `open_shard` finds
    them."""
    folder.mkdir(exist_ok=True)
    latents = [sample(number)[0] for number in range(rows)]
    binary = pa.array([latent.tobytes() for latent in latents], pa.binary())
    flat = pa.array(np.concatenate([latent.reshape(-1) for latent in latents]))
    lists = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * latents[0].size, flat)
    del latents, flat
    order = np.random.default_rng(0).permutation(rows).tolist()
    path = folder / "layout.parquet"
    print(f"{rows} latents of {2 * int(np.prod(LATENT)) / 1e3:.0f} kB, shuffled, warm; rows/s\n")
    print(
        "| column | compression | rows a row group | kB a row | footer kB | pyarrow | known offsets |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, column in (("binary", binary), ("list<float16>", lists)):
        for compression in ("none", "lz4", "zstd"):
            for group in (1, 16, 128, 512):
                schema = pa.schema([pa.field("latent", column.type, nullable=False)])
                pq.write_table(
                    pa.table([column], schema=schema), path, row_group_size=group, data_page_size=2**31 - 1,
                    compression=compression, use_dictionary=False, write_statistics=False, store_schema=False,
                )  # fmt: skip
                file = pq.ParquetFile(path, memory_map=True)
                few = order[: 512 if group < 128 else 16]
                slow = min(_timed(_pyarrow_rows, file, group, few) for _ in range(2)) / len(few)
                fast = "cannot"
                if compression == "none" and name == "binary":
                    offsets = _offsets(file.metadata, 2 * int(np.prod(LATENT)))
                    fast = f"{rows / min(_timed(_offset_rows, path, offsets, order) for _ in range(3)):,.0f}"
                footer = file.metadata.serialized_size
                print(
                    f"| {name} | {compression} | {group} | {path.stat().st_size / rows / 1e3:.0f} | "
                    f"{footer / 1e3:.1f} | {1 / slow:,.0f} | {fast} |"
                )
    path.unlink()


def _pyarrow_rows(file: pq.ParquetFile, group: int, order: list[int]) -> None:
    for row in order:
        column = file.read_row_group(row // group, columns=["latent"]).column(0)
        np.frombuffer(column[row % group].as_buffer(), np.float16).copy() if column.type == pa.binary() else column[
            row % group
        ].values.to_numpy()


def _offsets(metadata: pq.FileMetaData, length: int) -> list[int]:
    found = []
    for group in range(metadata.num_row_groups):
        chunk, rows = metadata.row_group(group).column(0), metadata.row_group(group).num_rows
        start = chunk.data_page_offset + chunk.total_compressed_size - rows * (length + 4)
        found += [start + row * (length + 4) + 4 for row in range(rows)]
    return found


def _offset_rows(path: Path, offsets: list[int], order: list[int]) -> None:
    handle = os.open(path, os.O_RDONLY)
    for start in range(0, len(order), BATCH):
        batch = np.empty((BATCH, *LATENT), np.float16)
        for row, number in zip(batch.reshape(BATCH, -1).view(np.uint8), order[start : start + BATCH]):
            os.preadv(handle, [row], offsets[number])
    os.close(handle)


def _timed(function: Callable, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


# ---- another commit's reader ------------------------------------------------------------------------------------------

ROUNDS = 5
_READ = f"""
import sys, time
from pathlib import Path
import numpy as np
from pipeline.cache.reading.reader import Reader
folder, rows, best = Path(sys.argv[1]), int(sys.argv[2]), float("inf")
order = np.random.default_rng(0).permutation(rows)
with Reader(folder / "latents", folder / "text", folder / "samples.parquet") as reader:
    for _ in range({PASSES} + 1):
        begin = time.perf_counter()
        for start in range(0, rows, {BATCH}):
            reader.read(order[start : start + {BATCH}], epoch=0, seed=0)
        best = min(best, time.perf_counter() - begin)
print(rows / best)
"""


def against(folder: Path, rows: int, commit: str) -> None:
    """Both readers take the same files; each turn is a process of its own."""
    here, other = Path(__file__).resolve().parents[1], folder / "other"
    subprocess.run(["git", "worktree", "add", "--detach", "--force", other.resolve(), commit], cwd=here, check=True)
    try:
        write_ours(folder / "form", rows)
        os.sync()
        rates: dict[Path, list[float]] = {here: [], other.resolve(): []}
        for _ in range(ROUNDS):
            for place, found in rates.items():
                command = [sys.executable, "-c", _READ, (folder / "form").resolve(), str(rows)]
                done = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True)
                found.append(float(done.stdout))
        ours, theirs = rates.values()
        ratios = sorted(one / two for one, two in zip(ours, theirs))
        print(f"{rows} samples, samples/s, median of {ROUNDS} turns: {statistics.median(ours):,.0f} now, ", end="")
        print(f"{statistics.median(theirs):,.0f} at {commit}; ratio {statistics.median(ratios):.3f} ", end="")
        print(f"({ratios[0]:.3f} to {ratios[-1]:.3f})")
    finally:
        shutil.rmtree(folder / "form", ignore_errors=True)
        subprocess.run(["git", "worktree", "remove", "--force", other.resolve()], cwd=here, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder on the disk to measure")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--layouts", action="store_true")
    parser.add_argument("--against", metavar="COMMIT", help="such as 377831d, the first with today's layout")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.layouts:
        layouts(args.folder)
    elif args.against:
        against(args.folder, args.rows, args.against)
    else:
        compare(args.folder, args.rows)


if __name__ == "__main__":
    main()
