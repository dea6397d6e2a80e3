"""What every stage does around its work: fail clearly, die with DVC, notice what is edited under its feet, and note
how long it took."""

import ctypes
import faulthandler
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline import progress, recorded, times
from pipeline.doubts import doubts
from pipeline.params import Params, ParamsError, load
from pipeline.recorded import PROJECT as PROJECT

UNDER_STAGE = "UNDER_STAGE"  # set for ranks that a stage has started, which has the training's lock and says its doubts
_PR_SET_PDEATHSIG = 1
# What MindSpore 2.10's RuntimeErrors say, on the host and on an NPU, of std::bad_alloc and of memory pools that are full.
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|out of memory|cannot allocate memory|memory (is not|isn't|not) enough|\bm?alloc\w* [\w ]*mem(ory)? failed"
    r"|memory m?alloc\w* fail",
    re.IGNORECASE,
)
_LOWER = {  # stage -> what makes it take less memory
    "index": "index.workers, each of which decodes a picture at a time, or index.max_pixels",
    "cache_latents": "cache_latents.batch_size, cache_latents.workers or (on a CPU) device.workers",
    "cache_text": "cache_text.batch_size or (on a CPU) device.workers",
    "train": "train.batch_size (with train.gradient_accumulation_steps higher by as much), or set "
    "train.gradient_checkpointing to true; `python -m pipeline.plan` says what fits",
    "sample": "sample.batch_size, or sample.width and sample.height",
}


class StageError(Exception):
    """Something the user can mend: what was found, where, what was wanted, what to do."""


def printable(line: str) -> str:
    """A line with text out of files, such as their names, without what a terminal would obey."""
    return line if line.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)


def shown(text: str) -> str:
    """Text out of a file as a message may hold it: at most 200 characters, and none that a terminal would obey."""
    return printable(text if len(text) <= 200 else text[:200] + "…")


def explained(error: Exception, stage: str = "") -> str | None:
    """What to tell the user of an error, with what to do about memory that ran out and outs that are not there yet;
    None for an error that is the code's."""
    text = "\n".join(map(printable, str(error).split("\n")))
    if isinstance(error, MemoryError) or not isinstance(error, StageError) and _OUT_OF_MEMORY.search(text):
        advice = f"lower {_LOWER[stage]}, or free memory" if stage in _LOWER else "free some (this takes little)"
        found = shown(next(filter(None, map(str.strip, text.splitlines())), type(error).__name__))
        return f"this computer's or the NPU's memory is full: {advice} ({found})"
    if isinstance(error, RuntimeError):
        return None
    absent = re.search(r"\bouts/[\w./-]+", text) if isinstance(error, FileNotFoundError) else None
    if absent and (maker := recorded.maker(absent[0])) and not os.path.lexists(absent[0]):
        return f"{absent[0]} is not there; run `dvc repro {maker}`, which makes it"
    return text


def run(main: Callable[[Params], None]) -> None:
    """Run one stage's `main(params)`. A StageError, ParamsError or OSError ends in a message and exit code 1, and so
    does memory that ran out.

    So does an edit of what DVC records of the stage (pipeline/recorded.py) while it ran; its outs are removed then."""
    _die_with_parent()
    faulthandler.enable()  # a crash in a library of C shows where
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    name, started = Path(sys.argv[0]).stem, times.start()
    try:
        params = load()
        before = recorded.take(name, params)
        for key, doubt in doubts(params) if UNDER_STAGE not in os.environ else ():
            if key in before.params:  # each is said by the stages that it concerns
                print(f"{name}.py: {key}: {doubt}", file=sys.stderr, flush=True)
        recorded.settle(before)
        with logging_redirect_tqdm():  # so that a bar on a terminal is drawn anew below what is said
            main(params)
    except (StageError, ParamsError, OSError, MemoryError, RuntimeError) as error:
        progress.close()
        if (reason := explained(error, name)) is None:
            raise
        sys.exit(f"{name}.py: {reason}")
    except KeyboardInterrupt:
        progress.close()
        print(f"{name}.py: interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
    try:
        edited = recorded.differences(before, recorded.take(name, load()))
    except (StageError, ParamsError, OSError) as error:
        edited = [str(error)]
    if edited:
        recorded.remove_outs(name)
        lines = "".join(f"\n  {line}" for line in edited)
        sys.exit(
            f"{name}.py: what follows changed while this stage ran, so its outs were removed: DVC would take them for "
            f"made from what is there now. Run `dvc repro` again{lines}"
        )
    times.note(name, recorded.written(name), recorded.deps(name, params), started)


def _die_with_parent() -> None:
    """A killed `dvc` leaves its stage running, and the next `dvc repro` would start beside it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have been killed before this process could ask for that. Only in a container dvc may itself be PID 1.
        if "DVC_STAGE" in os.environ and os.getppid() == 1 and b"dvc" not in Path("/proc/1/cmdline").read_bytes():
            sys.exit("the dvc that started this stage is gone")
