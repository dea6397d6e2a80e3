"""Prompts to what the UNet is given of them, encoded exactly as captions are for training."""

from collections.abc import Callable

import numpy as np

from pipeline.cache import tokens


def encode(
    prompts: list[str],
    tokenizer: tokens.Tokenizer,
    encoder: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    chunks: int,
) -> tuple[np.ndarray, np.ndarray]:
    """context (n, 75 * chunks + 2, context_dim) and pooled (n, p), float32; `encoder` as models.encode.text_encoder."""
    contexts, pooleds = [], []
    for prompt in prompts:
        ids = tokenizer(prompt)
        ids_l = tokens.chunk(ids, chunks, tokenizer.begin, tokenizer.end, pad=tokenizer.end)
        ids_g = tokens.chunk(ids, chunks, tokenizer.begin, tokenizer.end, pad=0)
        hidden, pooled = encoder(ids_l, ids_g)
        contexts.append(tokens.join_chunks(hidden))
        pooleds.append(pooled[0])
    return np.stack(contexts), np.stack(pooleds)
