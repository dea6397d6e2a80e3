"""Rows of both caches for training, joined, in any order, without loading the caches into memory.

Opening reads and checks the numbers of every row. A batch reads its payloads straight into its arrays, and checks them
there before it is handed out. So a cache may be larger than the memory, and a damaged row never reaches training."""

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.cache.format import checksum, lookup, shards
from pipeline.cache.format.names import EMPTY_CAPTION, text_row
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading import draws, views
from pipeline.cache.reading.buffers import Buffers
from pipeline.cache.reading.growing import Even, Growing
from pipeline.cache.reading.rows import CacheError, Origin, Rows, damaged
from pipeline.stage import shown

_OPEN_FILES = 256
PLACE = ("original_height", "original_width", "crop_top", "crop_left")
_SHAPE = ("target_width", "target_height", "channels", "latent_height", "latent_width")
_SAMPLE = {  # columns of samples.parquet -> their type, and the value of a plain data set; -1 stands for null
    "repeats": (np.float64, 1),
    "loss_weight": (np.float32, 1),
    "caption_dropout": (np.float32, -1),
    "class_images": (np.bool_, False),
}
_TEXT_SHAPE = ("tokens", "width", "pooled_width")


@dataclass(frozen=True)
class Batch:
    latents: np.ndarray  # (b, 8 or 4, h, w) float16, unscaled: mean then logvar of the posterior, or one latent
    context: np.ndarray | None  # (b, tokens, context_dim) float16
    pooled: np.ndarray | None  # (b, pooled_dim) float32
    time_ids: np.ndarray  # (b, 6) int32: original height, width; crop top, left; target height, width
    images: np.ndarray  # (b,) int64 numbers of samples, -1 for padding
    # (b, h, w) uint8: how much each latent pixel's loss counts; None: no row has a mask
    masks: np.ndarray | None = None
    ids: np.ndarray | None = None  # (b, 2, chunks, 77) int32 where text encoders are trained, and no context and pooled


class Reader:
    """Samples are pictures as a set has them, numbered in the order of the pictures' names; a sample may have several
    rows (mirrored, cropped) and several captions, of which one is drawn each time that an epoch has it.

    n: number of samples, or where samples have several views or prepare pictures in ways of their own, of views; then
    samples: (n,) int32, of which sample each is, else None. names: (n, 16) uint8 of the pictures, sorted. buckets: (n, 2) int32, width and height.
    repeats: (n,) float64, times in an epoch. loss_weights: (n,) float32. caption_dropout: (n,) float32, or -1 for
    train.caption_dropout. class_images: (n,) bool. masked: bool, whether any row has a mask.
    """

    encodes = False  # whether a batch is encoded when it is read, which is the loop's to do
    texts = None  # cache/reading/texts.py's Texts where captions are read themselves

    def __init__(
        self,
        latents: str | Path,
        text: str | Path,
        samples: str | Path,
        *,
        vae: str | Path | None = None,
        clip_l: str | Path | None = None,
        clip_g: str | Path | None = None,
        made_with: dict[str, dict] | None = None,
        texts: Sequence[str] = (),
        preparation: Preparation | None = None,
        emphasis: str = "none",
    ):
        """latents, text: folders of shards; samples: samples.parquet. What the rows must have been made with, where
        given: the checkpoints vae, clip_l, clip_g, and in made_with further entries of the fingerprints of "latents"
        and "text". texts: further ones that must be there, for `read_texts`. preparation: of params.yaml, for samples
        with views. emphasis: params.cache_text.emphasis, of the texts. Raises CacheError."""
        made_with = made_with or {}
        with_views = views.are_in(Path(samples))
        try:
            self._open_latents(Path(latents), Origin({"vae": vae}, made_with.get("latents", {})), with_views)
            self._open_text(Path(text), Origin({"clip_l": clip_l, "clip_g": clip_g}, made_with.get("text", {})))
        except shards.ShardError as error:
            raise CacheError(str(error)) from error
        self._find_texts(texts, emphasis)
        self._join(Path(samples), preparation, with_views)
        self._files: OrderedDict[tuple[str, int], int] = OrderedDict()  # the most recently used last
        self._thread = ThreadPoolExecutor(1, "cache-reader")
        self._buffers = Buffers()

    def _join(self, samples: Path, preparation: Preparation | None, with_views: bool) -> None:
        """Number the samples, whose latents and captions are known by their names."""
        self.buckets = None
        names = self._group_rows() if not with_views else _pictures(samples)
        self._group_captions(samples, names)
        self.samples = None
        if with_views:
            self._open_views(samples, preparation)
        self.names = np.empty((self.n, 16), np.uint8)
        for half, place in zip(names, (slice(0, 8), slice(8, 16)), strict=True):
            half = half if self._picture is None else half[self._picture]
            self.names[:, place] = half.astype(">u8").view(np.uint8).reshape(-1, 8)

    def _open_latents(self, folder: Path, origin: Origin, with_views: bool) -> None:
        columns = ("target_width", "target_height", *PLACE)
        self._latents = Rows(shards.LATENTS, folder, origin, "row" if with_views else "image", columns, _SHAPE)
        self.masked = self._latents.masks is not None
        self._shapes = {}  # bucket (width, height) -> shape of a latent
        for width, height, *shape in self._latents.shapes:
            if self._shapes.setdefault((width, height), tuple(shape)) != tuple(shape):
                raise CacheError(
                    f"{folder}: latents of bucket {width}x{height} have the shapes {self._shapes[width, height]} "
                    f"and {tuple(shape)}"
                )

    def _open_text(self, folder: Path, origin: Origin) -> None:
        self._text = Rows(shards.TEXT, folder, origin, "row", (), _TEXT_SHAPE)
        if len(self._text.shapes) != 1:
            raise CacheError(
                f"{folder}: {', '.join(_TEXT_SHAPE)} have the values {sorted(self._text.shapes)}, wanted one of each"
            )
        ((tokens, width, pooled_width),) = self._text.shapes
        self._text_layout = [((tokens, width), np.float16), ((pooled_width,), np.float32)]

    def _group_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Number the pictures. Returns the halves of their names, sorted, each (n,) uint64."""
        high, low = self._latents.names.pop("high"), self._latents.names.pop("low")
        self._row = np.lexsort((low, high)).astype(np.int32)
        high = high[self._row]
        low = low[self._row]
        pictures = int(((high[1:] != high[:-1]) | (low[1:] != low[:-1])).sum()) + 1
        self._variants = len(high) // pictures  # rows of each picture: mirrored, cropped
        first = high[:: self._variants], low[:: self._variants]
        same = [
            len(half) == pictures * self._variants and (half.reshape(pictures, -1) == one[:, None]).all()
            for half, one in zip((high, low), first)
        ]
        if not all(same):
            raise CacheError(
                f"{self._latents.paths[0].parent}: pictures have different numbers of rows; "
                "run `dvc repro cache_latents`"
            )
        columns = self._latents.columns
        self.buckets = np.stack(
            [columns.pop(name)[self._row[:: self._variants]] for name in ("target_width", "target_height")], axis=1
        )
        return np.ascontiguousarray(first[0]), np.ascontiguousarray(first[1])

    def _open_views(self, path: Path, preparation: Preparation) -> None:
        """From here on, what was of samples is of views."""
        found = views.read(path, self._latents, preparation, self._latents.fingerprint)
        self.samples, self.buckets, self.n = found.samples, found.buckets, len(found.samples)
        self._row, self._row_start = found.rows, found.start
        own = np.arange(len(self.repeats), dtype=np.int32) if self._picture is None else self._picture
        self._picture = own[self.samples]
        for name in ("repeats", "loss_weights", "caption_dropout", "class_images"):
            setattr(self, name, np.ascontiguousarray(getattr(self, name)[self.samples]))

    def _find_texts(self, texts: Sequence[str], emphasis: str) -> None:
        rows = self._text.names["high"], self._text.names["low"]
        names = {text: lookup.as_names([text_row(text, emphasis)]) for text in texts}
        self._texts = {text: int(lookup.locate(rows, name)[0]) for text, name in names.items()}
        if absent := [text for text, row in self._texts.items() if row < 0]:
            raise CacheError(
                f"{self._text.paths[0].parent} lacks {len(absent)} texts of train.previews, the first is "
                f"{shown(repr(absent[0]))}; run `dvc repro cache_text`"
            )

    def _group_captions(self, path: Path, pictures: tuple[np.ndarray, np.ndarray]) -> None:
        rows = self._text.names.pop("high"), self._text.names.pop("low")
        self._empty = int(lookup.locate(rows, lookup.as_names([EMPTY_CAPTION]))[0])
        extra, absent = 0, []
        picture, sets, captions = Growing(np.int32), Even(np.int32, 0), Growing(np.int32)
        chances = Even(np.float32, 1)
        numbers = {name: Even(dtype, usual) for name, (dtype, usual) in _SAMPLE.items()}
        with pq.ParquetFile(path) as file:
            columns = ["image", "set", "caption", "chance", *numbers]
            for group in range(file.num_row_groups):  # iter_batches would read far ahead
                batch = file.read_row_group(group, columns=columns, use_threads=False)
                found = lookup.locate(pictures, lookup.as_names(batch["image"]))
                wanted = lookup.as_names(batch["caption"])
                caption = lookup.locate(rows, wanted)
                extra += int((found < 0).sum())
                absent += [name.tobytes().hex() for name in wanted[caption < 0]]
                picture.append(found)
                captions.append(caption)
                sets.append(batch["set"].to_numpy())
                chances.append(batch["chance"].to_numpy())
                for name, column in numbers.items():
                    column.append(pc.fill_null(batch[name], column.usual).to_numpy())
        del rows
        of_row, self._caption = picture.whole(), captions.whole()
        self._chance = chances.whole() if chances.varies else None
        has_caption = np.zeros(len(pictures[0]), bool)
        has_caption[of_row[of_row >= 0]] = True
        bare = int((~has_caption).sum())
        if extra or bare:
            raise CacheError(
                f"{path} and {self._latents.paths[0].parent} are not of the same pictures: "
                f"{extra} captions have no latents, {bare} pictures have no caption; "
                "run `dvc repro cache_latents cache_text`"
            )
        text = self._text.paths[0].parent
        if absent:
            raise CacheError(
                f"{len(absent)} captions of {path} are not in {text}, the first is {absent[0]}; "
                "run `dvc repro cache_text`"
            )
        if self._empty < 0:
            raise CacheError(f"{text} lacks the empty caption; run `dvc repro cache_text`")
        self._number_samples(of_row, sets, numbers)

    def _number_samples(self, picture: np.ndarray, sets: Even, numbers: dict[str, Even]) -> None:
        """Number the samples. picture: (rows,) int32 of samples.parquet; sets, numbers: its columns."""
        by_set = sets.whole()
        if (picture[1:] < picture[:-1]).any():
            order = np.lexsort((by_set, picture))
            picture, by_set, self._caption = picture[order], by_set[order], self._caption[order]
            self._chance = None if self._chance is None else self._chance[order]
        else:
            order = slice(None)
        is_first = np.ones(len(picture), bool)
        is_first[1:] = picture[1:] != picture[:-1]
        if sets.varies:
            is_first[1:] |= by_set[1:] != by_set[:-1]
        first = np.flatnonzero(is_first).astype(np.int32)
        self.n = len(first)
        self._caption_start = np.append(first, np.int32(len(picture)))
        self._picture = picture[first] if self.n > picture[-1] + 1 else None  # of each sample; None: its own number
        if self._picture is not None and self.buckets is not None:
            self.buckets = self.buckets[self._picture]
        per_sample = {
            name: column.whole()[order][first] if column.varies else np.broadcast_to(column.usual, self.n)
            for name, column in numbers.items()
        }
        self.repeats, self.loss_weights, self.caption_dropout, self.class_images = per_sample.values()

    def begin(
        self, samples: np.ndarray, epoch: int, seed: int, drop_caption: np.ndarray | None = None
    ) -> Callable[[], Batch]:
        """-> function that gives what `read` does. What can be done beforehand, and in a thread, is done here."""
        batch = self.read(samples, epoch, seed, drop_caption)
        return lambda: batch

    def read(self, samples: np.ndarray, epoch: int, seed: int, drop_caption: np.ndarray | None = None) -> Batch:
        """The rows of one batch. samples: (b,) int64 numbers as plan.epoch_plan gives them, all of one bucket; -1 is
        padding and repeats the first real one.
        drop_caption: (b,) bool, where True the empty caption stands in. Raises CacheError for a damaged row."""
        self._close_oldest()
        samples, _, rows, captions, (width, height) = self._choose(samples, epoch, seed, drop_caption)
        shape = self._shapes[width, height]
        masks = self._buffers.take((len(rows), *shape[1:]), np.uint8) if self.masked else None
        (latents,), fill_latents = self._reading(self._latents, rows, [(shape, np.float16)], masks)
        beside = self._thread.submit(fill_latents)
        try:
            context, pooled, ids = self._read_captions(captions)
            places = [self._latents.columns[name][rows] for name in PLACE]
            targets = (np.full(len(rows), side, np.int32) for side in (height, width))
            time_ids = np.stack([*places, *targets], axis=1)
        finally:
            beside.result()
        return Batch(latents, context, pooled, time_ids, samples, masks, ids)

    def still(self, samples: np.ndarray) -> Batch:
        """As `read`, the same each time: for validation and previews."""
        return self.read(samples, epoch=0, seed=0)

    def still_texts(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Context and pooled of the captions that `still` has."""
        batch = self.still(samples)
        return batch.context, batch.pooled

    def _choose(
        self, samples: np.ndarray, epoch: int, seed: int, drop_caption: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
        """What is drawn for a batch: its samples (b,), the same with padding filled, rows of the latents and of the text
        (b,), and the bucket's width and height. Arguments as for `read`."""
        samples = np.asarray(samples, np.int64)
        real = samples[samples >= 0]
        if not len(real):
            raise ValueError("a batch needs at least one sample that is not padding")
        filled = np.where(samples >= 0, samples, real[0])
        turn, entry = np.divmod(filled, self.n)
        sample = entry if self.samples is None else self.samples[entry].astype(np.int64)
        buckets = self.buckets[entry]
        if (buckets != buckets[0]).any():
            found = ", ".join(f"{width}x{height}" for width, height in np.unique(buckets, axis=0))
            raise ValueError(f"the samples of a batch must be of one bucket; these are of {found}")
        if self.samples is None:
            variants = np.full(len(filled), self._variants)
            begin = (sample if self._picture is None else self._picture[sample].astype(np.int64)) * self._variants
        else:
            begin, variants = self._row_start[entry], self._row_start[entry + 1] - self._row_start[entry]
        rows = self._row[begin + draws.choice(seed, draws.ROW, epoch, filled, variants)]
        first = self._caption_start[sample]
        count = self._caption_start[sample + 1] - first
        # The second time has the caption after the first time's.
        chosen = (draws.choice(seed, draws.CAPTION, epoch, sample, count) + turn) % count
        if self._chance is not None:
            chosen = self._by_chance(chosen, first, count, epoch, seed, filled)
        captions = self._caption[first + chosen]
        if drop_caption is not None:
            captions = np.where(drop_caption, self._empty, captions)
        return samples, filled, rows, captions, tuple(buckets[0].tolist())

    def read_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Context (b, tokens, context_dim) float16 and pooled (b, pooled_dim) float32 of texts that were given when the
        reader was made. Raises CacheError for a damaged row."""
        self._close_oldest()
        return self._read_captions(np.array([self._texts[text] for text in texts]))[:2]

    def _read_captions(self, rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Context, pooled and ids of the captions of these rows, as a Batch has them."""
        (context, pooled), fill = self._reading(self._text, rows, self._text_layout)
        fill()
        return context, pooled, None

    def _by_chance(
        self, even: np.ndarray, first: np.ndarray, count: np.ndarray, epoch: int, seed: int, numbers: np.ndarray
    ) -> np.ndarray:
        """Which of its captions each sample of a batch has: `even` where all have the same chance."""
        chosen = even.copy()
        for index in np.flatnonzero(count > 1):
            chances = self._chance[first[index] : first[index] + count[index]].astype(np.float64)
            if (chances != chances[0]).any():
                ends = np.cumsum(chances)
                draw = draws.raw(seed, draws.CHANCE, epoch, int(numbers[index]))[0] / 2.0**64
                chosen[index] = min(np.searchsorted(ends, draw * ends[-1], side="right"), count[index] - 1)
        return chosen

    def pictures(self, entries: np.ndarray) -> int:
        """How many pictures the `entries` (m,) of the n are of, in however many sets and views each is."""
        return len(entries) if self._picture is None else len(np.unique(self._picture[entries]))

    def close(self) -> None:
        self._thread.shutdown()
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _reading(
        self,
        table: Rows,
        rows: np.ndarray,
        layout: list[tuple[tuple[int, ...], type]],
        masks: np.ndarray | None = None,
    ) -> tuple[list[np.ndarray], Callable[[], None]]:
        """Arrays for the payloads of `rows` (b,) in the kind's order, each (b, *shape) of its (shape, dtype) in
        `layout`, and the function that reads the rows into them and checks them. It also fills `masks` (b, h, w), with
        255 where a row has none."""
        arrays = [self._buffers.take((len(rows), *shape), dtype) for shape, dtype in layout]
        buffers = [array.reshape(len(rows), -1).view(np.uint8) for array in arrays]
        files = (np.searchsorted(table.bounds, rows, side="right") - 1).tolist()
        handles = {file: self._open(table, file) for file in set(files)}
        offsets = [table.offsets[payload][rows].tolist() for payload in table.kind.payloads]
        sums = table.sums[rows]
        has_mask = table.masks[rows] > 0 if masks is not None else np.zeros(len(rows), bool)

        def fill() -> None:
            for buffer, places in zip(buffers, offsets, strict=True):
                for row, file, place in zip(buffer, files, places):
                    os.preadv(handles[file], [row], place)
            found = checksum.payload_sums(*buffers)
            if masks is not None:
                masks[~has_mask] = 255
            for index in np.flatnonzero(has_mask):
                os.preadv(handles[files[index]], [masks[index].reshape(-1)], int(table.masks[rows[index]]))
            if has_mask.any():
                chosen = slice(None) if has_mask.all() else has_mask
                own = masks.reshape(len(rows), -1)
                found[chosen] = checksum.payload_sums(*(buffer[chosen] for buffer in buffers), own[chosen])
            wrong = np.flatnonzero(found != sums)
            if len(wrong):  # a read that came up short is among them
                raise damaged(table, files[wrong[0]], int(rows[wrong[0]]))

        return arrays, fill

    def _open(self, table: Rows, file: int) -> int:
        """The handle of table.paths[file], which stays open for a while."""
        key = (table.kind.name, file)
        if key not in self._files:
            self._files[key] = os.open(table.paths[file], os.O_RDONLY)
        self._files.move_to_end(key)
        return self._files[key]

    def _close_oldest(self) -> None:
        while len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])


def _pictures(samples: Path) -> tuple[np.ndarray, np.ndarray]:
    """The halves of the names of all pictures of samples.parquet, sorted."""
    names = lookup.halves(lookup.as_names(pq.read_table(samples, columns=["image"])["image"]))
    first = np.ones(len(names[0]), bool)
    first[1:] = (names[0][1:] != names[0][:-1]) | (names[1][1:] != names[1][:-1])
    return names[0][first], names[1][first]
