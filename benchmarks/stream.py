"""convert, merge and export at full size: wall time against plainly writing the same bytes, and peak memory.

    python -m benchmarks.stream FOLDER [--load merged]     needs 46 GB free there; FOLDER is made and removed

Makes a random SDXL checkpoint (float16, 6.94 GB) and a random trained UNet (float32, 10.3 GB). Every job runs in a
process of its own, in turns with plain writes of as many bytes with the same fsync at the end; its median time stands
against theirs: with its inputs in the page cache, and on disk only, where reading them counts.
The export to safetensors happens in merge, which writes both files in one pass; `export` is the round trip: convert's
UNet instead of a trained one, whose merged.safetensors must be the source byte for byte."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from pipeline.models.config import SDXL_BASE
from pipeline.store import atomic
from pipeline.weights import ckpt, layout, safetensors
from pipeline.weights.convert import convert
from pipeline.weights.merge import merge
from pipeline.weights.names import PREFIX, to_mindspore

CHUNK = 1 << 20
REPEATS = 3


def make_source(folder: Path) -> None:
    shapes = layout.shapes(SDXL_BASE)
    with safetensors.Writer(folder / "source.safetensors", {n: ("float16", s) for n, s in shapes.items()}) as writer:
        for index, (name, shape) in enumerate(shapes.items()):
            bits = np.random.default_rng(index).integers(0, 1 << 16, shape, np.uint16)
            bits = np.asarray(bits & 0x83FF | 0x2400, np.uint16)  # random sign and fraction, 1/64 in size
            writer.add(name, bits.view(np.float16))
    with ckpt.Writer(folder / "trained.ckpt") as writer:
        for index, (name, shape) in enumerate(shapes.items()):
            if name.startswith(PREFIX["unet"]):
                bits = np.random.default_rng(index).integers(0, 1 << 32, shape, np.uint32)
                writer.add(to_mindspore(name), (bits & 0x807FFFFF | 0x3C800000).view(np.float32))  # the same


def write_plainly(folder: Path, size: int) -> None:
    chunk = np.random.default_rng(0).bytes(CHUNK)
    with atomic(folder / "plain") as path, open(path, "wb", buffering=0) as file:
        for start in range(0, size, CHUNK):
            file.write(memoryview(chunk)[: min(CHUNK, size - start)])


def components(folder: Path, unet: Path) -> dict[str, Path]:
    return {part: folder / f"convert/{part}.ckpt" for part in PREFIX} | {"unet": unet}


def load(path: Path) -> None:
    import pipeline.device  # noqa: F401, PLC0415  (sets what MindSpore reads at its import)
    import mindspore  # noqa: PLC0415  # isort: skip

    parameters = mindspore.load_checkpoint(str(path))
    print(f"{path.name}: {len(parameters):,} parameters, the last {next(reversed(parameters))}", file=sys.stderr)


def job(name: str, folder: Path, argument: str) -> None:
    """Run one job and print its seconds and peak memory as JSON."""
    source = folder / "source.safetensors"
    start = time.perf_counter()
    match name:
        case "make":
            make_source(folder)
        case "plain":
            write_plainly(folder, int(argument))
        case "convert":
            convert(source, source, SDXL_BASE, folder / "convert")
        case "merge":
            merge(components(folder, folder / "trained.ckpt"), SDXL_BASE, "float16", folder / "merge")
        case "export":
            merge(components(folder, folder / "convert/unet.ckpt"), SDXL_BASE, "float16", folder / "merge")
        case "load":
            load(folder / argument)
    seconds, processor = time.perf_counter() - start, time.process_time()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "processor": processor, "peak_mb": int(peak.split()[1]) * 1024 / 1e6}))


def run(name: str, folder: Path, argument: str = "") -> dict:
    command = [sys.executable, "-m", "benchmarks.stream", str(folder), "--job", name, argument]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def drop_from_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def read_into_cache(paths: list[Path]) -> None:
    for path in paths:
        subprocess.run(["cat", str(path)], check=True, stdout=subprocess.DEVNULL)


def touch_free_memory(size: int) -> None:
    """Use and free up to `size` bytes. A virtual machine takes long to get memory that it has given back to its host,
    and then a write to the page cache is three times slower: whichever job came first would pay."""
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemFree"))
    size = min(size, int(free.split()[1]) * 1024 - (1 << 30))
    if size > 0:
        subprocess.run([sys.executable, "-c", f"bytearray(b'1') * {size}"], check=True)


def measure(name: str, folder: Path, inputs: list[Path], size: int) -> None:
    """Print the median times of the job and of plainly writing `size` bytes, with the inputs on disk and in the page
    cache; both begin in the same state, and take turns in going first."""
    for state in ("in cache", "on disk"):
        results = {"plain": [], name: []}
        for turn in range(REPEATS):
            for which in list(results)[:: -1 if turn % 2 else 1]:
                drop_from_cache(folder)
                if state == "in cache":
                    read_into_cache(inputs)
                touch_free_memory(size)
                results[which].append(run(which, folder, str(size)))
                (folder / "plain").unlink(missing_ok=True)
        plain, seconds = (sorted(result["seconds"] for result in results[which]) for which in results)
        peak = max(result["peak_mb"] for result in results[name])
        processor = median(result["processor"] for result in results[name])
        print(
            f"{name:8} inputs {state}: {_spread(seconds)} (processor {processor:.1f} s), peak {peak:.0f} MB", flush=True
        )
        ratio = median(seconds) / median(plain)
        print(f"{'':8} {size / 1e9:.2f} GB plainly {_spread(plain)}: {ratio:.2f} times", flush=True)


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f})"


def same(a: Path, b: Path) -> bool:
    return subprocess.run(["cmp", str(a), str(b)], check=False).returncode == 0


def main(folder: Path, to_load: str) -> None:
    folder.mkdir(parents=True)
    try:
        print(f"made the inputs in {run('make', folder)['seconds']:.0f} s", flush=True)
        size = (folder / "source.safetensors").stat().st_size
        others = [folder / f"convert/{part}.ckpt" for part in ("clip_l", "clip_g", "vae")]
        measure("convert", folder, [folder / "source.safetensors"], size)
        measure("merge", folder, [folder / "trained.ckpt", *others], 2 * size)
        (folder / "trained.ckpt").unlink()
        measure("export", folder, [folder / "convert/unet.ckpt", *others], 2 * size)
        whole = same(folder / "source.safetensors", folder / "merge/merged.safetensors")
        print(f"convert, merge untrained, export: {'byte for byte the source' if whole else 'DIFFERS from the source'}")
        file = "merge/merged.ckpt" if to_load == "merged" else f"convert/{to_load}.ckpt"
        # MindSpore takes the page cache for memory in use, and refuses files larger than the rest
        drop_from_cache(folder)
        print(f"ms.load_checkpoint({file}): {run('load', folder, file)}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--load", default="clip_g", choices=[*PREFIX, "merged"], help="needs three times the file in memory"
    )
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.job[0], arguments.folder, arguments.job[1])
    else:
        main(arguments.folder, arguments.load)
