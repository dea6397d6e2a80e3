"""What this computer has, found without MindSpore, and what of params.yaml it cannot grant."""

from pathlib import Path

from pipeline.contradictions import of_ascend
from pipeline.params import Params
from pipeline.stage import StageError


def target(wanted: str) -> str:
    """The device that `device.target` comes to here: "CPU" or "Ascend"."""
    if wanted == "auto":
        return "Ascend" if has_npu() else "CPU"
    return wanted


def has_npu() -> bool:
    return any(Path("/dev").glob("davinci[0-9]*"))


def check(params: Params, *sections: str) -> None:
    """Raises StageError when the device that is found here cannot do what these sections of params.yaml demand. (With
    device.target CPU they are refused as params.yaml is read, and by every stage.)"""
    if has_npu():
        return
    if params.device.target == "Ascend":
        raise StageError("device.target: Ascend is wanted and this machine has no NPU (/dev/davinci*)")
    for demand in of_ascend(params):
        if demand.key.split(".")[0] in sections:
            raise StageError(
                f"{demand.key}: {demand.found} needs an Ascend NPU and this machine has none; wanted {demand.wanted}"
            )
