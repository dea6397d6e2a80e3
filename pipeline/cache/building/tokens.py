"""Captions to token ids, as SDXL's two text encoders want them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.data import emphasis as weights_of_words
from pipeline.hub import hint
from pipeline.stage import StageError

CHUNK = 75  # tokens of a caption in one pass; with the begin and end tokens 77
LENGTH = CHUNK + 2


class Tokenizer:
    """A CLIP tokenizer from a folder with vocab.json and merges.txt, in the form of openai/clip-vit-large-patch14."""

    def __init__(self, folder: str | Path):
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch
        from transformers import CLIPTokenizer  # here, because it takes a second and most runs encode nothing

        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(str(folder))
        except OSError:
            raise
        except Exception as error:  # whatever its reader of both files meets
            raise StageError(f"{folder} is not a CLIP tokenizer: {type(error).__name__}: {error}") from None
        self.begin, self.end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        self._tokenizer.model_max_length = 10**9  # long captions are ours to count and to cut

    def __call__(self, text: str) -> list[int]:
        """Ids of a caption, neither cut nor padded, without begin and end."""
        return self._tokenizer(text, add_special_tokens=False).input_ids


def check_vocabulary(folder: str | Path, size: int, config: str) -> None:
    """Raises StageError when the tokenizer in `folder` has not the `size` tokens that the text encoders of model.config
    `config` were trained with: its ids would mean other words to them, without an error anywhere."""
    path = Path(folder) / "vocab.json"
    absent = [name for name in ("vocab.json", "merges.txt") if not (Path(folder) / name).is_file()]
    if absent:
        raise StageError(
            f"{folder} has no {' and no '.join(absent)}; wanted in model.tokenizer the folder with both that belong to "
            "the base model (SDXL's: `hf download openai/clip-vit-large-patch14 vocab.json merges.txt --local-dir "
            f"{folder}`){hint(folder)}"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is not a vocabulary in JSON: {error}") from None
    if not isinstance(found, dict) or len(found) != size:
        raise StageError(
            f"{path} has {len(found) if isinstance(found, dict) else 'no'} tokens and the text encoders of model.config "
            f"{config} know {size}; wanted in model.tokenizer the vocabulary that belongs to the base model (SDXL: that "
            "of openai/clip-vit-large-patch14)"
        )


def length(ids: list[int]) -> int:
    """Tokens of a caption with begin and end."""
    return len(ids) + 2


def weighted(tokenizer: Callable[[str], list[int]], text: str, emphasis: str) -> tuple[list[int], list[float]]:
    """Ids of a caption, neither cut nor padded, without begin and end, and the weight of each. emphasis: none | a1111, of
    which each stretch of one weight is tokenized by itself, as there."""
    pieces = weights_of_words.pieces(text) if emphasis == "a1111" else [(text, 1.0)]
    found = [(tokenizer(piece), weight) for piece, weight in pieces]
    return [one for ids, _ in found for one in ids], [weight for ids, weight in found for _ in ids]


def chunk(ids: list[int], chunks: int, begin: int, end: int, pad: int) -> np.ndarray:
    """(chunks, 77) int32. Each chunk has begin, up to 75 ids, end, padding; what goes beyond the last chunk is cut.

    With pad = end this is what kohya's sd-scripts does for CLIP-L, with pad = 0 for OpenCLIP bigG; a chunk without ids
    is begin, end, padding."""
    result = np.full((chunks, LENGTH), pad, np.int32)
    result[:, 0] = begin
    for number, row in enumerate(result):
        part = ids[number * CHUNK : (number + 1) * CHUNK]
        row[1 : 1 + len(part)] = part
        row[1 + len(part)] = end
    return result


def chunk_weights(weights: list[float], chunks: int) -> np.ndarray:
    """(chunks, 77) float32, of the ids as `chunk` places them; 1 at begin, end and padding."""
    result = np.ones((chunks, LENGTH), np.float32)
    for number, row in enumerate(result):
        part = weights[number * CHUNK : (number + 1) * CHUNK]
        row[1 : 1 + len(part)] = part
    return result


def emphasised(hidden: np.ndarray, weights: np.ndarray, width_l: int) -> np.ndarray:
    """Hidden states of one caption's chunks (chunks, 77, width), times the weights of their tokens (2, chunks, 77) for
    CLIP-L, whose channels are the first `width_l`, and for bigG; each encoder's states of a chunk are then scaled to the
    mean that they had (A1111's emphasis "Original", modules/sd_emphasis.py). Without weights they stay bit for bit."""
    if (weights == 1).all():
        return hidden
    parts = hidden[..., :width_l], hidden[..., width_l:]
    return np.concatenate([_heavier(part, own) for part, own in zip(parts, weights)], axis=2)


def _heavier(hidden: np.ndarray, weights: np.ndarray) -> np.ndarray:
    times = hidden * weights[..., None]
    before, after = (values.mean((1, 2), np.float64, keepdims=True) for values in (hidden, times))
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite is said of the caption
        return (times * (before / after)).astype(np.float32)


def join_chunks(hidden: np.ndarray) -> np.ndarray:
    """Hidden states of one caption's chunks (chunks, 77, width) -> (75 * chunks + 2, width): the first chunk's begin,
    each chunk's 75 tokens, the last chunk's end (kohya's sd-scripts, get_hidden_states_sdxl)."""
    return np.concatenate([hidden[0, :1], *hidden[:, 1:-1], hidden[-1, -1:]])
