"""What of params.yaml this computer cannot grant, found without MindSpore."""

from pipeline import npu
from pipeline.contradictions.device import of_ascend
from pipeline.params import Params
from pipeline.stage import StageError


def check(params: Params, *sections: str) -> None:
    """Raises StageError when the device that is found here cannot do what these sections of params.yaml demand."""
    if npu.target(params.device.target) == "Ascend":
        return
    for demand in of_ascend(params):
        if demand.key.split(".")[0] in sections:
            raise StageError(
                f"{demand.key}: {demand.found} needs an Ascend NPU and this machine has none; wanted {demand.wanted}"
            )
