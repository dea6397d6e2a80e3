"""What a cached row was made with. A row whose fingerprint is not the wanted one is never used.

The batch size is in it: it changes the last bits of a result (of MindSpore's CPU convolutions 0.4 % of the float16
values).
The machine and the versions of MindSpore and Pillow are not: they too change last bits only, and to move a store to
another machine or to upgrade must not encode a data set again. Delete the store to do so."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from pipeline import progress, store
from pipeline.stage import StageError

_BLOCK = 1 << 22  # bytes
_SETTLED = 2.0  # seconds; a file changed later than this before it was hashed may change again within one clock tick


def file_hash(path: str | Path) -> str:
    """blake2b of a file's bytes, 32 hex digits. Remembered in the store until the file's size, time or inode
    changes."""
    path = Path(path).resolve()
    status = os.stat(path)
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    memo = store.root() / "hashes" / f"{hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_text())
        if known["state"] == state:
            return known["hash"]
    digest = hashlib.blake2b(digest_size=16)
    bar = progress.Bar(status.st_size, "B", f"hashes {path.name}", leave=False)
    with open(path, "rb", buffering=0) as file, bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    found = digest.hexdigest()
    if time.time() - status.st_mtime > _SETTLED:
        store.keep(memo, lambda temporary: temporary.write_text(json.dumps({"state": state, "hash": found})))
    return found


def check(rows: dict, encoder: dict) -> None:
    """Raises StageError when the files of which an encoder was made are others than those that its rows will be said
    to be made with: they were edited while the stage ran."""
    edited = ", ".join(name for name in rows if rows[name] != encoder[name])
    if edited:
        raise StageError(f"{edited} of the encoders changed while this stage ran; run `dvc repro` again")


def latents(vae: str | Path, *, config: str, precision: str, batch_size: int, preparation: dict) -> dict:
    """Fingerprint of a latent. preparation: how a picture becomes pixels, and what is stored of the posterior."""
    return {"vae": file_hash(vae), "config": config, "precision": precision, "batch_size": batch_size, **preparation}


def text(
    clip_l: str | Path,
    clip_g: str | Path,
    tokenizer: str | Path,
    *,
    config: str,
    precision: str,
    batch_size: int,
    chunks: int,
) -> dict:
    """Fingerprint of a caption's embeddings."""
    tokens = {name: file_hash(Path(tokenizer) / name) for name in ("vocab.json", "merges.txt")}
    return {
        "clip_l": file_hash(clip_l),
        "clip_g": file_hash(clip_g),
        "tokenizer": tokens,
        "config": config,
        "precision": precision,
        "batch_size": batch_size,
        "chunks": chunks,
    }
