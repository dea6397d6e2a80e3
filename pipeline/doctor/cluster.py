"""The cluster of device.cluster: who is in it, and whether its nodes have what the stages need."""

from collections.abc import Callable

from pipeline.data.part import is_far
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, Finding
from pipeline.doctor.machine import pins
from pipeline.params import Params
from pipeline.recorded import PROJECT
from pipeline.training.layout import layout

_WAIT = 60  # seconds, for a process on a node


def cluster(params: Params) -> list[Finding]:
    """Raises StageError when no cluster answers, or none of its nodes has the device that is asked for."""
    from pipeline.workers import cluster  # Ray

    ray = cluster.ray

    with cluster.connected(params.device.cluster):
        found = cluster.nodes(cluster.target(params.device), params.device.workers)
        workers = [node.name for node in found for _ in range(node.places)]
        nodes = {node["NodeName"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
        names = [name for name, _ in pins(PROJECT / "requirements.txt")]
        asked = {
            name: ray.remote(_versions())
            .options(num_cpus=0, scheduling_strategy=cluster.NodeAffinitySchedulingStrategy(node, soft=False))
            .remote(names)
            for name, node in nodes.items()
        }
        here, findings = _here(names), []
        for name, answer in asked.items():
            try:
                there = ray.get(answer, timeout=_WAIT)
            except ray.exceptions.GetTimeoutError:
                said = f"{name} started no process within {_WAIT} s"
                findings.append(Finding("cluster", DOUBTFUL, said, "a node that is free", "`ray status`, `ray logs`"))
                continue
            odd = [
                f"{pin} {there[pin] or 'missing'} ({here[pin] or 'missing'})"
                for pin in names
                if there[pin] != here[pin]
            ]
            if odd:
                shown = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
                wanted = "the packages that this node has (in brackets)"
                do = "`pip install -r requirements.txt` in the Python of its Ray"
                findings.append(Finding("cluster", BAD, f"{name}: {shown}", wanted, do))
    for node in (node for node in found if node.target == "CPU" and node.places > node.cpus):
        said = f"{node.name} has {node.cpus} CPUs for {node.places} workers (device.workers)"
        findings.append(Finding("cluster", DOUBTFUL, said, "a CPU for each", "set device.workers to 1"))
    if params.train.source == "pictures" and not is_far(params.data.images):
        said = f"train.source is pictures, and data.images {params.data.images}"
        wanted = "a URL, or a folder of a disk that each node has under the same path (docs/cluster.md)"
        findings.append(
            Finding("cluster", DOUBTFUL, said, wanted, "see that it is; a node that lacks it ends training")
        )
    findings += training(params, [workers.count(name) for name in dict.fromkeys(workers)])
    idle = ", ".join(name for name in nodes if name not in workers)
    said = f"{len(nodes)} nodes, {len(workers)} workers for the cache stages" + (f"; none on {idle}" if idle else "")
    return findings or [Finding("cluster", GOOD, said)]


def training(params: Params, places: list[int]) -> list[Finding]:
    """Where nodes with so many workers' places each are fewer than training is to have."""
    device = params.device
    if len(places) < device.min_nodes:
        said = f"{len(places)} nodes can train"
        wanted = f"{device.min_nodes} (device.min_nodes), for which training waits"
        return [Finding("cluster", BAD, said, wanted, "start Ray on more, or lower it")]
    found, wanted = layout(device, params.train, places), device.nodes * device.workers
    if found.ranks < wanted:
        said = f"training has {found.ranks} ranks, with batches of {found.batch_size} x {found.accumulation}"
        all_of_them = f"{wanted} ranks (device.nodes x device.workers)"
        return [Finding("cluster", DOUBTFUL, said, all_of_them, "start Ray on more nodes, or it takes longer")]
    return []


def _here(names: list[str]) -> dict[str, str | None]:
    return _versions()(names)


def _versions() -> Callable[[list[str]], dict[str, str | None]]:
    """A function that says which versions of packages are installed. Ray sends it as it stands, so it needs none."""

    def versions(names: list[str]) -> dict[str, str | None]:
        from importlib import metadata

        found = {}
        for name in names:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = None
        return found

    return versions
