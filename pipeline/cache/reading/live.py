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

from pipeline.cache.building import captions, pictures, tokens
from pipeline.cache.format import lookup, stand_in
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading import draws, views
from pipeline.cache.reading.reader import PLACE, Batch, Reader
from pipeline.data.sources import Source

_TIME_IDS = (*PLACE, "target_height", "target_width")


@dataclass(frozen=True)
class Originals:
    """What the caches would be made of, and how."""

    images: Path  # images.parquet
    captions: Path  # captions.parquet
    source: Source
    tokenizer: Path
    preparation: Preparation  # of params.yaml
    latents: dict  # fingerprints of the rows
    text: dict
    workers: int
    emphasis: str = "none"  # params.cache_text.emphasis
    width_l: int = 0  # of the hidden states, how many channels are CLIP-L's


@dataclass(frozen=True)
class _Names:
    """In the place of a cache's Rows."""

    names: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    paths: list[Path]
    fingerprint: dict


class LiveReader(Reader):
    """A Reader of the originals. Before the first batch `encode_pixels` and `encode_ids` must be set, to functions as
    models/encode.py makes them; they are called by `read`, and by what `begin` gives, in the caller's thread."""

    encodes = True
    gives_ids = False  # where the text encoders are trained: batches have ids then
    encode_pixels: Callable[[np.ndarray], np.ndarray]  # (b, 3, H, W) -> moments (b, 8, h, w)
    encode_ids: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # (b, 77) of each encoder

    def __init__(
        self, latents: str | Path, text: str | Path, samples: str | Path, originals: Originals, batch_size: int
    ):
        """latents, text: the outs of the cache stages, which stand for what they were made of; batch_size: that of
        training, at most so much is encoded at once. Raises StageError."""
        o, with_views = originals, views.are_in(Path(samples))
        usual = replace(o.preparation, fresh=True)
        self._found = pictures.open_pictures(o.images, o.source, o.latents, usual)
        names, self._texts_of = captions.distinct(o.captions, [""], o.emphasis)
        stand_in.check(latents, "latents", o.latents, (self._found.names, self._found.bucket))
        stand_in.check(text, "text", o.text, (names,))
        own = self._found.names if with_views else self._found.images[self._found.picture]
        height, width = self._found.bucket.T
        columns = {"target_width": width.copy(), "target_height": height.copy()}
        self._latents = _Names(_halves(own), columns, [Path(latents) / stand_in.FILE], o.latents)
        self._text = _Names(_halves(names), {}, [Path(text) / stand_in.FILE], o.text)
        self.masked = self._found.masks.null_count < len(self._found.masks)
        self._join(Path(samples), usual, with_views)
        self._originals = o
        self.precisions = {"latents": o.latents["precision"], "text": o.text["precision"]}
        self._most = {
            "latents": min(o.latents["batch_size"], batch_size),
            "text": min(o.text["batch_size"], batch_size),
        }
        self._workers = ThreadPoolExecutor(o.workers, "prepare")
        # Tokenizing takes microseconds; one thread keeps the tokenizer, which is not made for several, to itself.
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")
        self._tokenizer: tokens.Tokenizer | None = None

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

    def still_texts(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        texts = self._choose(samples, 0, 0, None)[3]
        pairs = [self._texts_of(text) for text in texts.tolist()]
        return self._encode_texts(self._tokenizing.submit(self._ids, pairs).result())

    def read_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._encode_texts(self._tokenizing.submit(self._ids, [(text, None) for text in texts]).result())

    def close(self) -> None:
        for pool in (self._workers, self._tokenizing):
            pool.shutdown(cancel_futures=True)

    def _begun(
        self, samples: np.ndarray, rows: np.ndarray, texts: np.ndarray, prepared: list[Future]
    ) -> Callable[[], Batch]:
        ids = self._tokenizing.submit(self._ids, [self._texts_of(text) for text in texts.tolist()])

        def finish() -> Batch:
            pixels, numbers = zip(*(one.result() for one in prepared), strict=True)
            (moments,) = _in_parts(lambda part: (self.encode_pixels(part),), np.stack(pixels), self._most["latents"])
            form = self._originals.preparation.store
            names = [self._found.names[row].tobytes() for row in rows.tolist()]
            latents = [pictures.reduce_moments(one, form, name) for one, name in zip(moments, names)]
            context, pooled = (None, None) if self.gives_ids else self._encode_texts(ids.result())
            time_ids = np.array([[one[name] for name in _TIME_IDS] for one in numbers], np.int32)
            masks = self._masks(numbers, moments.shape[2:]) if self.masked else None
            own = np.ascontiguousarray(ids.result()["id"]) if self.gives_ids else None
            return Batch(np.stack(latents), context, pooled, time_ids, samples, masks, own)

        return finish

    def _masks(self, numbers: Sequence[dict], shape: tuple[int, int]) -> np.ndarray:
        whole = np.full(shape, 255, np.uint8)
        own = [np.frombuffer(one["mask"], np.uint8).reshape(shape) if "mask" in one else whole for one in numbers]
        return np.stack(own)

    def _ids(self, texts: Sequence[tuple[str, str | None]]) -> np.ndarray:
        """(b, 2, chunks, 77) captions.TOKEN"""
        if self._tokenizer is None:
            self._tokenizer = tokens.Tokenizer(self._originals.tokenizer)
        how = self._originals.text["chunks"], self._originals.emphasis
        return np.stack([captions.tokenized(self._tokenizer, *pair, *how)[0] for pair in texts])

    def _encode_texts(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        encode = captions.chunk_encoder(self.encode_ids, self._originals.width_l)
        hidden, pooled = _in_parts(encode, ids, self._most["text"])
        return np.stack([tokens.join_chunks(one) for one in hidden]), pooled


def _halves(names: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(("high", "low"), lookup.halves(names), strict=True))


def _in_parts(
    encode: Callable[[np.ndarray], tuple[np.ndarray, ...]], inputs: np.ndarray, size: int
) -> tuple[np.ndarray, ...]:
    """`encode` of the inputs (b, ...), `size` of them at once, so that it meets one shape."""
    filled = np.concatenate([inputs, np.repeat(inputs[:1], -len(inputs) % size, axis=0)])
    parts = [encode(filled[begin : begin + size]) for begin in range(0, len(filled), size)]
    return tuple(np.concatenate(part)[: len(inputs)] for part in zip(*parts, strict=True))
