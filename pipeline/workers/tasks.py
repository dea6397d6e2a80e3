"""Small pieces of work over a cluster's nodes, which may be done by any of them, in any order, and twice."""

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import ray

from pipeline.stage import StageError
from pipeline.workers import parcel

_RETRIES = 3  # of a piece whose process crashed; that of a node that died does not count


class Tasks:
    """Calls function(source, *arguments) on the nodes' CPUs, with the data set as each node can read it."""

    def __init__(self, function: Callable, sent: parcel.Parcel):
        self._function = ray.remote(num_cpus=1, max_retries=_RETRIES)(_call).remote
        self._sent = ray.put((function, sent))

    @property
    def workers(self) -> int:
        """How many are done at once. Raises StageError when none can be."""
        count = int(ray.cluster_resources().get("CPU", 0))
        if not count:
            raise StageError("no node of device.cluster has a CPU to give: start Ray with --num-cpus above 0 on some")
        return count

    def submit(self, *arguments: Any) -> "Answer":
        return Answer(self._function(self._sent, *arguments))


class Answer:
    """As a concurrent.futures.Future that is waited for."""

    def __init__(self, reference: ray.ObjectRef):
        self._reference = reference

    def result(self) -> Any:
        """Raises what the function raised; BrokenProcessPool where its process ended."""
        try:
            return ray.get(self._reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise BrokenProcessPool(str(error)) from None


def _call(sent: tuple[Callable, parcel.Parcel], *arguments: Any) -> Any:
    function, of_stage = sent
    _, source = of_stage.unpack()
    return function(source, *arguments)
