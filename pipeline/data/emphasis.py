"""Weights of words as A1111's web UI writes them: (word) 1.1 times, (word:1.3), [word] divided by 1.1, brackets in
brackets multiplied, and \\( \\) \\[ \\] \\\\ for the characters themselves.

Source: A1111's wiki, "Attention/emphasis". Other than there a bracket without its partner is a character like any
other, and so is a backslash before one that needs none. What is written in square brackets for other ends there, such
as [a:b:0.5], is text here, and so is BREAK."""

import re

from pipeline.stage import StageError

LARGEST = 1e6  # (word:999999) is below; of float32 hidden states overflow far above, as NaN
ROUND, SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|:\s*(?P<weight>[+-]?(?:\d{1,6}(?:\.\d*)?|\.\d+))\s*\)"
    r"|(?P<open>[(\[])|(?P<close>[)\]])"
    r"|[^\\()\[\]:]+|."
)  # fmt: skip
_SPECIAL = re.compile(r"[()\[\]\\]")


def is_weighted(text: str | None) -> bool:
    """Whether a text reads otherwise with weights than without."""
    return bool(text) and _SPECIAL.search(text) is not None and parse(text) != [(text, 1.0)]


def pieces(text: str) -> list[tuple[str, float]]:
    """As `parse`. Raises StageError where brackets in brackets weigh more than can be computed with."""
    found = parse(text)
    heaviest = max(abs(weight) for _, weight in found)
    if heaviest > LARGEST:
        raise StageError(
            f"cache_text.emphasis a1111: {text[:80]!r}: brackets in brackets weigh a word {heaviest:.3g} times, wanted at "
            f"most {LARGEST:,.0f}; take some away, or write them as \\( and \\)"
        )
    return found


def parse(text: str) -> list[tuple[str, float]]:
    """The pieces of a text with the weight of each, in order; neighbours differ in weight. At least one piece."""
    tokens = list(_TOKEN.finditer(text))
    times = _matched(tokens)
    found: list[list] = []
    products = {"(": [1.0], "[": [1.0]}  # of the brackets that are open, the innermost last
    for place, token in enumerate(tokens):
        kind = _kind(token)
        if place in times:
            if times[place] is None:
                products[kind].pop()
            else:
                products[kind].append(products[kind][-1] * times[place])
            continue
        piece, weight = token["escaped"] or token[0], products["("][-1] * products["["][-1]
        if found and found[-1][1] == weight:
            found[-1][0].append(piece)
        else:
            found.append([[piece], weight])
    return [("".join(pieces), weight) for pieces, weight in found] or [("", 1.0)]


def _kind(token: re.Match) -> str | None:
    """The bracket that a token opens, or whose partner it is."""
    if token["weight"]:
        return "("
    bracket = token["open"] or token["close"]
    return bracket and {")": "(", "]": "["}.get(bracket, bracket)


def _matched(tokens: list[re.Match]) -> dict[int, float | None]:
    """Place of a bracket that has a partner -> what it multiplies by, of one that opens; None of one that closes."""
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    times: dict[int, float | None] = {}
    for place, token in enumerate(tokens):
        kind = _kind(token)
        if kind is None:
            continue
        if token["open"]:
            waiting[kind].append(place)
        elif waiting[kind]:
            usual = ROUND if kind == "(" else SQUARE
            times[waiting[kind].pop()] = float(token["weight"]) if token["weight"] else usual
            times[place] = None
    return times
