"""Rows of both caches for training, joined, in any order, without loading the caches into memory.

Opening reads and checks the numbers of every row. A batch reads its payloads straight into its arrays, and checks them
there before it is handed out. So a cache may be larger than the memory, and a damaged row never reaches training."""

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.cache import draws, fingerprint, shards
from pipeline.cache.names import EMPTY_CAPTION
from pipeline.cache.table import Table, read_table

_OPEN_FILES = 256
_THREADS = 2
_TIME_IDS = ("original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width")
_SHAPE = ("channels", "latent_height", "latent_width")
_TEXT_SHAPE = ("tokens", "width", "pooled_width")


class CacheError(ValueError):
    """The caches do not fit each other or the wanted encoders, or a row is damaged."""


@dataclass(frozen=True)
class Batch:
    latents: np.ndarray  # (b, 8 or 4, h, w) float16, unscaled: mean then logvar of the posterior, or one latent
    context: np.ndarray  # (b, tokens, context_dim) float16
    pooled: np.ndarray  # (b, pooled_dim) float32
    time_ids: np.ndarray  # (b, 6) int32: original height, width; crop top, left; target height, width
    images: np.ndarray  # (b,) int64 sample indices, -1 for padding


class Reader:
    """Samples are pictures, numbered in the order of their names; a picture may have several rows (mirrored, cropped) and
    several captions, of which each epoch draws one.

    n: number of samples. names: (n, 16) uint8, sorted. buckets: (n, 2) int32, width and height.
    """

    def __init__(
        self,
        latents: str | Path,
        text: str | Path,
        captions: str | Path,
        *,
        vae: str | Path | None = None,
        clip_l: str | Path | None = None,
        clip_g: str | Path | None = None,
    ):
        """latents, text: folders of shards; captions: captions.parquet. vae, clip_l, clip_g: the checkpoints that the rows
        must have been made with, where given. Raises CacheError."""
        try:
            rows = read_table(latents, shards.LATENTS, ("image", *_SHAPE, *_TIME_IDS))
            self._text = read_table(text, shards.TEXT, _TEXT_SHAPE)
        except shards.ShardError as error:
            raise CacheError(str(error)) from error
        _refuse_foreign(rows, {"vae": vae})
        _refuse_foreign(self._text, {"clip_l": clip_l, "clip_g": clip_g})
        self._latents = rows
        tokens, width, pooled_width = (_only(self._text, name) for name in _TEXT_SHAPE)
        self._text_layout = [((tokens, width), np.float16), ((pooled_width,), np.float32)]
        self._group_rows()
        self._group_captions(Path(captions))
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._pool = ThreadPoolExecutor(_THREADS, "cache-reader")

    def _group_rows(self) -> None:
        images = self._latents.columns.pop("image")
        order = shards.sort_order(images)
        images = images[order]
        first = _first_of_each(images)
        self.names = images[first]
        self.n = len(self.names)
        self._row_start = np.append(first, len(images))
        self._row = order.astype(np.int32)
        columns = self._latents.columns
        self.buckets = np.stack([columns["target_width"][order[first]], columns["target_height"][order[first]]], axis=1)

    def _group_captions(self, path: Path) -> None:
        table = pq.read_table(path, columns=["image", "caption"])
        images, captions = shards.as_names(table["image"]), shards.as_names(table["caption"])
        del table
        order = shards.sort_order(images)
        images = images[order]
        first = _first_of_each(images)
        found = images[first]
        if found.shape != self.names.shape or not np.array_equal(found, self.names):
            extra, missing = (int((shards.locate(a, b) < 0).sum()) for a, b in ((self.names, found), (found, self.names)))
            raise CacheError(
                f"{path} and {self._latents.paths[0].parent} are not of the same pictures: {extra} have captions and no "
                f"latents, {missing} have latents and no caption; run `dvc repro cache_latents cache_text`"
            )
        self._caption_start = np.append(first, len(images))
        del images, found
        position = shards.locate(self._text.columns["row"], captions)
        if (position < 0).any():
            name = captions[np.flatnonzero(position < 0)[0]].tobytes().hex()
            raise CacheError(
                f"{int((position < 0).sum())} captions of {path} are not in {self._text.paths[0].parent}, the first is {name}; "
                "run `dvc repro cache_text`"
            )
        self._caption = position.astype(np.int32)[order]
        self._empty = int(shards.locate(self._text.columns["row"], shards.as_names([EMPTY_CAPTION]))[0])
        if self._empty < 0:
            raise CacheError(f"{self._text.paths[0].parent} lacks the empty caption; run `dvc repro cache_text`")

    def read(self, samples: np.ndarray, epoch: int, seed: int, drop_caption: np.ndarray | None = None) -> Batch:
        """The rows of one batch. samples: (b,) int64, all of one bucket; -1 is padding and repeats the first real one.
        drop_caption: (b,) bool, where True the empty caption stands in. Raises CacheError for a damaged row."""
        samples = np.asarray(samples, np.int64)
        real = samples[samples >= 0]
        if not len(real):
            raise ValueError("a batch needs at least one sample that is not padding")
        filled = np.where(samples >= 0, samples, real[0])
        rows = self._row[self._pick(draws.ROW, self._row_start, filled, epoch, seed)]
        captions = self._caption[self._pick(draws.CAPTION, self._caption_start, filled, epoch, seed)]
        if drop_caption is not None:
            captions = np.where(drop_caption, self._empty, captions)
        shapes = np.stack([self._latents.columns[name][rows] for name in _SHAPE], axis=1)
        if (shapes != shapes[0]).any():
            found = ", ".join("x".join(map(str, shape)) for shape in np.unique(shapes, axis=0))
            raise ValueError(f"the samples of a batch must be of one bucket; their latents are {found}")
        (latents,) = self._read(self._latents, rows, [(tuple(shapes[0]), np.float16)])
        context, pooled = self._read(self._text, captions, self._text_layout)
        time_ids = np.stack([self._latents.columns[name][rows] for name in _TIME_IDS], axis=1)
        return Batch(latents, context, pooled, time_ids, samples)

    def close(self) -> None:
        self._pool.shutdown()
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _pick(self, purpose: int, starts: np.ndarray, samples: np.ndarray, epoch: int, seed: int) -> np.ndarray:
        counts = starts[samples + 1] - starts[samples]
        return starts[samples] + draws.choice(seed, purpose, epoch, samples, counts)

    def _read(self, table: Table, rows: np.ndarray, layout: list[tuple[tuple[int, ...], type]]) -> list[np.ndarray]:
        """The payloads of `rows` (b,) in the kind's order, each (b, *shape) of its (shape, dtype) in `layout`."""
        arrays = [np.empty((len(rows), *shape), dtype) for shape, dtype in layout]
        buffers = [array.reshape(len(rows), -1).view(np.uint8) for array in arrays]
        handles = self._open([table.paths[file] for file in table.file[rows]])
        offsets = [table.offsets[payload][rows].tolist() for payload in table.kind.payloads]
        sums = table.sums[rows].tolist()

        def fill(part: range) -> None:
            for index in part:
                payloads = [buffer[index] for buffer in buffers]
                for payload, offset in zip(payloads, offsets, strict=True):
                    os.preadv(handles[index], [payload], offset[index])
                if shards.payload_sum(*payloads) != sums[index]:  # a read that comes up short fails here as well
                    path, name = table.paths[table.file[rows[index]]], table.columns["row"][rows[index]].tobytes().hex()
                    raise CacheError(f"{path}: row {name} is damaged; `python -m pipeline.cache verify` says what to do")

        step = -(-len(rows) // _THREADS)
        list(self._pool.map(fill, [range(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]))
        return arrays

    def _open(self, paths: list[Path]) -> list[int]:
        """A file handle for each path, the most recently used ones kept open."""
        for path in paths:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY)
            self._files.move_to_end(path)
        while len(self._files) > max(_OPEN_FILES, len(paths)):
            os.close(self._files.popitem(last=False)[1])
        return [self._files[path] for path in paths]


def _first_of_each(names: np.ndarray) -> np.ndarray:
    """Where each run of equal names (n, 16) begins: (k,) int64."""
    return np.flatnonzero(np.append(True, (names[1:] != names[:-1]).any(axis=1))[: len(names)])


def _only(table: Table, column: str) -> int:
    """The one value of a column, which is then let go."""
    values = np.unique(table.columns.pop(column))
    if len(values) != 1:
        raise CacheError(f"{table.paths[0].parent}: column {column} has the values {values.tolist()}, wanted one")
    return int(values[0])


def _refuse_foreign(table: Table, encoders: dict[str, str | Path | None]) -> None:
    for component, path in encoders.items():
        if path is None:
            continue
        found, wanted = table.fingerprint.get(component, "unknown"), fingerprint.file_hash(path)
        if found != wanted:
            raise CacheError(
                f"{table.paths[0].parent} was encoded by another {component} ({found}) than {path} ({wanted}); "
                f"run `dvc repro cache_{table.kind.name}`"
            )
