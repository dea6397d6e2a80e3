"""What make_emphasis.py and test_emphasis.py share: texts with weights, and hidden states in two encoders' places."""

import random

import numpy as np

CASES = (
    "a red circle on a dark blue background",
    "a (red) circle",
    "a ((red)) circle, [blue] [[background]]",
    "a (red:1.4) circle, (dark blue background:0.6)",
    "(a (large:1.3) star:0.8) on [a (green:1.5) heart]",
    r"a circle \(red\), \[old\], a\\b (star\):1.2)",
    "(red:0) circle (blue:-0.5)",
    "(yellow: 1.25 ) star:1.5, (circle:red)",
    "(crossed [brackets) here] are read",
    ", ".join(f"(a {color} circle:{1 + number / 10}), a star [in] green" for number, color in
              enumerate("red orange yellow green blue purple pink gray cyan white".split())),
)  # fmt: skip


def _random(draw: random.Random, depth: int = 0) -> str:
    """A text whose brackets have partners."""
    words = draw.choices(["red", " fox", ", ", ":", "1.5", r"\(", r"\)", r"\[", r"\]", r"\\", "\n"], k=3)
    forms = "({})", "[{}]", "({}:1.3)", "({}:-0.5)", "({}: .75 )", "({}:2.)", "({}:+1)", "{}"
    inner = [draw.choice(forms).format(_random(draw, depth + 1)) for _ in range(draw.randrange(3)) if depth < 4]
    parts = words + inner
    draw.shuffle(parts)
    return "".join(parts)


TEXTS = tuple(dict.fromkeys([
    "a fox", "", "a (red) fox", "a (red:1.4) fox", "((red)) [[fox]]", "(a (red:1.5) fox:0.5)", "(red)(fox)",
    "(red: .5 ) (fox:+2.)", "[a (b] c)", r"\(red\) fox", r"(fox \(animal\):1.3)", r"a\\b", "(a:b)", "()", "a\n(b\nc)", ":)", "a fox)", "fox:1.2)",
    "a (((house:1.3)) [on] a (hill:0.5)), sun, (((sky))).",
    *(_random(random.Random(number)) for number in range(200)),
]))  # fmt: skip
# What is read otherwise here -> as it is read here.
OTHERWISE = {
    # a bracket without a partner is text; there one that opens has one at the end, and one that closes is text too
    "a (fox": [("a (fox", 1)],
    "a ] fox [": [("a ] fox [", 1)],
    "((fox)": [("(", 1), ("fox", 1.1)],
    "(fox:1.2": [("(fox:1.2", 1)],
    # a backslash before another character is text; there it is left out
    "a \\ b\\": [("a \\ b\\", 1)],
    # there it begins another chunk
    "a BREAK fox": [("a BREAK fox", 1)],
}
MOVED = (
    "a star, " + "a red circle " * 23 + ", a blue circle on a dark background"
)  # a comma before the end of the first chunk
CHUNKS = 2
WIDTHS = 6, 10  # of CLIP-L's and bigG's hidden states


def hidden(ids: np.ndarray, encoder: int) -> np.ndarray:
    """(chunks, 77, WIDTHS[encoder]) float32 of ids (chunks, 77): each value a function of its token and place, with a
    mean that is not 0."""
    draw = np.random.Generator(np.random.Philox(key=[7, encoder]))
    table = draw.standard_normal((97, WIDTHS[encoder]), np.float32) + 0.4
    places = draw.standard_normal((77, WIDTHS[encoder]), np.float32)
    return table[ids % 97] + places
