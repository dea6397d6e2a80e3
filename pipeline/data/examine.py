"""Look at every picture of a part once: hash its bytes and decode it, in worker processes or on the nodes of a cluster,
unless the memo knows it."""

import contextlib
import hashlib
import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import progress, store
from pipeline.data import images, memo, near
from pipeline.data.part import Part, SourceError, shown
from pipeline.data.sources import Source

if TYPE_CHECKING:
    from pipeline.workers.tasks import Answer, Tasks

log = logging.getLogger(__name__)

_OF_MASKS = {"image": "mask", "width": "mask_width", "height": "mask_height", "rejected": "mask_rejected"}
EXAMINED = pa.schema(  # about one picture and its mask, whose columns are null where there is none
    [*memo.FOUND, *(memo.FOUND.field(of).with_name(name).with_nullable(True) for of, name in _OF_MASKS.items())]
)
_CHUNK = 16  # pictures that a worker takes at once
_WINDOW = 4  # chunks waiting per worker
_FEW = 32  # so few pictures are looked at in this process: starting workers takes longer
_CRASHED = "broken: the decoder crashed or wanted more memory than there is"
_SAVE_EVERY = 30  # seconds: so much work a kill may cost


class Examiner:
    """Examines parts of one source, of which there are `part_count`. Workers start with the first part that needs
    them. tasks: calls of `look` on the nodes of a cluster, in their place."""

    def __init__(
        self, source: Source, max_pixels: int, workers: int, part_count: int = 1, tasks: "Tasks | None" = None
    ):
        self.source, self.max_pixels, self.tasks = source, max_pixels, tasks
        self.workers = tasks.workers if tasks else workers
        self.rules = memo.rules(max_pixels)
        self._pool = self._progress = None
        self._part_count = part_count
        self.begin()

    def __enter__(self) -> "Examiner":
        return self

    def __exit__(self, *_) -> None:
        self.begin()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self) -> None:
        """From here on the parts are counted from the first again."""
        if self._progress is not None:
            self._progress.close()
        self._progress, self._seen, self._files, self._new = None, 0, 0, 0  # parts, pictures and masks by now

    def _count(self, known: int, new: int) -> None:
        """Of one more part. The rate is that of the known ones up to the first new one, and from there on of the new
        ones alone: those to come are as slow."""
        self._seen, self._files = self._seen + 1, self._files + known + new
        if self._progress is None or new and not self._new:
            done = 0
            if self._progress is not None:
                self._progress.leave, done = False, self._progress.n
                self._progress.close()
            self._progress = progress.Bar(0, "image", "index", done)
        self._new += new
        # the parts to come are taken for as large as those by now
        self._progress.total = round(self._files * max(self._part_count / self._seen, 1))
        self._progress.skip(known) if self._new else self._progress.update(known)

    def examine(self, part: Part) -> tuple[pa.Table, int]:
        """An EXAMINED table with a row for each picture of the part, in its order, and the number of pictures and masks
        that were read.

        Raises OSError, SourceError."""
        now = time.time_ns()
        paths, stamps, mask_row = _files(part)
        known, table = memo.load(part.place, self.rules, paths, stamps)
        new = np.setdiff1d(np.arange(len(paths)), known, assume_unique=True)
        self._count(len(known), len(new))
        rows, tables = [known], [table]
        saved, unsaved = time.monotonic(), 0
        try:
            for chunk, found in self._look(part.place, paths.take(pa.array(new)).to_pylist(), new):
                rows.append(chunk)
                tables.append(found)
                unsaved += len(chunk)
                self._progress.update(len(chunk))
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save(part.place, paths, stamps, rows, tables, now)
                    saved, unsaved = time.monotonic(), 0
        finally:  # also when a far file cannot be read any more
            if unsaved:
                self._save(part.place, paths, stamps, rows, tables, now)
        return _beside(_in_order(rows, tables)[1], mask_row), len(new)

    def _save(
        self, place: str, paths: pa.StringArray, stamps: np.ndarray, rows: list[np.ndarray], tables: list[pa.Table],
        now: int,
    ) -> None:  # fmt: skip
        order, found = _in_order(rows, tables)
        # With more memory, or after an update of the system, the same picture may be read.
        lasting = np.flatnonzero(pc.fill_null(pc.not_equal(found["rejected"], _CRASHED), True).to_numpy())
        order, found = order[lasting], found.take(pa.array(lasting))
        memo.save(place, self.rules, paths.take(pa.array(order)), stamps[order], found, now)

    def _look(self, place: str, paths: list[str], rows: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """A few pictures are decoded in this process. A crash in a decoder ends it: the mark that stays names the
        picture and sends the next run to workers, which reject it and go on."""
        chunks = [(paths[i : i + _CHUNK], rows[i : i + _CHUNK]) for i in range(0, len(paths), _CHUNK)]
        mark = memo.mark(place)
        crashed = mark.exists()
        if crashed:
            log.warning("the last run ended while it decoded %s", mark.read_text(encoding="utf-8") or "a picture")
        if paths and len(paths) <= _FEW and not crashed:
            try:
                for names, chunk in chunks:
                    try:
                        yield chunk, pa.concat_tables([self._look_here(name, mark) for name in names])
                    except MemoryError:
                        yield chunk, self._one_by_one(names)
            finally:
                mark.unlink(missing_ok=True)
            return
        waiting: deque[tuple[list[str], np.ndarray, Future | Answer]] = deque()
        for names, chunk in chunks:
            waiting.append((names, chunk, self._submit(names)))
            if len(waiting) > _WINDOW * self.workers:
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())
        mark.unlink(missing_ok=True)

    def _look_here(self, name: str, mark: Path) -> pa.Table:
        with contextlib.suppress(FileNotFoundError):  # the store is being deleted
            store.make(mark.parent)
            mark.write_text(shown(name), encoding="utf-8")
        return look(self.source, [name], self.max_pixels)

    def _submit(self, names: list[str]) -> "Future | Answer":
        if self.tasks is not None:
            return self.tasks.submit(names, self.max_pixels)
        if self._pool is None:
            self._pool = self._workers(self.workers)
            with progress.outside():  # they start for seconds, once
                wait([self._pool.submit(os.getpid) for _ in range(self.workers)])
        with contextlib.suppress(BrokenProcessPool):
            return self._pool.submit(_work, names)
        self._pool = self._workers(self.workers)
        return self._pool.submit(_work, names)

    def _result(self, names: list[str], chunk: np.ndarray, future: "Future | Answer") -> tuple[np.ndarray, pa.Table]:
        try:
            return chunk, future.result()
        except (BrokenProcessPool, MemoryError):  # one of these pictures, or of those that other workers had
            return chunk, self._one_by_one(names)

    def _one_by_one(self, names: list[str]) -> pa.Table:
        """Look at pictures in a process that has nothing else to do, and reject those that end it."""
        tables, process = [], None
        for name in names:
            if process is None:
                process = self._workers(1)
                try:
                    process.submit(os.getpid).result()
                except BrokenProcessPool:
                    raise SourceError("no worker process can be started; lower index.workers or free memory") from None
            try:
                tables.append(process.submit(_work, [name]).result())
            except (BrokenProcessPool, MemoryError):
                digest = hashlib.blake2b(self.source.read(name), digest_size=16).digest()
                row = {"image": digest, "rejected": _CRASHED, "profile_ignored": False, "transparent": False}
                tables.append(pa.Table.from_pylist([row], schema=memo.FOUND))
                process.shutdown()
                process = None
        if process is not None:
            process.shutdown()
        return pa.concat_tables(tables)

    def _workers(self, number: int) -> ProcessPoolExecutor:
        # Not forked: a fork of a process with threads (Arrow's) can hang.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(number, context, _start, (self.source, self.max_pixels))


def _files(part: Part) -> tuple[pa.StringArray, np.ndarray, np.ndarray]:
    """Paths and stamps of a part's pictures, and behind them of its masks, each once; and where among them is the mask
    of each picture, (n,) int64, -1 for none."""
    masks, count = part.masks, len(part.paths)
    distinct = pc.drop_null(pc.unique(masks))
    place = pc.fill_null(pc.index_in(masks, distinct), -1).to_numpy().astype(np.int64)
    has_mask = np.flatnonzero(place >= 0)
    _, first = np.unique(place[has_mask], return_index=True)
    stamps = np.concatenate([part.stamps, part.mask_stamps[has_mask[first]]])
    return pa.concat_arrays([part.paths, distinct]), stamps, np.where(place >= 0, place + count, -1)


def _beside(found: pa.Table, mask_row: np.ndarray) -> pa.Table:
    """An EXAMINED table of `found`, a memo.FOUND table of pictures and behind them of their masks; mask_row: as _files
    gives it."""
    of_masks = found.take(pa.array(mask_row, mask=mask_row < 0)).select(list(_OF_MASKS)).rename_columns(_OF_MASKS)
    return pa.table([*found.slice(0, len(mask_row)).columns, *of_masks.columns], EXAMINED.names).cast(EXAMINED)


def look_at_all(source: Source, part: Part, max_pixels: int) -> pa.Table:
    """As Examiner.examine's table, of a few pictures: in this process, without the memo."""
    paths, _, mask_row = _files(part)
    return _beside(look(source, paths.to_pylist(), max_pixels), mask_row)


def look(source: Source, paths: list[str], max_pixels: int) -> pa.Table:
    """A memo.FOUND table of the pictures at `paths`."""
    return pa.Table.from_pylist([_look_at(source.read(path), max_pixels) for path in paths], schema=memo.FOUND)


def _look_at(data: bytes, max_pixels: int) -> dict:
    digest = hashlib.blake2b(data, digest_size=16).digest()
    found = {"image": digest, "profile_ignored": False, "transparent": False}
    try:
        picture = images.read(data, (0, 0, 0), max_pixels)
    except images.Rejected as reason:
        return found | {"rejected": str(reason)}
    height, width = picture.pixels.shape[:2]
    transparent = picture.alpha is not None and int(picture.alpha.min()) < 255
    found |= {"width": width, "height": height, "profile_ignored": picture.profile_ignored, "transparent": transparent}
    return found | {"phash": near.perceptual_hash(picture.pixels)}


def _start(source: Source, max_pixels: int) -> None:
    global _source, _max_pixels
    _source, _max_pixels = source, max_pixels
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work for ever when its stage is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(paths: list[str]) -> pa.Table:
    return look(_source, paths, _max_pixels)


def _in_order(rows: list[np.ndarray], tables: list[pa.Table]) -> tuple[np.ndarray, pa.Table]:
    """The rows, sorted, and the table that belongs to them."""
    joined = np.concatenate(rows)
    order = np.argsort(joined)
    return joined[order], pa.concat_tables(tables).take(pa.array(order)).combine_chunks()
