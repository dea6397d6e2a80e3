"""What every stage does around its work: fail clearly, die with DVC, and notice code that is edited under its feet."""

import ctypes
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.params import Params, ParamsError, load

PROJECT = Path(__file__).resolve().parent.parent
_PR_SET_PDEATHSIG = 1


class StageError(Exception):
    """Something the user can mend: what was found, where, what was wanted, what to do."""


def shown(text: str) -> str:
    """Text out of a file as a message may hold it: at most 200 characters, and none that a terminal would obey."""
    cut = text if len(text) <= 200 else text[:200] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)


def run(main: Callable[[Params], None]) -> None:
    """Run one stage's `main(params)`. A StageError, ParamsError or OSError ends in a message and exit code 1."""
    _die_with_parent()
    code = _code()
    try:
        main(load())
    except (StageError, ParamsError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    loaded = {getattr(module, "__file__", None) for module in sys.modules.values()}
    edited = [path for path, digest in _code().items() if code.get(path) != digest and str(path) in loaded]
    if edited:
        # DVC hashes code after the stage ran (DVC issue 11058) and would record the new code with the old code's out.
        names = ", ".join(path.relative_to(PROJECT).as_posix() for path in edited)
        sys.exit(f"{Path(sys.argv[0]).name}: {names} changed while this stage ran; run `dvc repro` again")


def _die_with_parent() -> None:
    """A killed `dvc` leaves its stage running, and the next `dvc repro` would start beside it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have been killed before this process could ask for that. Only in a container dvc may itself be PID 1.
        if "DVC_STAGE" in os.environ and os.getppid() == 1 and b"dvc" not in Path("/proc/1/cmdline").read_bytes():
            sys.exit("the dvc that started this stage is gone")


def _code() -> dict[Path, bytes]:
    """Digest of each of the project's code files."""
    files = [path for folder in ("stages", "pipeline") for path in (PROJECT / folder).rglob("*.py")]
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in files}
