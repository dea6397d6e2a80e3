"""That all ranks train the same: a node with other params, code or caches would train on in silence, or let the others
wait for ever."""

import json
import socket

from pipeline.device import Device

from pipeline.stage import StageError
from pipeline.training.key import differences

_SHOWN = 8  # differences of one node


def check(device: Device, found: dict, advice: str) -> None:
    """Compare `found`, plain values under the same keys on all ranks, with rank 0's. Every rank must call it.

    Raises StageError on all ranks when one differs: it names the ranks, their computers, what differs, and `advice`."""
    texts = device.gather(json.dumps([socket.gethostname(), found], sort_keys=True))
    first, *others = [json.loads(text) for text in texts]
    kinds: dict[str, list[int]] = {}
    for rank, (host, other) in enumerate(others, 1):
        if other != first[1]:
            lines = differences(first[1], other)
            more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            kinds.setdefault(f"on {host}: {', '.join(lines[:_SHOWN] + more)}", []).append(rank)
    if kinds:
        lines = [f"  rank {', '.join(map(str, ranks))} {text}" for text, ranks in kinds.items()]
        text = "\n".join(lines)
        raise StageError(
            f"the processes of this run differ from rank 0 on {first[0]} (its value -> theirs):\n{text}\n{advice}"
        )
