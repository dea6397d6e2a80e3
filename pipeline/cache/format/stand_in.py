"""What outs/latents and outs/text hold where training reads pictures and captions themselves (train.source: pictures) or
captions alone (train.text_encoders): one small file in place of the shards. It says why there are none, and names by a digest what training reads of the pictures
or the captions, but not where they lie: DVC trains again when those change, and only then."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import store
from pipeline.stage import StageError

FILE = "not-cached.json"
_WHAT = {"latents": "pictures", "text": "captions"}


def write(folder: str | Path, kind: str, fingerprint: dict, rows: Sequence[np.ndarray], setting: str) -> str:
    """Make the out of `kind` (latents or text); `fingerprint` is what its rows would be made with, and `rows` are their
    names and whatever else tells them apart. `setting` is the one for which it holds nothing, such as "train.source is
    pictures". Returns why it holds nothing."""
    why = f"{setting}: {_WHAT[kind]} are encoded while training, and none is cached"
    with store.out(folder) as temporary:
        temporary.mkdir()
        text = json.dumps({"why": why, **_about(fingerprint, rows)}, indent=1, sort_keys=True)
        (temporary / FILE).write_text(f"{text}\n", encoding="utf-8")
    return why


def check(folder: str | Path, kind: str, fingerprint: dict, rows: Sequence[np.ndarray]) -> None:
    """Raises StageError when the out was made of other rows, with something else, or is a cache."""
    found, wanted = read(folder, kind), _about(fingerprint, rows)
    differ = [
        f"{name} {found['made_with'].get(name)} -> {value}"
        for name, value in wanted["made_with"].items()
        if found["made_with"].get(name) != value
    ]
    differ += [f"other {_WHAT[kind]} than in outs/index"] * (found["rows"] != wanted["rows"])
    if differ:
        raise StageError(f"{Path(folder) / FILE} is of {', '.join(differ)}; run `dvc repro cache_{kind}`")


def read(folder: str | Path, kind: str) -> dict:
    """`why`, `made_with` and `rows`. Raises StageError."""
    path = Path(folder) / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"why": str(found["why"]), "made_with": dict(found["made_with"]), "rows": found["rows"]}
    except FileNotFoundError:
        raise StageError(
            f"{path} is not there: {folder} was not made for a training that encodes {_WHAT[kind]} itself; "
            f"run `dvc repro cache_{kind}`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{path} cannot be read ({error!r}); run `dvc repro cache_{kind}`") from None


def is_in(folder: str | Path) -> bool:
    return (Path(folder) / FILE).exists()


def _about(fingerprint: dict, rows: Sequence[np.ndarray]) -> dict:
    digest = hashlib.blake2b(digest_size=16)
    for array in rows:
        digest.update(np.ascontiguousarray(array).tobytes())
    return {"made_with": fingerprint, "rows": digest.hexdigest()}
