"""What the device can grant, and its keys beside each other."""

import ipaddress
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.params import Params


class Demand(NamedTuple):
    """A setting that only an Ascend NPU can grant."""

    key: str
    found: str
    what: str  # that runs on Ascend only
    wanted: str  # on a CPU


def of_ascend(params: "Params") -> list[Demand]:
    """The settings that only an Ascend NPU can grant."""
    device, sections = params.device, ("cache_latents", "cache_text", "train", "sample")
    found = []
    if device.attention.startswith("flash"):
        found.append(Demand("device.attention", device.attention, device.attention, "auto, plain or tiled"))
    if device.sink_size:
        found.append(Demand("device.sink_size", str(device.sink_size), "the data sink", "0"))
    if device.jit_level != "O0":
        found.append(Demand("device.jit_level", device.jit_level, device.jit_level, "O0"))
    if device.kernel_launch_group is not None:
        shown = str(device.kernel_launch_group)
        found.append(Demand("device.kernel_launch_group", shown, "a launch of kernels in groups", "null"))
    if device.memory_optimize_level != "O0":
        shown = device.memory_optimize_level
        found.append(Demand("device.memory_optimize_level", shown, shown, "O0"))
    if device.max_device_memory is not None:
        found.append(Demand("device.max_device_memory", device.max_device_memory, "this limit of memory", "null"))
    for section in sections:
        if getattr(params, section).precision == "bfloat16":
            wanted = "float32" if section.startswith("cache") else "float32 or float16"
            found.append(Demand(f"{section}.precision", "bfloat16", "bfloat16", wanted))
    return found


def faults(params: "Params") -> Iterator[tuple[str, str]]:
    if params.device.target == "CPU":
        for key, found, what, wanted in of_ascend(params):
            yield key, f"{what} runs on Ascend only and device.target is CPU; wanted {wanted}, found {found}"
    device, train = params.device, params.train
    if device.node_rank >= device.nodes:
        yield "device.node_rank", f"must be below nodes ({device.nodes}), found {device.node_rank}"
    elif device.node_rank and device.cluster:
        yield (
            "device.node_rank",
            f"wanted 0 with device.cluster, which numbers the nodes itself; found {device.node_rank}",
        )
    if device.min_nodes > device.nodes:
        yield "device.min_nodes", f"must be at most nodes ({device.nodes}), found {device.min_nodes}"
    host, _, port = device.master.rpartition(":")
    if not 0 < int(port) < 2**16:
        yield "device.master", f"wanted a port of 1 to 65535, found {device.master}"
    if device.cluster not in (None, "auto") and not 0 < int(device.cluster.rpartition(":")[2]) < 2**16:
        yield "device.cluster", f"wanted a port of 1 to 65535, found {device.cluster}"
    address = _ipv4(host)
    if address is None and re.fullmatch(r"[0-9.]+", host):
        yield "device.master", f"wanted four numbers of 0 to 255, or a name, before the port; found {device.master}"
    own = address is not None and (address.is_loopback or address.is_unspecified)
    if device.nodes > 1 and device.cluster is None and (own or host.lower().removesuffix(".").endswith("localhost")):
        yield (
            "device.master",
            f"nodes {device.nodes} need an address of node 0 that the others can reach, such as 10.0.0.1:8118; on each "
            f"of them {device.master} is itself, and it would wait for ever",
        )
    if device.max_device_memory is not None and float(device.max_device_memory.removesuffix("GB")) == 0:
        yield "device.max_device_memory", f"wanted more than none, or null; found {device.max_device_memory}"
    if device.attention.startswith("flash") and train.precision == "float32":
        yield (
            "device.attention",
            f"{device.attention} computes in float16 or bfloat16 and train.precision is float32; "
            "wanted auto, plain or tiled",
        )
    if device.kernel_launch_group is not None:
        threads, groups = device.kernel_launch_group
        if groups % threads:
            yield "device.kernel_launch_group", f"threads must divide groups, found {threads} and {groups}"
        if device.jit_level != "O0":
            yield "device.kernel_launch_group", f"needs device.jit_level O0, found {device.jit_level}"
    if device.sink_size and params.index.buckets:
        yield "device.sink_size", f"above 0 needs index.buckets false: a sink has one shape; found {device.sink_size}"
    if device.sink_size and params.index.further_resolutions:
        yield (
            "device.sink_size",
            f"above 0 needs no index.further_resolutions: a sink has one shape; found {device.sink_size}",
        )
    if device.sink_size and train.gradient_accumulation_steps > 1:
        found = train.gradient_accumulation_steps
        yield "device.sink_size", f"above 0 needs train.gradient_accumulation_steps 1, found {found}"


def _ipv4(host: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:  # a name
        return None
