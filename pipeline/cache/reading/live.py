"""Samples for training without a cache (train.source: pictures): pictures are prepared and captions tokenized by
threads, ahead of the step that wants them, and encoded when it does.

Which picture, bucket, flip and caption a sample has is drawn as from the caches, so with the same preparation both give
the same batches, to the rounding of the caches' float16. What no cache can have is a crop of its own for each time that
an epoch has a sample (cache_latents.crop: random)."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.cache.building import pictures
from pipeline.cache.format import stand_in
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading import draws, views
from pipeline.cache.reading.reader import PLACE, Batch
from pipeline.cache.reading.texts import CaptionReader, Captions, Names, Texts, halves, in_parts
from pipeline.data.sources import Source

_TIME_IDS = (*PLACE, "target_height", "target_width")


@dataclass(frozen=True)
class Originals:
    """What the latents' cache would be made of, and how."""

    images: Path  # images.parquet
    source: Source
    preparation: Preparation  # of params.yaml
    fingerprint: dict  # of the rows
    workers: int


class LiveReader(CaptionReader):
    """A Reader of the originals. Before the first batch `encode_pixels` must be set, to a function as models/encode.py
    makes it, and that of `texts`; they are called by `read`, and by what `begin` gives, in the caller's thread."""

    encodes = True
    encode_pixels: Callable[[np.ndarray], np.ndarray]  # (b, 3, H, W) -> moments (b, 8, h, w)

    def __init__(
        self, latents: str | Path, text: str | Path, samples: str | Path, originals: Originals, given: Captions,
        batch_size: int, gives_ids: bool,
    ):  # fmt: skip
        """latents, text: the outs of the cache stages, which stand for what they were made of; batch_size: that of
        training, at most so much is encoded at once. gives_ids: batches have token ids, for text encoders that are
        trained, and no context and pooled. Raises StageError."""
        o, with_views = originals, views.are_in(Path(samples))
        usual = replace(o.preparation, fresh=True)
        self._found = pictures.open_pictures(o.images, o.source, o.fingerprint, usual)
        stand_in.check(latents, "latents", o.fingerprint, (self._found.names, self._found.bucket))
        self.texts, self._gives_ids = Texts(text, given, batch_size), gives_ids
        own = self._found.names if with_views else self._found.images[self._found.picture]
        height, width = self._found.bucket.T
        columns = {"target_width": width.copy(), "target_height": height.copy()}
        self._latents = Names(halves(own), columns, [Path(latents) / stand_in.FILE], o.fingerprint)
        self._text = self.texts.names
        self.masked = self._found.masks.null_count < len(self._found.masks)
        self._join(Path(samples), usual, with_views)
        self._originals, self.precision = o, o.fingerprint["precision"]
        self._most = min(o.fingerprint["batch_size"], batch_size)
        self._workers = ThreadPoolExecutor(o.workers, "prepare")

    def begin(
        self, samples: np.ndarray, epoch: int, seed: int, drop_caption: np.ndarray | None = None
    ) -> Callable[[], Batch]:
        samples, filled, rows, texts, _ = self._choose(samples, epoch, seed, drop_caption)

        def prepare(row: int, number: int) -> tuple[np.ndarray, dict]:
            return pictures.prepare(self._found, row, generator=draws.generator(seed, draws.CROP, epoch, number))

        prepared = [self._workers.submit(prepare, *one) for one in zip(rows.tolist(), filled.tolist())]
        return self._begun(samples, rows, texts, prepared)

    def read(self, samples: np.ndarray, epoch: int, seed: int, drop_caption: np.ndarray | None = None) -> Batch:
        return self.begin(samples, epoch, seed, drop_caption)()

    def still(self, samples: np.ndarray) -> Batch:
        """Neither mirrored nor cropped at random."""
        samples, _, rows, texts, _ = self._choose(samples, 0, 0, None)
        prepared = [
            self._workers.submit(pictures.prepare, self._found, row, flip=False, crop="center") for row in rows.tolist()
        ]
        return self._begun(samples, rows, texts, prepared)()

    def close(self) -> None:
        self._workers.shutdown(cancel_futures=True)
        self.texts.close()

    def _begun(
        self, samples: np.ndarray, rows: np.ndarray, texts: np.ndarray, prepared: list[Future]
    ) -> Callable[[], Batch]:
        both = self.texts.of_rows(texts)

        def finish() -> Batch:
            pixels, numbers = zip(*(one.result() for one in prepared), strict=True)
            (moments,) = in_parts(lambda part: (self.encode_pixels(part),), np.stack(pixels), self._most)
            form = self._originals.preparation.store
            names = [self._found.names[row].tobytes() for row in rows.tolist()]
            latents = [pictures.reduce_moments(one, form, name) for one, name in zip(moments, names)]
            time_ids = np.array([[one[name] for name in _TIME_IDS] for one in numbers], np.int32)
            masks = self._masks(numbers, moments.shape[2:]) if self.masked else None
            ids, context, pooled = None, None, None
            if self._gives_ids:
                ids = np.ascontiguousarray(both.result()["id"])
            else:
                context, pooled = self.texts.encode(both.result())
            return Batch(np.stack(latents), context, pooled, time_ids, samples, masks, ids)

        return finish

    def _masks(self, numbers: Sequence[dict], shape: tuple[int, int]) -> np.ndarray:
        whole = np.full(shape, 255, np.uint8)
        own = [np.frombuffer(one["mask"], np.uint8).reshape(shape) if "mask" in one else whole for one in numbers]
        return np.stack(own)
