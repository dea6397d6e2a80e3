"""Shuffled training batches from our shards against what other trainers write, at SDXL's row sizes.

    python -m benchmarks.read_shards FOLDER [--rows 2000] [--layouts | --against COMMIT | --sets]

A sample is a latent's moments (8, 128, 128) float16, hidden states (77, 2048) float16 and a pooled embedding (1280)
float32:
583 kB. Each form is written (about 1.2 GB for 2,000 rows; the next form only when the one before it is removed), read
once to warm the page cache, then read three times in one shuffled order, in batches of 16; the best pass counts. Each
reader ends with the same three arrays a batch. `datasets` must be installed for its line (benchmarks/requirements.in).

--layouts reads 512 rows from Parquet files of other row group sizes, column types and compressions instead. --against
reads our shards alone, with this code and with that of another commit in turn, and gives the ratio of both speeds; of
a5613e8, say, the last before repeats and sets. --sets reads in turn plain rows and those of half as many pictures, each in
two buckets, of two captions with chances, every other one with a mask."""

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
BUCKETS = (1024, 1024), (1152, 896)  # width, height; the second with --sets alone
CHANCES = 0.7, 0.3
SAMPLE_BYTES = 2 * int(np.prod(LATENT)) + 2 * int(np.prod(CONTEXT)) + 4 * int(np.prod(POOLED))


def sample(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(number)
    latent = draw.standard_normal(LATENT, np.float32).astype(np.float16)
    context = draw.standard_normal(CONTEXT, np.float32).astype(np.float16)
    return latent, context, draw.standard_normal(POOLED, np.float32)


def image(number: int) -> bytes:
    return np.random.default_rng([1, number]).bytes(16)


# ---- one writer and one reader for each form; a reader gives a batch for each list of sample numbers -----------------


def write_ours(folder: Path, rows: int, sets: bool = False) -> None:
    """So many latents and captions; with `sets` as --sets says."""
    each = 2 if sets else 1
    pictures = sorted(image(n) for n in range(rows // each))
    views = [(name, view) for name in pictures for view in range(each)]
    keys = [captions.name(f"caption {n}", None) for n in range(len(views))]

    def latent(number: int) -> dict:
        name, view = views[number]
        return latent_dict(name, sample(number)[0], BUCKETS[view], sets and number // each % 2 == 0)

    names = [latent_row(name, False, 0) for name, _ in views]
    write_shards(folder / "latents", shards.LATENTS, names, latent, {"vae": "benchmark"})
    names = [*keys, EMPTY_CAPTION]
    write_shards(
        folder / "text", shards.TEXT, names, lambda n: text_dict(names[n], *sample(n)[1:]), {"clip_l": "benchmark"}
    )
    count = len(views)
    columns = {"image": [name for name, _ in views], "set": [0] * count, "caption": keys}
    columns |= {"chance": [CHANCES[view] if sets else 1.0 for _, view in views], "repeats": [1.0] * count}
    columns |= {"loss_weight": [1.0] * count, "caption_dropout": [None] * count, "class_images": [False] * count}
    columns |= {"buckets": [[side for bucket in BUCKETS for side in bucket] if sets else None] * count}
    table = pa.table(columns, schema=SAMPLES)
    pq.write_table(table, folder / "samples.parquet")
    pq.write_table(table.select(["image", "caption"]), folder / "captions.parquet")  # what readers before sets take


def write_shards(folder: Path, kind: shards.Kind, names: list[bytes], row: Callable[[int], dict], made: dict) -> None:
    folder.mkdir(parents=True)
    count = shards.shard_count(len(names))
    place = shards.shard_of(lookup.as_names(names), count)
    for index in range(count):
        found = [row(number) for number in np.flatnonzero(place == index).tolist()]
        shards.write(folder / shards.shard_name(index, count), kind, found, made)


def latent_dict(name: bytes, values: np.ndarray, bucket: tuple[int, int], masked: bool) -> dict:
    """values: of a latent of the first of BUCKETS, of which another takes as many as it holds."""
    (width, height), channels = bucket, len(values)
    latent = values.reshape(channels, -1)[:, : width * height // 64]
    numbers = {"original_height": height, "original_width": width, "target_height": height, "target_width": width}
    shape = {"channels": channels, "latent_height": height // 8, "latent_width": width // 8}
    crop = dict.fromkeys(("crop_top", "crop_left", "flip", "crop"), 0)
    mask = {"mask": bytes(range(256)) * (width * height // 64 // 256)} if masked else {}
    payload = {"latent": latent.tobytes(), **mask}
    return {"row": latent_row(name, False, 0), "image": name, **payload, **shape, **numbers, **crop}


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


# ---- two readers, or forms of rows, in turn ---------------------------------------------------------------------------

ROUNDS = 5
_READ = f"""
import inspect, sys, time
from pathlib import Path
import numpy as np
try:
    from pipeline.cache.reading.reader import Reader
except ImportError:  # of commits before the cache was put in folders
    from pipeline.cache.reader import Reader
folder, how, best = Path(sys.argv[1]), {{}}, float("inf")
if "views" in sys.argv:
    from pipeline.cache.format.preparation import Preparation
    how["preparation"] = Preparation("moments", "center", 1, False, "area", (255, 255, 255))
table = list(inspect.signature(Reader).parameters)[2]  # samples; captions before there were sets
with Reader(folder / "latents", folder / "text", folder / (table + ".parquet"), **how) as reader:
    order = np.random.default_rng(0).permutation(reader.n)
    batches = []
    for bucket in np.unique(reader.buckets, axis=0):
        alike = order[(reader.buckets[order] == bucket).all(axis=1)]
        batches += [alike[start : start + {BATCH}] for start in range(0, len(alike), {BATCH})]
    for _ in range({PASSES} + 1):
        begin = time.perf_counter()
        for batch in batches:
            reader.read(batch, epoch=0, seed=0)
        best = min(best, time.perf_counter() - begin)
    print(reader.n / best)
"""


def in_turn(sides: dict[str, tuple[Path, list]]) -> None:
    """Prints the speeds of two: what it is called -> whose code, and what _READ is given. Each turn is a process of its
    own."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, (code, arguments) in sides.items():
            command = [sys.executable, "-c", _READ, *map(str, arguments)]
            done = subprocess.run(command, cwd=code, check=True, stdout=subprocess.PIPE, text=True)
            rates[name].append(float(done.stdout))
    ratios = sorted(one / two for one, two in zip(*rates.values()))
    found = ", ".join(f"{statistics.median(each):,.0f} {name}" for name, each in rates.items())
    print(f"samples/s, median of {ROUNDS} turns: {found}; ratio {statistics.median(ratios):.3f} ", end="")
    print(f"({ratios[0]:.3f} to {ratios[-1]:.3f})")


HERE = Path(__file__).resolve().parents[1]


def against(folder: Path, rows: int, commit: str) -> None:
    """Both readers take the same files."""
    form, other = (folder / "form").resolve(), (folder / "other").resolve()
    subprocess.run(["git", "worktree", "add", "--detach", "--force", other, commit], cwd=HERE, check=True)
    try:
        write_ours(form, rows)
        os.sync()
        in_turn({"now": (HERE, [form]), f"at {commit}": (other, [form])})
    finally:
        shutil.rmtree(form, ignore_errors=True)
        subprocess.run(["git", "worktree", "remove", "--force", other], cwd=HERE, check=True)


def with_sets(folder: Path, rows: int) -> None:
    plain, made = (folder / "plain").resolve(), (folder / "sets").resolve()
    try:
        write_ours(plain, rows)
        write_ours(made, rows, sets=True)
        os.sync()
        in_turn({"with views, masks and chances": (HERE, [made, "views"]), "of plain rows": (HERE, [plain])})
    finally:
        for place in (plain, made):
            shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder on the disk to measure")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--layouts", action="store_true")
    parser.add_argument("--against", metavar="COMMIT", help="such as a5613e8, the last before repeats and sets")
    parser.add_argument("--sets", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.layouts:
        layouts(args.folder)
    elif args.against:
        against(args.folder, args.rows, args.against)
    elif args.sets:
        with_sets(args.folder, args.rows)
    else:
        compare(args.folder, args.rows)


if __name__ == "__main__":
    main()
