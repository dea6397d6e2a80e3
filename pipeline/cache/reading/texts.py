"""Captions that training reads themselves, and not from outs/text (train.source: pictures, and train.text_encoders): they
are tokenized by a thread, and encoded where the step does not do that."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cache.building import captions, tokens
from pipeline.cache.format import lookup, stand_in
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading.reader import Reader
from pipeline.cache.reading.rows import Origin


@dataclass(frozen=True)
class Captions:
    """What outs/text would be made of, and how."""

    path: Path  # captions.parquet
    tokenizer: Path
    fingerprint: dict  # of the rows
    emphasis: str = "none"  # params.cache_text.emphasis
    width_l: int = 0  # of the hidden states, how many channels are CLIP-L's


@dataclass(frozen=True)
class Names:
    """In the place of a cache's Rows."""

    names: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    paths: list[Path]
    fingerprint: dict


class Texts:
    """Before anything is encoded `encode_ids` must be set, to a function as models/encode.py makes it; it is called in the
    caller's thread."""

    encode_ids: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # (b, 77) of each encoder

    def __init__(self, folder: str | Path, given: Captions, batch_size: int):
        """folder: the out of cache_text, which stands for what it was made of; batch_size: that of training, at most so much
        is encoded at once. Raises StageError."""
        names, self._texts_of = captions.distinct(given.path, [""], given.emphasis)
        stand_in.check(folder, "text", given.fingerprint, (names,))
        self.names = Names(halves(names), {}, [Path(folder) / stand_in.FILE], given.fingerprint)
        self.precision = given.fingerprint["precision"]
        self._given, self._most = given, min(given.fingerprint["batch_size"], batch_size)
        # Tokenizing takes microseconds; one thread keeps the tokenizer, which is not made for several, to itself.
        self._thread = ThreadPoolExecutor(1, "tokenize")
        self._tokenizer: tokens.Tokenizer | None = None

    def of_rows(self, rows: np.ndarray) -> Future[np.ndarray]:
        """The tokens (b, 2, chunks, 77) captions.TOKEN of the captions with these numbers among all names."""
        return self._thread.submit(self._tokens, [self._texts_of(row) for row in rows.tolist()])

    def of_texts(self, texts: Sequence[str]) -> Future[np.ndarray]:
        return self._thread.submit(self._tokens, [(text, None) for text in texts])

    def encode(self, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Context (b, tokens, context_dim) and pooled (b, pooled_dim), float32, of such tokens."""
        hidden, pooled = in_parts(captions.chunk_encoder(self.encode_ids, self._given.width_l), both, self._most)
        return np.stack([tokens.join_chunks(one) for one in hidden]), pooled

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _tokens(self, texts: Sequence[tuple[str, str | None]]) -> np.ndarray:
        if self._tokenizer is None:
            self._tokenizer = tokens.Tokenizer(self._given.tokenizer)
        how = self._given.fingerprint["chunks"], self._given.emphasis
        return np.stack([captions.tokenized(self._tokenizer, *pair, *how)[0] for pair in texts])


class CaptionReader(Reader):
    """A Reader of cached latents and of captions as token ids, for text encoders that are trained."""

    def __init__(
        self, latents: str | Path, text: str | Path, samples: str | Path, given: Captions, batch_size: int, *,
        vae: str | Path | None = None, made_with: dict[str, dict] | None = None, preparation: Preparation | None = None,
    ):  # fmt: skip
        """As Reader's and Texts'. Raises CacheError and StageError."""
        self.texts = Texts(text, given, batch_size)
        super().__init__(latents, text, samples, vae=vae, made_with=made_with, preparation=preparation)

    def still_texts(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.texts.encode(self.texts.of_rows(self._choose(samples, 0, 0, None)[3]).result())

    def read_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.texts.encode(self.texts.of_texts(texts).result())

    def close(self) -> None:
        super().close()
        self.texts.close()

    def _open_text(self, folder: Path, origin: Origin) -> None:
        self._text = self.texts.names

    def _read_captions(self, rows: np.ndarray) -> tuple[None, None, np.ndarray]:
        return None, None, np.ascontiguousarray(self.texts.of_rows(rows).result()["id"])


def halves(names: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(("high", "low"), lookup.halves(names), strict=True))


def in_parts(
    encode: Callable[[np.ndarray], tuple[np.ndarray, ...]], inputs: np.ndarray, size: int
) -> tuple[np.ndarray, ...]:
    """`encode` of the inputs (b, ...), `size` of them at once, so that it meets one shape."""
    filled = np.concatenate([inputs, np.repeat(inputs[:1], -len(inputs) % size, axis=0)])
    parts = [encode(filled[begin : begin + size]) for begin in range(0, len(filled), size)]
    return tuple(np.concatenate(part)[: len(inputs)] for part in zip(*parts, strict=True))
