"""The texts of the pictures that are drawn while training (train.previews): rows of the text cache beside the captions."""

from collections.abc import Sequence

from pipeline.params import Prompt


def texts(previews: Sequence[str | Prompt]) -> list[str]:
    """All prompts and negative prompts, each once."""
    both = [(one, None) if isinstance(one, str) else (one.prompt, one.negative_prompt) for one in previews]
    return list(dict.fromkeys(text for pair in both for text in pair if text is not None))
