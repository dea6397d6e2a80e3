"""Make one cache folder: link what the store has, encode what it lacks.

Three things go on at once: worker threads prepare the inputs of the next batches, the calling thread runs the encoder,
and one writer thread turns results into rows and rows into shards. Batches have one fixed shape per group and are
padded, so a row does not depend on which rows it is encoded with; the last batch of a shard is filled up from the
shards that follow. A shard enters the store when its last row is encoded; rows of unfinished shards enter it as parts
meanwhile.

Several workers each do so with some of the shards at a time (`worker`); whoever makes the out plans what they do, and
puts together the shards of which they had to encode some rows only."""

import functools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline import locks, progress, store
from pipeline.cache.building import shelf
from pipeline.cache.building.shelf import Wanted
from pipeline.cache.format import lookup, shards
from pipeline.stage import StageError
from pipeline.workers.crew import Files, Source
from pipeline.workers.share import Away, Crew, Done, Gone, Work, share

log = logging.getLogger(__name__)

PART_SECONDS = 30.0  # how much encoding a kill may cost where shards take longer
_BATCHES_AHEAD = 2
_BATCHES_BEHIND = 4
_RESULTS_BEHIND = 4  # of workers


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
    encoded: int = 0  # those of a shard that was lost with its node before it was here count again
    shards: int = 0
    shards_written: int = 0
    seconds_encoding: float = 0.0  # spent inside the encoder of this process


@dataclass
class _Shard:
    """A shard that the store lacks: wanted.rows[first:last]."""

    number: int
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


@dataclass(frozen=True)
class Piece:
    """What a worker has to encode of a shard."""

    number: int
    lacking: np.ndarray  # indices of wanted.rows


def build(job: Job, out: str | Path, crew: Crew | None = None) -> Report:
    """Fill the store with every shard of `job.wanted`, then make the folder `out`. crew: workers (of `worker`) that
    encode in the place of this process. Waits while another process is at the same work. What goes with the store when
    it is deleted meanwhile is encoded again.

    Raises StageError, also when a row cannot be encoded; what was encoded before stays in the store."""
    wanted = job.wanted
    if not len(wanted.rows):
        raise StageError(f"there are no rows to encode for {out}; wanted at least one accepted picture")
    report = Report(rows=len(wanted.rows), shards=wanted.count)
    with locks.lock(f"cache-{wanted.key}", "fills the same cache"), progress.Bar(0, job.unit, wanted.kind.name) as bar:
        store.sweep(wanted.folder)
        damaged: set[tuple[Path, int]] = set()
        encode = None
        while True:
            shelf.record_state(wanted)
            while missing := _missing(wanted, damaged):
                lacking = [shard for shard in missing if not shard.complete]
                bar.total += sum(len(shard.lacking) for shard in lacking)
                if lacking and crew:
                    _fill_by(crew, wanted, lacking, report, bar)
                    continue  # this process then completes those of which the store had some rows
                if lacking and encode is None:
                    with progress.outside():  # MindSpore's import and the weights, once
                        encode = job.make_encoder()
                for count in _fill(job, encode, missing, _Writer(job, missing, damaged, report)):
                    bar.update(count)
            shelf.drop_finished_parts(wanted)
            if _assemble(wanted, Path(out)):
                return report


def worker(
    make_job: Callable[[Files, Source | None], Job], key: str, files: Files, source: Source | None, away: bool
) -> Work:
    """What a worker does with units of Pieces, whose rows it puts into the store, or into a folder of its own where it
    is away, as its store may be that of the process that takes them: whole shards, or parts of them. The result is the
    files, which nobody else reads when it is away. key: of the wanted rows. files, source, away: as crew gives them."""
    job = make_job(files, source)
    if job.wanted.key != key:
        raise StageError(
            "pyarrow or the rules of the cache here differ from those of the process that began this stage; install "
            "requirements.txt on all nodes"
        )
    if away:
        folder = store.workspace(store.root() / "nodes")
        job = replace(job, wanted=replace(job.wanted, elsewhere=folder))
    encode = functools.cache(job.make_encoder)

    def work(unit: list[Piece]) -> Iterator[int | Done]:
        missing = []
        for piece in unit:
            first, last = map(int, job.wanted.bounds[piece.number : piece.number + 2])
            there = np.zeros(last - first, np.int32)
            there[piece.lacking - first] = -1
            path = job.wanted.paths[piece.number]
            missing.append(_Shard(piece.number, path, first, last, [], there, np.zeros_like(there)))
        writer = _Writer(job, missing, set(), Report(), parts=not away)
        yield from _fill(job, encode(), missing, writer)
        yield Done(writer.written)

    return work


def _units(lacking: list["_Shard"]) -> list[list[Piece]]:
    """Of each shard what it lacks; of several together where that is little, so that batches are full."""
    units, count = [], shards.ROWS_PER_SHARD
    for shard in lacking:
        if count + len(shard.lacking) > shards.ROWS_PER_SHARD:
            units.append([])
            count = 0
        units[-1].append(Piece(shard.number, shard.lacking))
        count += len(shard.lacking)
    return units


def _fill_by(crew: Crew, wanted: Wanted, lacking: list["_Shard"], report: Report, bar: progress.Bar) -> None:
    """Let the crew encode what these shards lack, and take what it made into the store."""
    nodes: Counter[str] = Counter()
    since: dict[str, float] = {}

    def counted(node: str, number: int) -> None:
        if not since:
            bar.start_t = bar.last_print_t = time.time()  # MindSpore's import and the compilation, once
        bar.update(number)
        report.encoded += number
        nodes[node] += number if node in since else 0  # the first batch has the compilation in it
        since.setdefault(node, time.monotonic())
        if node:
            rates = {name: nodes[name] / max(time.monotonic() - began, 1e-3) for name, began in since.items()}
            bar.set_postfix_str(_shown(rates), refresh=False)

    def take(file: Path | Away) -> None:
        try:
            if isinstance(file, Away):
                shelf.take(wanted, file.name, file.read())
        except Gone as error:  # the next round encodes it again
            log.warning("encoded again: %s", error)
            return
        report.shards_written += not shelf.is_part(Path(file.name))

    with ThreadPoolExecutor(1, "take") as behind:
        results: deque[Future] = deque()
        for made in share(crew, _units(lacking), counted):
            results += [behind.submit(take, file) for file in made]
            while len(results) > _RESULTS_BEHIND:
                results.popleft().result()
        for result in results:
            result.result()


def _shown(rates: dict[str, float]) -> str:
    """What a bar says of the nodes' rates: of many those of the slowest two and the fastest two."""
    found = sorted((rate, name) for name, rate in rates.items())
    some = found if len(found) < 5 else [*found[:2], *found[-2:]]
    return f"{len(found)} node{'s' * (len(found) > 1)}: {', '.join(f'{name} {rate:.3g}/s' for rate, name in some)}"


def _missing(wanted: Wanted, damaged: set[tuple[Path, int]]) -> list[_Shard]:
    """The shards that the store lacks, and where their rows may lie already."""
    bounds = wanted.bounds
    found = []
    opened: dict[Path, shards.Shard] = {}
    present = shelf.Stored(wanted)
    for number, path in enumerate(wanted.paths):
        if path.exists():
            continue
        first, last = int(bounds[number]), int(bounds[number + 1])
        files, positions = np.full(last - first, -1, np.int32), np.zeros(last - first, np.int32)
        shard = _Shard(number, path, first, last, [], files, positions)
        candidates = present.of(number)
        for old in [old for old in opened if old not in candidates]:
            del opened[old]
        for candidate in candidates:
            if (shard.file >= 0).all():
                break
            if candidate not in opened:
                try:
                    opened[candidate] = shards.open_shard(candidate, wanted.kind)
                except FileNotFoundError:  # the store is being deleted
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


def _fill(job: Job, encode: Callable | None, missing: list[_Shard], writer: "_Writer") -> Iterator[int]:
    """Encode and write `missing`. Gives the number of rows of each batch."""
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
                writer.report.seconds_encoding += time.perf_counter() - started
                results.append(behind.submit(writer.take, indices, numbers, outputs))
                yield len(indices)
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
    """Collects encoded rows, and writes each shard when it is complete. Used by one thread. Rows of the store that turn
    out damaged are added to `damaged`, their shards left out. parts: whether to keep rows of unfinished shards."""

    def __init__(
        self, job: Job, missing: list[_Shard], damaged: set[tuple[Path, int]], report: Report, parts: bool = True
    ):
        self.report = report
        self.written: list[Path] = []
        self._job, self._open, self._damaged, self._parts = job, list(missing), damaged, parts
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
            self.report.encoded += 1
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
        if not self._parts:
            return
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
        if whole and len(rows) == shard.last - shard.first:
            shelf.put(shard.path, wanted.kind, rows, wanted.fingerprint)
            self.written.append(shard.path)
            self.report.shards_written += 1
        elif shard.rows:
            self.written.append(shelf.put_part(wanted, list(shard.rows.values())))


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
