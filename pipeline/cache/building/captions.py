"""Which rows the captions of captions.parquet have, and what the encoders read of one: the same for the cache, and for
training on captions as they are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.cache.building import tokens
from pipeline.cache.format import lookup
from pipeline.cache.format.names import text_row
from pipeline.data import captions
from pipeline.stage import StageError

TOKEN = np.dtype([("id", np.int32), ("weight", np.float32)])


def distinct(
    path: Path, further: list[str], emphasis: str = "none"
) -> tuple[np.ndarray, Callable[[int], tuple[str, str | None]]]:
    """The names of all captions and of `further` texts, sorted, and a function from their index to their texts, which raises
    StageError when the index was made with another emphasis (params.cache_text.emphasis)."""
    table = pq.read_table(path, columns=["caption", "text", "text_2"])
    names = np.concatenate(
        [lookup.as_names(table["caption"]), lookup.as_names([text_row(text, emphasis) for text in further])]
    )
    order = lookup.sort_order(names)
    ordered = names[order]
    first = order[np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))]

    def texts(index: int) -> tuple[str, str | None]:
        position = int(first[index])
        if position >= table.num_rows:
            return further[position - table.num_rows], None
        text, text_2 = table["text"][position].as_py(), table["text_2"][position].as_py()
        if captions.name(text, text_2, emphasis) != names[position].tobytes():
            raise StageError(
                f"{path} was made with another cache_text.emphasis than {emphasis}: the name of {text[:200]!r} is not its "
                "own; run `dvc repro index`"
            )
        return text, text_2

    return names[first], texts


def tokenized(
    tokenizer: tokens.Tokenizer, text: str, text_2: str | None, chunks: int, emphasis: str = "none"
) -> tuple[np.ndarray, dict]:
    """The tokens (2, chunks, 77) TOKEN of a caption as both encoders read it, and its numbers."""
    ids, weights = tokens.weighted(tokenizer, text, emphasis)
    ids_2, weights_2 = (ids, weights) if text_2 is None else tokens.weighted(tokenizer, text_2, emphasis)
    begin, end = tokenizer.begin, tokenizer.end
    both = np.empty((2, chunks, tokens.LENGTH), TOKEN)
    both["id"] = tokens.chunk(ids, chunks, begin, end, pad=end), tokens.chunk(ids_2, chunks, begin, end, pad=0)
    both["weight"] = [tokens.chunk_weights(own, chunks) for own in (weights, weights_2)]
    return both, {"caption_tokens": max(tokens.length(ids), tokens.length(ids_2))}


def chunk_encoder(encode: Callable, width_l: int = 0) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """-> function of tokens (b, 2, chunks, 77) giving hidden states (b, chunks, 77, width), and pooled (b, pooled_width) of
    the first chunk, which no weight changes. encode: of ids of one chunk, as make_job has it; width_l: how many channels
    of the hidden states are CLIP-L's."""

    def run(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.ascontiguousarray(both["id"])
        parts = [encode(ids[:, 0, number], ids[:, 1, number]) for number in range(ids.shape[2])]
        hidden = np.stack([hidden for hidden, _ in parts], axis=1)
        return np.stack([tokens.emphasised(*pair, width_l) for pair in zip(hidden, both["weight"])]), parts[0][1]

    return run
