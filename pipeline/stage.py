"""What every stage does around its work: fail clearly, die with DVC, notice what is edited under its feet, and note
how long it took."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline import recorded, times
from pipeline.params import Params, ParamsError, load
from pipeline.recorded import PROJECT as PROJECT

_PR_SET_PDEATHSIG = 1


class StageError(Exception):
    """Something the user can mend: what was found, where, what was wanted, what to do."""


def shown(text: str) -> str:
    """Text out of a file as a message may hold it: at most 200 characters, and none that a terminal would obey."""
    cut = text if len(text) <= 200 else text[:200] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)


def run(main: Callable[[Params], None]) -> None:
    """Run one stage's `main(params)`. A StageError, ParamsError or OSError ends in a message and exit code 1.

    So does an edit of what DVC records of the stage (pipeline/recorded.py) while it ran; its outs are removed then."""
    _die_with_parent()
    name, started = Path(sys.argv[0]).stem, times.start()
    try:
        params = load()
        before = recorded.take(name, params)
        recorded.settle(before)
        main(params)
    except (StageError, ParamsError, OSError) as error:
        sys.exit(f"{name}.py: {error}")
    try:
        edited = recorded.differences(before, recorded.take(name, load()))
    except (ParamsError, OSError) as error:
        edited = [str(error)]
    if edited:
        recorded.remove_outs(name)
        lines = "".join(f"\n  {line}" for line in edited)
        sys.exit(
            f"{name}.py: what follows changed while this stage ran, so its outs were removed: DVC would take them for "
            f"made from what is there now. Run `dvc repro` again{lines}"
        )
    times.note(name, before.params, recorded.deps(name), started)


def _die_with_parent() -> None:
    """A killed `dvc` leaves its stage running, and the next `dvc repro` would start beside it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have been killed before this process could ask for that. Only in a container dvc may itself be PID 1.
        if "DVC_STAGE" in os.environ and os.getppid() == 1 and b"dvc" not in Path("/proc/1/cmdline").read_bytes():
            sys.exit("the dvc that started this stage is gone")
