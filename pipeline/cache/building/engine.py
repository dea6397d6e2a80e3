"""Make one cache folder: link what the store has, encode what it lacks.

Three things go on at once: worker threads prepare the inputs of the next batches, the calling thread runs the encoder,
and one writer thread turns results into rows and rows into shards. Batches have one fixed shape per group and are
padded, so a row does not depend on which rows it is encoded with; the last batch of a shard is filled up from the
shards that follow. A shard enters the store when its last row is encoded; rows of unfinished shards enter it as parts
meanwhile."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import progress, store
from pipeline.cache.building import ranks, shelf
from pipeline.cache.building.shelf import Wanted
from pipeline.cache.format import lookup, shards
from pipeline.stage import StageError

log = logging.getLogger(__name__)

PART_SECONDS = 30.0  # how much encoding a kill may cost where shards take longer
_BATCHES_AHEAD = 2
_BATCHES_BEHIND = 4


@dataclass(frozen=True)
class Job:
    """What to encode and how. `index` is a position in `wanted.rows`."""

    wanted: Wanted
    # index -> (the encoder's input, the row's numbers); in worker threads
    prepare: Callable[[int], tuple[np.ndarray, dict]]
    # gives the encoder: inputs (batch, ...) -> outputs (batch, ...)
    make_encoder: Callable[[], Callable[[np.ndarray], tuple[np.ndarray, ...]]]
    # index, its outputs -> the row's payloads and their shape
    finish: Callable[[int, tuple[np.ndarray, ...]], dict]
    unit: str  # what the progress bar counts
    batch_size: int
    workers: int


@dataclass
class Report:
    """What a run did."""

    rows: int = 0
    encoded: int = 0
    shards: int = 0
    shards_written: int = 0
    seconds_encoding: float = 0.0  # spent inside the encoder
    assembled: bool = False  # whether this rank made the out


@dataclass
class _Shard:
    """A shard that the store lacks: wanted.rows[first:last]."""

    path: Path
    first: int
    last: int
    files: list[Path]  # of the store, that hold some of its rows
    file: np.ndarray  # (rows,) int32, which of the files holds a row, or -1
    position: np.ndarray  # (rows,) int32, and where in it
    rows: dict[int, dict] = field(default_factory=dict)  # index -> encoded row

    @property
    def lacking(self) -> np.ndarray:
        """Indices of the rows that must be encoded."""
        return self.first + np.flatnonzero(self.file < 0)

    @property
    def complete(self) -> bool:
        return len(self.rows) == int((self.file < 0).sum())


def build(job: Job, out: str | Path, others: ranks.Others = ranks.UNKNOWN) -> Report:
    """Fill the store with every shard of `job.wanted` that is this rank's; rank 0 then makes the folder `out`.
    `others`: as ranks.beside gives them. Waits while another process is at the same work. What goes with the store when
    it is deleted meanwhile is encoded again.

    Raises StageError, also when a row cannot be encoded; what was encoded before stays in the store."""
    wanted = job.wanted
    if not len(wanted.rows):
        raise StageError(f"there are no rows to encode for {out}; wanted at least one accepted picture")
    rank, world = ranks.from_environment()
    report = Report(rows=len(wanted.rows), shards=wanted.count)
    name = wanted.kind.name + (f", rank {rank}" if rank else "")
    with (
        ranks.claim(wanted.key, rank) as progressed,
        store.watched(wanted.folder) as there,
        progress.Bar(0, job.unit, name) as bar,
    ):
        counter = ranks.Counter(bar, wanted.key, rank, world, progressed)
        store.sweep(wanted.folder)
        damaged: set[tuple[Path, int]] = set()
        encode = None
        mine = {rank}  # of rank 0 also the ranks that have ended and whose shards were deleted with the store
        while not report.assembled:
            shelf.record_state(wanted)
            while missing := _missing(wanted, mine, world, damaged):
                if encode is None and any(not shard.complete for shard in missing):
                    with progress.outside():  # MindSpore's import and the weights, once
                        encode = job.make_encoder()
                _fill(job, encode, missing, damaged, report, counter)
            shelf.drop_finished_parts(wanted)
            if rank != 0:
                break
            if lost := ranks.wait_for(wanted.paths, wanted.key, world, mine, lambda: not there(), others, counter.look):
                mine |= lost
            else:
                counter.finish()
                report.assembled = _assemble(wanted, Path(out))
    return report


def _missing(wanted: Wanted, mine: set[int], world: int, damaged: set[tuple[Path, int]]) -> list[_Shard]:
    """The shards of the ranks `mine` that the store lacks, and where their rows may lie already."""
    bounds = wanted.bounds
    found = []
    opened: dict[Path, shards.Shard] = {}
    present = shelf.Stored(wanted)
    for number, path in enumerate(wanted.paths):
        if number % world not in mine or path.exists():
            continue
        first, last = int(bounds[number]), int(bounds[number + 1])
        shard = _Shard(path, first, last, [], np.full(last - first, -1, np.int32), np.zeros(last - first, np.int32))
        candidates = present.of(number)
        for old in [old for old in opened if old not in candidates]:
            del opened[old]
        for candidate in candidates:
            if (shard.file >= 0).all():
                break
            if candidate not in opened:
                try:
                    opened[candidate] = shards.open_shard(candidate, wanted.kind)
                except FileNotFoundError:  # a part that another rank has finished with
                    continue
                except shards.ShardError as error:
                    log.warning("not used: %s", error)
                    continue
            stored = opened[candidate]
            if not len(stored):
                continue
            groups = shelf.groups_of(stored)
            names = lookup.halves(stored.columns["row"])
            positions = lookup.locate_in_group(names, groups, wanted.rows[first:last], wanted.groups[first:last])
            broken = [position for file, position in damaged if file == candidate]
            use = (positions >= 0) & (shard.file < 0) & ~np.isin(positions, broken)
            shard.file[use] = len(shard.files)
            shard.position[use] = positions[use]
            shard.files.append(candidate)
        found.append(shard)
    return found


def _batches(wanted: Wanted, missing: list[_Shard], batch_size: int) -> Iterator[list[int]]:
    """Indices to encode, one group a batch, shard after shard; a shard's last batch is filled up from later shards."""
    lacking = np.concatenate([shard.lacking for shard in missing])
    if not len(lacking):
        return
    groups, group = np.unique(wanted.groups[lacking], axis=0, return_inverse=True)
    queues = [lacking[group == number] for number in range(len(groups))]
    begin = [0] * len(queues)
    for shard in missing:
        for number, queue in enumerate(queues):
            while begin[number] < len(queue) and queue[begin[number]] < shard.last:
                yield queue[begin[number] : begin[number] + batch_size].tolist()
                begin[number] += batch_size


def _fill(
    job: Job,
    encode: Callable | None,
    missing: list[_Shard],
    damaged: set[tuple[Path, int]],
    report: Report,
    counter: ranks.Counter,
) -> None:
    """Encode and write `missing`. Rows of the store that turn out damaged are added to `damaged`, their shards left
    out. `counter` is told after each batch."""
    counter.expect(sum(len(shard.lacking) for shard in missing))
    writer = _Writer(job, missing, damaged, report)
    with (
        ThreadPoolExecutor(job.workers, "prepare") as workers,
        ThreadPoolExecutor(1, "stack") as stacker,
        ThreadPoolExecutor(1, "write") as behind,
    ):
        results: deque[Future] = deque([behind.submit(writer.write_complete)])
        try:
            for indices, inputs, numbers in _prepared(job, missing, workers, stacker):
                started = time.perf_counter()
                outputs = encode(inputs)
                report.seconds_encoding += time.perf_counter() - started
                counter.add(len(indices))
                results.append(behind.submit(writer.take, indices, numbers, outputs))
                while len(results) > _BATCHES_BEHIND or results and results[0].done():
                    results.popleft().result()
            while results:
                results.popleft().result()
        finally:
            behind.submit(writer.keep_unfinished).result()


def _prepared(
    job: Job, missing: list[_Shard], workers: ThreadPoolExecutor, stacker: ThreadPoolExecutor
) -> Iterator[tuple[list[int], np.ndarray, list[dict]]]:
    """(indices, padded inputs, numbers) of each batch, prepared ahead of the encoder."""

    def stack(items: list[Future]) -> tuple[np.ndarray, list[dict]]:
        done = [item.result() for item in items]
        inputs = [item for item, _ in done]
        inputs += [inputs[0]] * (job.batch_size - len(inputs))
        return np.stack(inputs), [numbers for _, numbers in done]

    ahead: deque[tuple[list[int], list[Future], Future]] = deque()
    try:
        for indices in _batches(job.wanted, missing, job.batch_size):
            items = [workers.submit(job.prepare, index) for index in indices]
            ahead.append((indices, items, stacker.submit(stack, items)))
            if len(ahead) > _BATCHES_AHEAD:
                first, _, stacked = ahead.popleft()
                yield first, *stacked.result()
        while ahead:
            first, _, stacked = ahead.popleft()
            yield first, *stacked.result()
    finally:
        for _, items, _ in ahead:
            for item in items:
                item.cancel()


class _Writer:
    """Collects encoded rows, and writes each shard when it is complete. Used by one thread."""

    def __init__(self, job: Job, missing: list[_Shard], damaged: set[tuple[Path, int]], report: Report):
        self._job, self._open, self._damaged, self._report = job, list(missing), damaged, report
        self._first = np.array([shard.first for shard in missing])
        self._missing = missing
        self._since_part: list[dict] = []
        self._part_time = time.monotonic()

    def take(self, indices: list[int], numbers: list[dict], outputs: tuple[np.ndarray, ...]) -> None:
        """Keep the results of one batch (padding is cut off), then write what became complete."""
        for position, (index, known) in enumerate(zip(indices, numbers, strict=True)):
            payload = self._job.finish(index, tuple(output[position] for output in outputs))
            row = {"row": self._job.wanted.rows[index].tobytes(), **known, **payload}
            shard = self._missing[int(np.searchsorted(self._first, index, side="right")) - 1]
            shard.rows[index] = row
            self._since_part.append(row)
            self._report.encoded += 1
        self.write_complete()
        if time.monotonic() - self._part_time > PART_SECONDS:
            self.keep_unfinished()

    def write_complete(self) -> None:
        while self._open and self._open[0].complete:
            shard = self._open.pop(0)
            self._write(shard)
            shard.rows.clear()

    def keep_unfinished(self) -> None:
        """Put the rows that are in no file yet into the store as a part."""
        unfinished = {id(row) for shard in self._open for row in shard.rows.values()}
        rows = [row for row in self._since_part if id(row) in unfinished]
        if rows:
            shelf.put_part(self._job.wanted, rows)
        self._since_part.clear()
        self._part_time = time.monotonic()

    def _write(self, shard: _Shard) -> None:
        wanted = self._job.wanted
        rows = list(shard.rows.values())
        whole = True
        for number, path in enumerate(shard.files):
            found, broken = _read(path, wanted.kind, shard.position[shard.file == number].tolist())
            rows += found
            self._damaged.update((path, position) for position in broken)
            whole = whole and not broken
        if whole:
            shelf.put(shard.path, wanted.kind, rows, wanted.fingerprint)
            self._report.shards_written += 1
        elif shard.rows:
            shelf.put_part(wanted, list(shard.rows.values()))


def _read(path: Path, kind: shards.Kind, positions: list[int]) -> tuple[list[dict], list[int]]:
    """The rows at `positions` of a stored file, and the positions of damaged ones."""
    try:
        shard = shards.open_shard(path, kind)
        rows, broken = [], []
        with open(path, "rb", buffering=0) as file:
            for position in positions:
                try:
                    rows.append(shards.read_row(shard, position, file.fileno()))
                except shards.ShardError as error:
                    log.warning("encoded again: %s", error)
                    broken.append(position)
        return rows, broken
    except (FileNotFoundError, shards.ShardError) as error:
        log.warning("encoded again: %s", error)
        return [], positions


def _assemble(wanted: Wanted, out: Path) -> bool:
    """Make `out` of links to the store's files. It appears whole, or not at all when one of them is not there any
    more."""
    try:
        with store.out(out) as temporary:
            temporary.mkdir()
            for index, path in enumerate(wanted.paths):
                store.link(path, temporary / shards.shard_name(index, wanted.count))
    except FileNotFoundError:
        if all(path.exists() for path in wanted.paths):
            raise
        return False
    return True


def not_finite(array: np.ndarray) -> str | None:
    """Why an array cannot be stored as float16: "NaN", "infinite", "too large for float16" or None."""
    if np.isnan(array).any():
        return "NaN"
    if np.isinf(array).any():
        return "infinite"
    if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        return "too large for float16"
    return None


def as_float16(array: np.ndarray, what: str, advice: str) -> bytes:
    """The bytes of an array (C order, little endian). Raises StageError, naming `what`, when a value cannot be
    stored."""
    reason = not_finite(array)
    if reason:
        raise StageError(f"{what}: the encoder's result is {reason}; {advice}")
    return np.ascontiguousarray(array, dtype="<f2").tobytes()
