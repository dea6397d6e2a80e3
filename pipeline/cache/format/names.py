"""Names of cache rows: 16 bytes, a hash of what the row is made from. A caption's row has the caption's own name."""

import hashlib
import struct

from pipeline.data import captions


def text_row(text: str, emphasis: str = "none") -> bytes:
    """Of a caption of one text; emphasis: params.cache_text.emphasis."""
    return captions.name(text, None, emphasis)


EMPTY_CAPTION = text_row("")  # what a dropped caption is replaced by


def latent_row(image: bytes, flip: bool, crop: int, own: bytes = b"") -> bytes:
    """image: the picture's name in the index; crop: number of the crop, 0 for the first; own: what of its preparation is
    not as the cache's fingerprint has it."""
    return hashlib.blake2b(image + struct.pack("<?i", flip, crop) + own, digest_size=16).digest()
