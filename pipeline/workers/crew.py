"""Who does a stage's work: this process, several of this computer, or a cluster's."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.sources import Source
from pipeline.params import Device
from pipeline.workers.processes import Processes
from pipeline.workers.share import Crew, Work

if TYPE_CHECKING:
    from pipeline.workers.tasks import Tasks

Files = dict[str, Path]  # name of a file or folder where the stage began -> where it is here


@contextlib.contextmanager
def crew(
    device: Device, make: Callable[[Files, Source | None, bool], Work], files: Files, source: Source | None = None
) -> Iterator[Crew | None]:
    """The crew that device.workers and device.cluster ask for; none where this process is to do the work alone.

    make(files, source, away): makes a worker, in its own process. files, source: these, and the
    data set, as that worker can read them; away: whether it has a store of its own. Raises StageError when there is no
    such cluster."""
    if device.cluster is not None:
        from pipeline.workers import cluster  # Ray
        from pipeline.workers import parcel as parcels

        with cluster.connected(device.cluster), parcels.sent(files, source) as parcel:
            yield cluster.Actors(device, functools.partial(_unpacked, make, parcel))
    elif device.workers > 1:
        yield Processes(device.workers, functools.partial(make, files, source, False))
    else:
        yield None


@contextlib.contextmanager
def tasks(device: Device, function: Callable, source: Source) -> Iterator["Tasks | None"]:
    """Calls of function(source, ...) on the nodes of device.cluster; None without one. Raises StageError."""
    if device.cluster is None:
        yield None
        return
    from pipeline.workers import cluster, parcel  # Ray
    from pipeline.workers.tasks import Tasks

    with cluster.connected(device.cluster), parcel.sent({}, source) as sent:
        yield Tasks(function, sent)


def _unpacked(make: Callable, parcel) -> Work:
    files, source = parcel.unpack()
    return make(files, source, True)
