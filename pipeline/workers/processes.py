"""Workers that are processes of this computer."""

import contextlib
import ctypes
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Callable

from pipeline.workers.share import Began, Failed, Gone, Message, Place, Ready, Work, told

_PR_SET_PDEATHSIG = 1
_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy the locks of MindSpore's and Arrow's threads


class Processes:
    """A crew of `count` processes, which each call `make` once. Each has an NPU of its own, where there are some."""

    def __init__(self, count: int, make: Callable[[], Work]):
        self._count, self._make = count, make

    def places(self) -> list[Place]:
        return [Place("", number) for number in range(self._count)]

    def start(self, place: Place) -> "Process":
        return Process(place, self._make)

    def wait(self, workers: list["Process"], seconds: float) -> list["Process"]:
        ready = set(multiprocessing.connection.wait([worker.connection for worker in workers], seconds))
        return [worker for worker in workers if worker.connection in ready]


class Process:
    def __init__(self, place: Place, make: Callable[[], Work]):
        self.place = place
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, make, place.number, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, unit) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the next `hear` says
            self.connection.send(unit)

    def hear(self) -> Message:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise Gone(f"process {self._process.pid}, exit code {self._process.exitcode}") from None

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection, make: Callable[[], Work], number: int, parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before this process could ask for that
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ["DEVICE_ID"] = str(number)  # an exported one would send all to one
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        for message in told(_messages(connection, make)):
            connection.send(message)
            if isinstance(message, Failed):
                return


def _messages(connection, make: Callable[[], Work]):
    yield Began()
    work = make()
    yield Ready()
    while True:
        yield from work(connection.recv())
