"""What a row of a table, or the JSON of a picture, says of it beside its captions: how often an epoch has it, and where
its centre of interest is."""

import json
import math
import re
from typing import Any, NamedTuple

TIMES = ("repeats", "weight")  # columns that say how often an epoch has a picture
MOST_TIMES = 100_000
FOCUS = ("focus", "bbox")  # columns that say where its centre of interest is; where both do, the first
_MOST_BOXES = 1000
_HUGE = 1e300  # sums of such numbers are numbers too
_FORMS = {
    "focus": "[x, y] or [left, top, right, bottom]",
    "bbox": "[x, y, width, height], as COCO has it, or a list of such boxes",
}

Box = tuple[float, float, float, float]  # left, top, right, bottom; of a point twice the same


class Focus(NamedTuple):
    """A centre of interest as it is said. It may lie outside of the picture, whose size is not known here."""

    left: float
    top: float
    right: float
    bottom: float
    in_pixels: bool  # of the upright picture; else in shares of its sides

    def __str__(self) -> str:
        numbers = self[:2] if self[:2] == self[2:4] else self[:4]
        kind = "the point" if len(numbers) == 2 else "the box (left, top, right, bottom)"
        unit = "pixels" if self.in_pixels else "shares of width and height"
        return f"{kind} {', '.join(f'{edge:.10g}' for edge in numbers)} in {unit}"


class Said(NamedTuple):
    times: float | None  # how often an epoch has the picture; None: once
    focus: Focus | None


def said(row: dict) -> Said:
    """Raises ValueError, naming the column."""
    return Said(times(row), focus(row))


def times(row: dict) -> float | None:
    """By the columns `repeats` and `weight`: their product where both are there. Raises ValueError."""
    given = {name: row[name] for name in TIMES if row.get(name) not in (None, "")}
    found = []
    for name, value in given.items():
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0 <= number <= MOST_TIMES:
            raise ValueError(
                f"found {name} {str(value)[:100]!r}, wanted a number from 0 to {MOST_TIMES:,}: how often an "
                "epoch has the picture; rename the column if it means something else"
            )
        found.append(number)
    return math.prod(found) if found else None


def focus(row: dict) -> Focus | None:
    """By the columns `focus` and `bbox`; of several boxes the one around all. Numbers are shares where none is beyond 1,
    or below -1, else pixels. Raises ValueError."""
    for name in FOCUS:
        value = row.get(name)
        if value is None or isinstance(value, (str, list)) and not value:
            continue
        numbers = _numbers(name, value)
        boxes = [_box(name, *one) for one in numbers]
        if not boxes or not all(boxes):
            raise ValueError(
                f"found {name} {str(value)[:100]!r}, wanted {_FORMS[name]}: the picture's centre of interest, in shares "
                "of its width and height (all from 0 to 1) or in pixels; rename the column if it means something else"
            )
        left, top, right, bottom = zip(*boxes)
        in_pixels = any(abs(number) > 1 for one in numbers for number in one)
        return Focus(*map(float, (min(left), min(top), max(right), max(bottom))), in_pixels)
    return None


def _numbers(name: str, value: Any) -> list[list[float]]:
    """Of each point or box; none for what is none."""
    if isinstance(value, str):
        value = _of_text(value)
    if not isinstance(value, list):
        return []
    several = value if name == "bbox" and all(isinstance(one, list) for one in value) else [value]
    return several if len(several) <= _MOST_BOXES and all(map(_is_numbers, several)) else []


def _box(name: str, *numbers: float) -> Box | None:
    if len(numbers) == 4 and name == "bbox":
        x, y, width, height = numbers
        return (x, y, x + width, y + height) if min(width, height) >= 0 else None
    if len(numbers) == 2 and name == "focus":
        return (*numbers, *numbers)
    return numbers if len(numbers) == 4 and numbers[0] <= numbers[2] and numbers[1] <= numbers[3] else None


def _of_text(text: str) -> Any:
    """A cell of a CSV: [0.5, 0.2] or 0.5, 0.2 or 0.5 0.2."""
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [float(part) for part in re.split(r"[\s,;]+", text.strip())]
    except (ValueError, RecursionError):
        return None


def _is_numbers(one: Any) -> bool:
    if not isinstance(one, list) or not one:
        return False
    plain = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in one)
    return plain and all(abs(number) < _HUGE for number in one)  # not a number is none of these
