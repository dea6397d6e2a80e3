"""The texts of the pictures that are drawn while training (train.previews): rows of the text cache beside the captions.
"""

from collections.abc import Sequence

from pipeline.params import Preview


def texts(previews: Sequence[Preview]) -> list[str]:
    """All prompts and negative prompts, each once."""
    both = [text for one in previews for text in (one.prompt, one.negative_prompt) if text is not None]
    return list(dict.fromkeys(both))
