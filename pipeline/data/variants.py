"""Variants of a caption: tags in other orders, some of them left out, wildcards chosen. Each is a caption like any
other, and a function of (seed, caption, number of the variant)."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_WILDCARD = re.compile(r"\{([^{}]*)\}")  # the innermost
_BRACES = re.compile(r"\{\{|\}\}|[{}]")
_OPEN, _CLOSE = "\0(", "\0)"  # for {{ and }}: no caption has a null
_MOST_WILDCARDS = 1000


@dataclass(frozen=True)
class Rules:
    """What is drawn anew in each variant. Tags are the caption's parts between separators."""

    count: int = 1  # variants of a caption
    seed: int = 0
    shuffle: bool = False  # the tags
    keep: int = 0  # so many of the first stay where they are
    drop: float = 0.0  # chance of each of the others to be left out
    separator: str = ","
    joined: str = ", "  # what stands between tags then
    wildcards: bool = False  # {a|b} is a or b; {{ and }} are braces
    framed: bool = False  # prefix and suffix are parts of the tags beside them, as for kohya
    fence: str = ""  # in the place of `keep`: tags before the first of these and behind the second stay
    binder: str = ""  # what stands for the separator within a tag


def expand(text: str, text_2: str | None, rules: Rules) -> list[tuple[str, str | None, float]]:
    """The distinct variants of a caption and the chance of each."""
    found = Counter(
        (_variant(text, rules, number), text_2 and _variant(text_2, rules, number)) for number in range(rules.count)
    )
    return [(*pair, times / rules.count) for pair, times in found.items()]


def _variant(text: str, rules: Rules, number: int) -> str:
    numbers = _stream(text, rules.seed, number)
    if rules.wildcards:
        text = _chosen(text, numbers)
    if rules.shuffle or rules.drop:
        before, others, behind = _parts(text, rules)
        if rules.shuffle:
            others = [others[place] for place in np.argsort(numbers(len(others)), kind="stable")]
        if rules.drop:
            others = [tag for tag, draw in zip(others, numbers(len(others)) / 2.0**64) if draw >= rules.drop]
        text = rules.joined.join(before + others + behind)
    return text.replace(rules.binder, rules.separator) if rules.binder else text


def _parts(text: str, rules: Rules) -> tuple[list[str], list[str], list[str]]:
    """The tags that stay before the others, the others, and those that stay behind them."""
    parts = text.split(rules.fence, 2) if rules.fence else [text]
    first, *further = ([tag for tag in map(str.strip, part.split(rules.separator)) if tag] for part in parts)
    if not further:
        return first[: rules.keep], first[rules.keep :], []
    return first, further[0], further[1] if further[1:] else []


def _chosen(text: str, numbers: Callable[[int], np.ndarray]) -> str:
    """With one of each wildcard's texts, those within others first."""
    text = _without_braces(text.replace("\0", ""))
    for _ in range(_MOST_WILDCARDS):
        match = _WILDCARD.search(text)
        if match is None:
            break
        options = match[1].split("|")
        text = text[: match.start()] + options[int(numbers(1)[0]) % len(options)] + text[match.end() :]
    return " ".join(text.replace(_OPEN, "{").replace(_CLOSE, "}").split())


def _without_braces(text: str) -> str:
    """With others for {{ and }}; where two wildcards are open, }} closes both."""
    opened: list[str] = []

    def instead(match: re.Match) -> str:
        found = match[0]
        if found[0] == "{":
            opened.append(found)
            return _OPEN if found == "{{" else found
        both = opened[-2:] == ["{", "{"] and found == "}}"
        del opened[-2 if both else -1 :]
        return _CLOSE if found == "}}" and not both else found

    return _BRACES.sub(instead, text)


def _stream(text: str, seed: int, number: int) -> Callable[[int], np.ndarray]:
    """A function that gives the next so many random uint64 of this variant. They are Philox's raw numbers, which stay
    the same across versions of NumPy."""
    digest = hashlib.blake2b(f"{seed} {number} {text}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw
