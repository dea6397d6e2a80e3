"""Units of work over several workers: each has one at a time, one whose worker ends is given to another, and a worker
that says nothing for long is ended. What the workers are, processes here or actors of a cluster, is the crew's."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.params import ParamsError
from pipeline.stage import StageError, explained

log = logging.getLogger(__name__)

STUCK_SECONDS = (
    1800.0  # how long a worker may say nothing; a batch takes a second, the first one with compilation minutes
)
_LOOK_SECONDS = 2.0  # between two looks for places where workers may start
_WAIT_SECONDS = 0.5
_TELL_SECONDS = 60.0
_ENDS = 4  # workers that may end one after another at a place without having done anything
_TRIES = 10  # workers that one unit may take with it


class Began(NamedTuple):
    """A worker's first message: it has its device, and gets ready."""


class Ready(NamedTuple):
    """Its second: it can be given units."""


class Failed(NamedTuple):
    """No worker could do it: something that the user must mend."""

    reason: str


class Done(NamedTuple):
    """The last message about a unit."""

    result: Any


class Away(NamedTuple):
    """A file among a unit's results that lies elsewhere. `read` brings its bytes, and raises Gone."""

    name: str
    read: Callable[[], np.ndarray]


# a unit -> numbers of what was done meanwhile (they say as well that the worker is not stuck), then Done
Work = Callable[[Any], Iterator[int | Done]]
Message = Began | Ready | Failed | Done | int


class Gone(Exception):
    """The worker has ended."""


class Place(NamedTuple):
    """Where one worker can be."""

    node: str
    number: int
    key: Hashable = None  # tells apart nodes of one name


class Worker(Protocol):
    place: Place

    def give(self, unit: Any) -> None:
        """Let it do the unit."""

    def hear(self) -> Message:
        """Its next message, where `Crew.wait` says that there is one. Raises Gone."""

    def end(self) -> None:
        """End it, whatever it does."""


class Crew(Protocol):
    def places(self) -> list[Place]:
        """Where workers can be now."""

    def start(self, place: Place) -> Worker: ...

    def wait(self, workers: list[Worker], seconds: float) -> list[Worker]:
        """Those that have a message, once one has or the time is up."""


def told(messages: Iterable[Message]) -> Iterator[Message]:
    """A worker's messages, an error of which the user must hear being the last."""
    try:
        yield from messages
    except (StageError, ParamsError, OSError, MemoryError, RuntimeError) as error:
        if (reason := explained(error)) is None:
            raise
        yield Failed(reason)


@dataclass
class _At:
    """What a worker is at."""

    heard: float
    began: bool = False
    ready: bool = False
    unit: int | None = None
    done: int = 0  # of the unit


def share(crew: Crew, units: list, counted: Callable[[str, int], None]) -> Iterator[Any]:
    """The result of each unit, as they come; by the time that one is given, its worker has the next unit.

    counted(node, number): called with what was done, and with less than 0 where it was lost with its worker. Raises
    StageError when a worker says that something must be mended, and when none is left. When all nodes have gone it waits
    for one, as long as for a worker that says nothing."""
    waiting, tries, ends, ended = deque(range(len(units))), Counter(), Counter(), ""
    at: dict[Worker, _At] = {}
    looked = told_wait = time.monotonic() - _LOOK_SECONDS
    alone: float | None = None  # since when there has been no place, and there was one

    def lose(worker: Worker, reason: str) -> None:
        state = at.pop(worker)
        worker.end()
        ends[worker.place] += 1
        log.warning("%s: a worker has ended: %s", worker.place.node, reason)
        if state.unit is None:
            return
        counted(worker.place.node, -state.done)
        waiting.appendleft(state.unit)
        tries[state.unit] += 1
        if tries[state.unit] >= _TRIES:
            raise StageError(
                f"{_TRIES} workers ended at the same piece of work, the last on {worker.place.node}: {reason}"
            )

    try:
        while waiting or any(state.unit is not None for state in at.values()):
            now = time.monotonic()
            if now - looked >= _LOOK_SECONDS:
                looked = now
                taken, places = {worker.place for worker in at}, crew.places()
                for place in places:
                    if place not in taken and ends[place] < _ENDS and len(at) < len(waiting) + len(taken):
                        at[crew.start(place)] = _At(now)
                if at:
                    alone = None
                elif places or not ended or now - (alone := alone or now) > STUCK_SECONDS:
                    raise StageError(
                        f"no worker is left{ended and ', the last ended so: '}{ended}. What is done is kept: run again"
                    )
                elif alone == now:
                    log.warning("no node is left; waits for one, for %g minutes at most", STUCK_SECONDS / 60)
            if not at:
                time.sleep(_WAIT_SECONDS)
                continue
            results = []
            for worker in crew.wait(list(at), _WAIT_SECONDS):
                state = at[worker]
                try:
                    message = worker.hear()
                except Gone as error:
                    ended = str(error)
                    lose(worker, ended)
                    continue
                state.heard = time.monotonic()
                match message:
                    case Failed(reason):
                        raise StageError(f"{worker.place.node}: {reason}" if worker.place.node else reason)
                    case Began():
                        state.began = True
                    case Ready():
                        state.ready = True
                    case Done(result):
                        results.append(result)
                        ends[worker.place] = 0
                        state.unit, state.done = None, 0
                    case number:
                        ends[worker.place] = 0
                        state.done += number
                        counted(worker.place.node, number)
            for worker, state in list(at.items()):
                if state.ready and state.unit is None and waiting:
                    state.unit, state.heard = waiting.popleft(), time.monotonic()
                    worker.give(units[state.unit])
                elif (state.unit is not None or not state.ready) and state.began:
                    if (silent := time.monotonic() - state.heard) > STUCK_SECONDS:
                        lose(worker, f"it has said nothing for {silent / 60:.3g} minutes")
            if not any(state.began for state in at.values()) and time.monotonic() - told_wait > _TELL_SECONDS:
                told_wait = time.monotonic()
                log.warning("waits for devices of %s", ", ".join(sorted({worker.place.node for worker in at})))
            yield from results
    finally:
        for worker in at:
            worker.end()
