"""How the global batch of a training is split over the nodes of a cluster."""

from dataclasses import dataclass

from pipeline.params import Device, Params, Train, replaced


@dataclass(frozen=True)
class Layout:
    """How the global batch is split."""

    nodes: int
    workers: int  # ranks on each
    batch_size: int
    accumulation: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.workers


def layout(device: Device, train: Train, places: list[int]) -> Layout:
    """The most ranks that nodes with so many places each can have, as many on each, and equal parts of the global batch;
    none has more at once than train.batch_size."""
    total = train.batch_size * train.gradient_accumulation_steps * device.nodes * device.workers
    free, found = sorted(places, reverse=True), []
    for nodes in range(1, min(device.nodes, len(free)) + 1):
        for workers in range(1, min(device.workers, free[nodes - 1]) + 1):
            part, rest = divmod(total, nodes * workers)
            if not rest:
                size = max(size for size in range(1, train.batch_size + 1) if part % size == 0)
                found.append(Layout(nodes, workers, size, part // size))
    return max(found, key=lambda one: (one.ranks, -one.nodes))


def split(params: Params, how: Layout) -> Params:
    """`params` of a run that is split so, for its ranks."""
    values = {"train.batch_size": how.batch_size, "train.gradient_accumulation_steps": how.accumulation}
    values |= {"device.cluster": None, "device.workers": how.workers}
    values |= {"device.nodes": 1, "device.min_nodes": 1, "device.node_rank": 0}
    if how.accumulation > 1:  # a sink has none
        values["device.sink_size"] = 0
    return replaced(params, values)
