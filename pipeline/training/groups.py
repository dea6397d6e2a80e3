"""Groups of the UNet's parameters with a learning rate of their own, or none. Needs no MindSpore.

A group is a pattern of names and what the learning rate is multiplied by, 0 for frozen ones. Names are those of
Stability's single file below `model.diffusion_model.`, such as input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight.
In a pattern `*` stands for any letters, `?` for one and `[12]` for one of these; `!` in front of it means all the
other names. The first group that matches a name counts; what none matches has the factor 1."""

import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.params import Group

Groups = tuple[tuple[str, float], ...]  # pattern, factor

_SHOWN = 5  # near names that an error lists


def groups(wanted: list["Group"]) -> Groups:
    """Those of params.yaml's train.groups."""
    return tuple((group.pattern, 0.0 if group.freeze else float(group.learning_rate)) for group in wanted)


def factor(groups: Groups, name: str) -> float:
    """What the learning rate of the parameter is multiplied by; 0 when it is frozen."""
    return next((factor for pattern, factor in groups if matches(pattern, name)), 1.0)


def matches(pattern: str, name: str) -> bool:
    if pattern.startswith("!"):
        return not fnmatchcase(name, pattern[1:])
    return fnmatchcase(name, pattern)


def faults(groups: Groups, names: list[str], everyone: list[str]) -> Iterator[tuple[int, str]]:
    """(number, what is wrong) of each group that changes nothing of the parameters of these names, which are trained or
    have an adapter, of the UNet's `everyone`; -1 for all groups together, when they freeze all."""
    left = names
    for number, (pattern, _) in enumerate(groups):
        parts = (pattern.removeprefix("!"), pattern)
        unknown = next((part for part in parts if not any(matches(part, name) for name in names)), None)
        if unknown is not None and any(matches(unknown, name) for name in everyone):
            yield number, f"no weight of such a name has an adapter (train.adapter_targets): {unknown!r}"
        elif unknown is not None:
            yield number, f"no parameter of the UNet has such a name: {unknown!r}; {near_to(unknown, names)}"
        elif not any(matches(pattern, name) for name in left):
            yield number, f"{pattern!r} changes nothing: the groups before it have all that it matches"
        left = [name for name in left if not matches(pattern, name)]
    if not any(factor(groups, name) for name in names):
        beside = "text encoders are trained beside it, not alone"
        yield -1, f"every parameter of the UNet is frozen, and nothing of it is left to train ({beside})"


def near_to(pattern: str, names: list[str]) -> str:
    """What an error says of names like the pattern, those of many blocks once."""
    plain = pattern.lstrip("!")
    parts = {part for name in names for part in _parts(name)}
    found = difflib.get_close_matches(plain.strip("*.").lower(), sorted(parts), _SHOWN, 0.5)
    if found:
        return "near it are " + ", ".join(f"*{part}*" for part in found)
    return f"they are called {', '.join(names[: _SHOWN - 2])} and so on"


def _parts(name: str) -> Iterator[str]:
    """All runs of a name's parts: of a.b.c it is a, a.b, a.b.c, b, b.c and c."""
    parts = name.split(".")
    for begin in range(len(parts)):
        for end in range(begin + 1, min(begin + 4, len(parts)) + 1):
            yield ".".join(parts[begin:end])
