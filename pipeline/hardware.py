"""What of params.yaml this computer cannot grant, found without MindSpore."""

from pipeline import npu
from pipeline.contradictions.device import of_ascend
from pipeline.params import Params
from pipeline.stage import StageError


def check(params: Params, *sections: str) -> None:
    """Raises StageError when the device that is found here cannot do what these sections of params.yaml demand."""
    if npu.target(params.device.target) != "Ascend":
        _check_cpu(params, sections, "needs an Ascend NPU and this machine has none")


def check_cluster(params: Params, target: str, *sections: str) -> None:
    """As `check`, for the `target` that a cluster's nodes have."""
    if target != "Ascend":
        _check_cpu(params, sections, "needs an Ascend NPU and no node of the cluster has one")


def _check_cpu(params: Params, sections: tuple[str, ...], found: str) -> None:
    for demand in of_ascend(params):
        if demand.key.split(".")[0] in sections:
            raise StageError(f"{demand.key}: {demand.found} {found}; wanted {demand.wanted}")
