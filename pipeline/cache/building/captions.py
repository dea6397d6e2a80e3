"""Which rows the captions of captions.parquet have, and what the encoders read of one: the same for the cache, and for
training on captions as they are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.cache.building import tokens
from pipeline.cache.format import lookup
from pipeline.cache.format.names import text_row


def distinct(path: Path, further: list[str]) -> tuple[np.ndarray, Callable[[int], tuple[str, str | None]]]:
    """The names of all captions and of `further` texts, sorted, and a function from their index to their texts."""
    table = pq.read_table(path, columns=["caption", "text", "text_2"])
    names = np.concatenate([lookup.as_names(table["caption"]), lookup.as_names([text_row(text) for text in further])])
    order = lookup.sort_order(names)
    ordered = names[order]
    first = order[np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))]

    def texts(index: int) -> tuple[str, str | None]:
        position = int(first[index])
        if position >= table.num_rows:
            return further[position - table.num_rows], None
        return table["text"][position].as_py(), table["text_2"][position].as_py()

    return names[first], texts


def tokenized(tokenizer: tokens.Tokenizer, text: str, text_2: str | None, chunks: int) -> tuple[np.ndarray, dict]:
    """The ids (2, chunks, 77) int32 of a caption as both encoders read it, and its numbers."""
    ids = tokenizer(text)
    ids_2 = ids if text_2 is None else tokenizer(text_2)
    begin, end = tokenizer.begin, tokenizer.end
    both = np.stack([tokens.chunk(ids, chunks, begin, end, pad=end), tokens.chunk(ids_2, chunks, begin, end, pad=0)])
    return both, {"caption_tokens": max(tokens.length(ids), tokens.length(ids_2))}


def chunk_encoder(encode: Callable) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """-> function of ids (b, 2, chunks, 77) giving hidden states (b, chunks, 77, width), and pooled (b, pooled_width) of
    the first chunk. encode: of ids of one chunk, as make_job has it."""

    def run(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [encode(ids[:, 0, number], ids[:, 1, number]) for number in range(ids.shape[2])]
        return np.stack([hidden for hidden, _ in parts], axis=1), parts[0][1]

    return run
