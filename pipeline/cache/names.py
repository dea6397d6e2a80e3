"""Names of cache rows: 16 bytes, a hash of what the row is made from."""

import hashlib
import json
import struct


def latent_row(image: bytes, flip: bool, crop: int) -> bytes:
    """image: the hash of the picture's bytes; crop: number of the crop, 0 for the first."""
    return hashlib.blake2b(image + struct.pack("<?i", flip, crop), digest_size=16).digest()


def caption_row(text: str, text_2: str | None) -> bytes:
    """text_2: the second encoder's own caption, None when it reads the same one."""
    return hashlib.blake2b(json.dumps([text, text_2]).encode(), digest_size=16).digest()


EMPTY_CAPTION = caption_row("", None)  # what a dropped caption is replaced by
