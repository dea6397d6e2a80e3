"""What make_emphasis.py and test_emphasis.py share: texts with weights, and hidden states in two encoders' places."""

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
CHUNKS = 2
WIDTHS = 6, 10  # of CLIP-L's and bigG's hidden states


def hidden(ids: np.ndarray, encoder: int) -> np.ndarray:
    """(chunks, 77, WIDTHS[encoder]) float32 of ids (chunks, 77): each value a function of its token and place, with a
    mean that is not 0."""
    draw = np.random.Generator(np.random.Philox(key=[7, encoder]))
    table = draw.standard_normal((97, WIDTHS[encoder]), np.float32) + 0.4
    places = draw.standard_normal((77, WIDTHS[encoder]), np.float32)
    return table[ids % 97] + places
