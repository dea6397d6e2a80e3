"""Names that mean the same file, where they were written on different systems."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable


def match(wanted: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """For each of `wanted` that is found, the one of `there` that it means.

    That is the same name; else the same letters in another Unicode form (a Mac writes é as two characters); else the
    same but for capitals and the direction of slashes. The looser ways are for names that the closer ones left over on
    both sides, and only where one of them meets one: what could mean two files means none."""
    wanted, there = set(wanted), set(there)
    found = {name: name for name in wanted & there}
    wanted, there = wanted - found.keys(), there - found.keys()
    for form in (_composed, _folded):
        names, candidates = _by_form(wanted, form), _by_form(there, form) if wanted else {}
        for key, same in names.items():
            if len(same) == 1 == len(candidates.get(key, ())):
                found[same[0]] = candidates[key][0]
                wanted.remove(same[0])
                there.remove(candidates[key][0])
    return found


def _by_form(names: set[str], form: Callable[[str], str]) -> dict[str, list[str]]:
    groups = defaultdict(list)
    for name in names:
        groups[form(name)].append(name)
    return groups


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    # Folding can take a composed letter apart (Unicode 3.13, D145).
    return _composed(unicodedata.normalize("NFD", name).replace("\\", "/").casefold())
