"""The curves and previews for TensorBoard, made from the lines of log.jsonl, which stay the source.

Event files hold the times at which they were written, so they are no out: they lie beside the outs and are made anew
when a run begins or goes on, with all points up to there. So none is there twice."""

import json
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.stage import StageError
from pipeline.training.data import PICTURES

FOLDER = "tensorboard"  # in outs/train


def writer(live: Path) -> Any:
    """A tensorboardX.SummaryWriter beside the folder `live` of the curves, with what that holds by now. Raises
    StageError without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter  # for those who want it
    except ModuleNotFoundError as error:
        raise StageError(f"train.tensorboard is true and {error}; `make repro` installs what is missing") from None
    remove(live)
    made = SummaryWriter(str(live.with_name(FOLDER)), flush_secs=10)
    log = live / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        add(made, json.loads(line))
    for picture in store.found(live / PICTURES, "step-*.png"):
        add_picture(made, picture)
    return made


def remove(live: Path) -> None:
    """What an earlier run has left."""
    store.remove(live.with_name(FOLDER))


def add(writer: Any, row: dict) -> None:
    """The points of a line of log.jsonl."""
    for name, value in row.items():
        if name != "step":
            writer.add_scalar(name, value, row["step"])


def add_picture(writer: Any, path: Path) -> None:
    """A picture called step-00000100.png."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        writer.add_image(
            "previews", np.array(image.convert("RGB")), int(path.stem.removeprefix("step-")), dataformats="HWC"
        )
