"""The outs of the last few finished trainings, in the store by link: `trained/<exact name>/` with weights/ and live/.

Two tasks of a queue that differ in sampling alone train the same, and so do two clones with one store: the second waits
for the first and takes these, in seconds and without MindSpore."""

import json
import logging
import os
from pathlib import Path

from pipeline import store
from pipeline.training import stored
from pipeline.training.key import Training

log = logging.getLogger(__name__)

KEPT = 3  # trainings; the weights of SDXL's UNet are 10.3 GB, which are DVC's own bytes where the disk can link


def keep(training: Training, out: Path) -> None:
    """Remember the outs of a training that is done, in the place of the one that was used least lately."""

    def write(folder: Path) -> None:
        (folder / "weights").mkdir(parents=True)
        stamps = {}
        for file in sorted((out / "weights").iterdir()):
            store.link(file, folder / "weights" / file.name)
            os.chmod(folder / "weights" / file.name, 0o444)  # an edit would be one of the out and of DVC's cache too
            stamps[file.name] = _stamp(folder / "weights" / file.name)
        store.copy_folder(out / "live", folder / "live")
        (folder / "stamps.json").write_text(json.dumps(stamps))
        (folder / "run.json").write_text(json.dumps(training.description, indent=1, sort_keys=True))

    store.keep(_folder(training), write)
    store.keep_newest(_folder(training).parent, KEPT)


def there(training: Training) -> bool:
    """Whether the store has the outs of this very training, as they were kept."""
    folder = _folder(training)
    try:
        stamps = json.loads((folder / "stamps.json").read_text())
        edited = [name for name, stamp in stamps.items() if _stamp(folder / "weights" / name) != stamp]
    except (FileNotFoundError, ValueError):
        return False
    if edited:
        log.warning("not used: %s was edited in %s", ", ".join(edited), folder)
    return not edited


def take(training: Training, out: Path, keep_state: bool = False) -> bool:
    """Make `out` of them; whether they were there. keep_state: leave the state that longer runs go on from."""
    if not there(training):
        return False
    folder = _folder(training)
    try:
        os.utime(folder)
        with store.out(out / "live") as live:
            store.copy_folder(folder / "live", live)
        with store.out(out / "weights") as weights:
            weights.mkdir()
            for file in sorted((folder / "weights").iterdir()):
                store.link(file, weights / file.name)
    except FileNotFoundError:  # the store was deleted
        store.remove(out / "live")
        return False
    stored.clear(stored.folder(training.name), training.reach, keep_state)  # what a kill after the last step has left
    log.info("the same training is done: its outs are taken from %s", folder)
    if keep_state and not stored.extensible(stored.folder(training.name), training.reach):
        log.warning("its state was not kept: a longer run begins anew")
    return True


def _folder(training: Training) -> Path:
    return store.root() / "trained" / training.exact_name


def _stamp(path: Path) -> list[int]:
    """What changes when a file is edited under any of its names."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
