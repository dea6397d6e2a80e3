"""A cluster of many nodes fills a cache: what planning and scheduling cost beside the encoding, and the memory of the
first node.

    python -m benchmarks.cluster_nodes FOLDER [--nodes 100] [--shards 3] [--rate 8]
    python -m benchmarks.cluster_nodes FOLDER --plan 10000000

The nodes are workers of a local Ray cluster, of a few raylets, on loopback addresses. Each has the time that an NPU of
--rate pictures a second would take: it sleeps. Rows are as small as --side allows; 128 is SDXL's at 1024, with which a
shard has 210 MB. --plan: who makes what of so many rows, without a cluster. It takes Ray (requirements-ray.txt), about
100 MB of memory for each node, and the time of --shards shards of 800 rows. Exit code 1 where a limit is passed."""

import argparse
import contextlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipeline.cache.building import engine
from pipeline.cache.building.shelf import Wanted
from pipeline.cache.format import lookup, shards
from pipeline.workers.crew import Files, crew
from pipeline.workers.share import Done, Work

BATCH = 8
_OBJECT_STORE = 2 << 30  # bytes, of the first node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--raylets", type=int, default=4)
    parser.add_argument("--shards", type=int, default=3, help="for each node; their number is a power of two")
    parser.add_argument("--rate", type=float, default=8.0, help="pictures a second that one node encodes")
    parser.add_argument("--side", type=int, default=8, help="of a latent")
    parser.add_argument("--plan", type=int, metavar="ROWS")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        os.environ["PIPELINE_STORE"] = f"{folder}/store"
        if args.plan:
            plan(args.plan)
        else:
            fill(Path(folder), args)


def plan(rows: int) -> None:
    names = wanted(rows, 8)
    started = time.perf_counter()
    units = engine._units(engine._missing(names, set()))
    assert sum(len(piece.lacking) for unit in units for piece in unit) == rows
    seconds = time.perf_counter() - started
    print(f"{len(units):,} units of {rows:,} rows: {seconds:.1f} s (wanted 60), peak {peak():.2f} GB (wanted 1.5)")
    if seconds > 60 or peak() > 1.5:
        sys.exit("more than wanted")


def fill(folder: Path, args: argparse.Namespace) -> None:
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    count = 1 << (args.nodes * args.shards - 1).bit_length()
    rows = count * shards.ROWS_PER_SHARD
    share = np.bincount(np.arange(args.nodes) % args.raylets)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes get no benchmarks
    node = {"num_cpus": 1, "object_store_memory": _OBJECT_STORE // args.raylets}
    first = {**node, "object_store_memory": _OBJECT_STORE, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**first, "resources": {"NPU": int(share[0])}})
    for number, npus in enumerate(share[1:].tolist(), 3):
        cluster.add_node(**node, node_ip_address=f"127.0.0.{number}", resources={"NPU": npus})
    try:
        work = job(rows, args.side, args.rate)
        make = partial(worker, rows, args.side, args.rate, work.wanted.key)
        device = SimpleNamespace(cluster=cluster.address, target="auto", workers=1)
        with crew(device, make, {}) as nodes, sampled(stored) as most:
            spans = note(nodes)
            began = time.monotonic()
            engine.build(work, folder / "out", nodes)
            seconds = time.monotonic() - began
    finally:
        cluster.shutdown()
    taken = sum(last - first for first, last in spans.values())
    more = taken * args.rate / rows - 1
    print(
        f"{args.nodes} nodes, {count} shards, {rows:,} rows: from their first unit to the end of their last one {len(spans)} "
        f"nodes took {taken:.0f} s, of which encoding {rows / args.rate:.0f} s: "
        f"{100 * more:.1f} % more (wanted 5); all of it, with the start of the workers and what the last ones wait: {seconds:.0f} s"
    )
    print(f"peak memory of the first process {peak():.2f} GB; in the object stores {max(most) / 1e9:.2f} GB at most")
    if more > 0.05:
        sys.exit("more than wanted")


def stored() -> float:
    """Bytes in the object stores of all nodes."""
    import ray

    has, free = ray.cluster_resources(), ray.available_resources()
    return has.get("object_store_memory", 0) - free.get("object_store_memory", 0)


@contextlib.contextmanager
def sampled(function: Callable[[], float]) -> Iterator[list[float]]:
    """What it gives every half second, until the block ends."""
    found, over = [function()], threading.Event()

    def sample() -> None:
        while not over.wait(0.5):
            found.append(function())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def note(crew) -> dict[int, list[float]]:
    """Of each worker that is started from now on the time of its first unit and of its last result. How long they take
    to start is this computer's matter, on which all of them do."""
    spans, start = {}, crew.start

    def started(place):
        worker = start(place)
        give, hear = worker.give, worker.hear

        def given(unit) -> None:
            spans.setdefault(id(worker), [time.monotonic()] * 2)
            give(unit)

        def heard():
            message = hear()
            if isinstance(message, Done):
                spans[id(worker)][1] = time.monotonic()
            return message

        worker.give, worker.hear = given, heard
        return worker

    crew.start = started
    return spans


def worker(rows: int, side: int, rate: float, key: str, files: Files, source: None, away: bool) -> Work:
    return engine.worker(lambda *_: job(rows, side, rate), key, files, source, away)


def wanted(rows: int, side: int) -> Wanted:
    draw = np.random.default_rng(0)
    names = draw.integers(0, 256, (rows, 16), np.uint8)
    names = names[lookup.sort_order(names)]
    return Wanted(shards.LATENTS, {"vae": "0" * 32}, names, np.full((rows, 2), 8 * side, np.int32))


def job(rows: int, side: int, rate: float) -> engine.Job:
    """Latents (8, side, side) of `rows` pictures, `rate` of which are encoded in a second."""
    found = wanted(rows, side)

    def prepare(index: int) -> tuple[np.ndarray, dict]:
        numbers = dict.fromkeys(("original_height", "original_width", "crop_top", "crop_left", "flip", "crop"), 0)
        size = {"target_height": 8 * side, "target_width": 8 * side}
        return found.rows[index], {"image": found.rows[index].tobytes(), **size, **numbers}

    def encode(inputs: np.ndarray) -> tuple[np.ndarray]:
        time.sleep(len(inputs) / rate)
        return (np.zeros((len(inputs), 8, side, side), np.float32),)

    def finish(index: int, outputs: tuple[np.ndarray, ...]) -> dict:
        shape = {"channels": 8, "latent_height": side, "latent_width": side}
        return {"latent": engine.as_float16(outputs[0], "a picture", ""), **shape}

    return engine.Job(found, prepare, lambda: encode, finish, "image", BATCH, workers=1)


def peak() -> float:
    """Gigabytes. (getrusage would count the parent's, from before the exec.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
