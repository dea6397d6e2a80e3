"""What a file is, by its first bytes: names and extensions promise nothing (.ckpt is MindSpore's and PyTorch's)."""

import io
import pickle
import pickletools

LENGTH = 64  # bytes that `describe` wants to see, where the file has them
WANTED = "Wanted a safetensors file or a MindSpore .ckpt"

_PICKLED = (
    "holds pickled PyTorch weights, which can run any code when opened, so it is not read. {}: most models are "
    "published as safetensors too; else the tool that made it can save it so, as can safetensors.torch.save_file"
)
_KINDS = {
    b"PK\3\4": _PICKLED,  # zip, torch.save since PyTorch 1.6
    **{b"\x80" + bytes([protocol]): _PICKLED for protocol in (2, 3, 4, 5)},  # older .ckpt, .bin, .pt
    b"GGUF": "holds weights quantised for inference (GGUF), which cannot be trained. {}: the model they were made from",
    b"\xd8\x5e\x3a\x7f": "is an encrypted MindSpore checkpoint. {}: load it with its key and save it without one",
    b"\x89HDF": "is an HDF5 file. {}",
    b"\x1f\x8b": "is compressed (gzip). {}: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd). {}: unpack it",
    b"version https://git-lfs": "is a git-lfs pointer, not the weights. {}: run `git lfs pull`",
}


def describe(prefix: bytes, last: bytes) -> str:
    """What can be said of a file that is not to be read, and what was wanted; to stand behind its path.

    prefix: its first LENGTH bytes; last: its last byte, or none of an empty file."""
    if not prefix:
        return f"is empty. {WANTED}: download or copy it again"
    for begins, text in _KINDS.items():
        if prefix.startswith(begins):
            return text.format(WANTED)
    if last == pickle.STOP and _is_unmarked_pickle(prefix):
        return _PICKLED.format(WANTED)
    if prefix.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
        return (f"begins with {prefix[:8]!r} as a web page does. {WANTED}: download it again, logged in where the site "
                "asks for that")  # fmt: skip
    return f"begins with {prefix[:8]!r}. {WANTED}: give the file that is one, or download or copy it again"


def _is_unmarked_pickle(prefix: bytes) -> bool:
    """Whether these are opcodes of a pickle of protocol 0 or 1, which begins with no mark; they are not executed.

    They begin with those of a tuple or dict, a class, a list, or the number that torch.save writes first."""
    stream, count = io.BytesIO(prefix), 0
    if prefix[:1] not in (b"(", b"}", b"c", b"]", b"L"):
        return False
    try:
        for _ in pickletools.genops(stream):
            count += 1
    except ValueError:  # an unknown opcode, or the last one is cut off where the prefix ends
        return count >= 2 and stream.tell() == len(prefix)
    return True
