"""The captions' side of the cache: from captions.parquet to rows."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.cache.building import captions as captions_of
from pipeline.cache.building import tokens
from pipeline.cache.building.engine import Job, as_float16, not_finite
from pipeline.cache.building.shelf import Wanted
from pipeline.cache.format import shards
from pipeline.stage import StageError

_ADVICE = "the text encoders' weights are broken, or the precision is too low for them"


def make_job(
    captions: str | Path,
    fingerprint: dict,
    make_tokenizer: Callable[[], tokens.Tokenizer],
    make_encoder: Callable[[], Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]],
    chunks: int,
    batch_size: int,
    further: Sequence[str] = (),
    emphasis: str = "none",
    width_l: int = 0,
) -> Job:
    """The job that encodes every distinct caption of captions.parquet, the empty one, and `further` texts. emphasis:
    params.cache_text.emphasis; with one, width_l channels of the hidden states are CLIP-L's.

    make_encoder() gives a function of ids (b, 77) int32 for CLIP-L and for bigG to hidden states (b, 77, width) float32
    and pooled (b, pooled_width) float32."""
    names, texts = captions_of.distinct(Path(captions), ["", *further], emphasis)
    wanted = Wanted(shards.TEXT, fingerprint, names, np.zeros((len(names), 2), np.int32))
    tokenizer: list[tokens.Tokenizer] = []  # made by the first caption that is encoded

    def prepare(index: int) -> tuple[np.ndarray, dict]:
        if not tokenizer:
            tokenizer.append(make_tokenizer())
        return captions_of.tokenized(tokenizer[0], *texts(index), chunks, emphasis)

    def encoder() -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return captions_of.chunk_encoder(make_encoder(), width_l)

    def finish(index: int, outputs: tuple[np.ndarray, ...]) -> dict:
        hidden, pooled = outputs
        what = f"caption {texts(index)[0][:200]!r}"
        if reason := not_finite(pooled):
            raise StageError(f"{what}: its pooled embedding is {reason}; {_ADVICE}")
        context = tokens.join_chunks(hidden)
        return {
            "context": as_float16(context, what, _ADVICE),
            "tokens": len(context),
            "width": context.shape[1],
            "pooled": np.ascontiguousarray(pooled, "<f4").tobytes(),
            "pooled_width": len(pooled),
        }

    # Tokenizing takes microseconds; one thread keeps the tokenizer, which is not made for several, to itself.
    return Job(wanted, prepare, encoder, finish, "caption", batch_size, workers=1)


def count_long(folder: str | Path, chunks: int) -> tuple[int, int, int]:
    """(captions that were cut, captions of more than 77 tokens, captions) of a finished cache."""
    cut = over = total = 0
    for path in sorted(Path(folder).glob("*.parquet")):
        lengths = shards.open_shard(path, shards.TEXT).columns["caption_tokens"]
        cut += int((lengths > chunks * tokens.CHUNK + 2).sum())
        over += int((lengths > tokens.LENGTH).sum())
        total += len(lengths)
    return cut, over, total
