"""Which of the trained weights `merge.weights` means."""

import re
from pathlib import Path

from pipeline.stage import StageError

FILES = {"raw": "unet.ckpt", "ema": "unet_ema.ckpt", "best": "unet_best.ckpt"}
_MAKE = {
    "raw": "run `dvc repro train`",
    "ema": "set train.ema to true and train again",
    "best": "set train.keep_best to true and train again",
}


def find(folder: Path, wanted: str | int) -> Path:
    """The file in `folder`, the train stage's out, of `wanted`: "raw", "ema", "best" or a step. Raises StageError, which
    says which are there, when it is not."""
    path = folder / (FILES[wanted] if isinstance(wanted, str) else f"step-{wanted:08d}.ckpt")
    if path.exists():
        return path
    there = [name for name, file in FILES.items() if (folder / file).exists()]
    there += [str(step) for step in sorted(_step(file) for file in folder.glob("step-*.ckpt"))]
    make = _MAKE[wanted] if isinstance(wanted, str) else "see train.save_interval and train.save_limit"
    choose = f"set merge.weights to one that is there ({', '.join(there)}), or " if there else ""
    raise StageError(f"{path} does not exist and merge.weights: {wanted} asks for it; {choose}{make}")


def _step(file: Path) -> int:
    return int(re.sub(r"\D", "", file.stem))
