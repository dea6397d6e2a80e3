"""Captions to token ids, as SDXL's two text encoders want them."""

import json
import os
from pathlib import Path

import numpy as np

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


def join_chunks(hidden: np.ndarray) -> np.ndarray:
    """Hidden states of one caption's chunks (chunks, 77, width) -> (75 * chunks + 2, width): the first chunk's begin,
    each chunk's 75 tokens, the last chunk's end (kohya's sd-scripts, get_hidden_states_sdxl)."""
    return np.concatenate([hidden[0, :1], *hidden[:, 1:-1], hidden[-1, -1:]])
