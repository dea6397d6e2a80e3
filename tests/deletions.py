"""Delete the store just before the n-th thing that a run does with it, as seen by Python's audit events."""

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_EVENTS = ("open", "os.", "shutil.")
_own = threading.local()
_watch: Callable[[str], None] | None = None


def _hook(event: str, args: tuple) -> None:
    if _watch is None or not event.startswith(_EVENTS) or getattr(_own, "busy", False):
        return
    root = os.environ["PIPELINE_STORE"]
    if any(isinstance(arg, (str, Path)) and str(arg).startswith(root) for arg in args):
        _own.busy = True
        try:
            _watch(event)
        finally:
            _own.busy = False


sys.addaudithook(_hook)


def run(function: Callable[[], object], at: int | None = None) -> int:
    """Call the function, and delete $PIPELINE_STORE before event number `at`; -> how many events there were."""
    global _watch
    count, mutex = 0, threading.Lock()

    def watch(event: str) -> None:
        nonlocal count
        with mutex:
            if count == at:
                shutil.rmtree(os.environ["PIPELINE_STORE"], ignore_errors=True)
            count += 1

    _watch = watch
    try:
        function()
    finally:
        _watch = None
    return count
