"""Prompts to what the UNet is given of them, encoded exactly as captions are for training."""

import logging
from collections.abc import Callable

import numpy as np

from pipeline.cache.building import tokens

log = logging.getLogger(__name__)

_SHOWN = 60  # letters of a prompt that a message shows


def encode(
    prompts: list[str],
    negative_prompts: list[str | None],
    tokenizer: tokens.Tokenizer,
    encoder: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    chunks: int,
    emphasis: str = "none",
    width_l: int = 0,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(context, pooled) of the prompts and (context, pooled) of their negative prompts, which are zeros where one is
    None: (n, 75 * chunks + 2, context_dim) and (n, p), float32. `encoder` as models.encode.text_encoder.
    emphasis: params.cache_text.emphasis; with one, width_l channels of the context are CLIP-L's.

    Logs which prompts are cut."""
    known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def one(name: str, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids, weights = tokens.weighted(tokenizer, text, emphasis)
        if cut := cut_of(text, tokens.length(ids), chunks):
            log.warning("%s, %s", name, cut)
        if text not in known:
            ids_l = tokens.chunk(ids, chunks, tokenizer.begin, tokenizer.end, pad=tokenizer.end)
            ids_g = tokens.chunk(ids, chunks, tokenizer.begin, tokenizer.end, pad=0)
            hidden, pooled = encoder(ids_l, ids_g)
            of_both = np.stack([tokens.chunk_weights(weights, chunks)] * 2)
            known[text] = tokens.join_chunks(tokens.emphasised(hidden, of_both, width_l)), pooled[0]
        return known[text]

    positive = [one(f"prompt {number}", text) for number, text in enumerate(prompts)]
    zeros = tuple(map(np.zeros_like, positive[0]))
    negative = [
        zeros if text is None else one(f"negative prompt {number}", text)
        for number, text in enumerate(negative_prompts)
    ]
    return _stacked(positive), _stacked(negative)


def _stacked(encoded: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    contexts, pooleds = zip(*encoded, strict=True)
    return np.stack(contexts), np.stack(pooleds)


def cut_of(prompt: str, count: int, chunks: int) -> str | None:
    """What is said of a prompt of `count` tokens (begin and end among them) that so many chunks don't hold, else
    None."""
    most = chunks * tokens.CHUNK + 2
    if count <= most:
        return None
    shown = prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}…"
    needed = -(-(count - 2) // tokens.CHUNK)
    way = (
        f"{needed} would hold it, after encoding and training anew" if needed <= 3 else "3, the most, would not hold it"
    )
    return f"{shown!r}, has {count} tokens and was cut at {most} (cache_text.chunks is {chunks}; {way})"
