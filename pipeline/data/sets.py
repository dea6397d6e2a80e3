"""Sets: parts of a data set with settings of their own, and what the pictures and captions of each become.

A picture may be in several sets; each makes a sample of it, which training sees as often as that set says."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.part import Part
from pipeline.data.variants import Rules, expand
from pipeline.stage import StageError


class SetsError(StageError):
    """The file of sets cannot be used as it is: what was found, where, what is wanted."""


@dataclass(frozen=True)
class Set:
    """Of `repeats`, `samples` and `weight` at most one is given. None of them: once an epoch, or for a class set as
    often as makes its samples as many as those of the other sets of its group (prior preservation, arXiv
    2208.12242)."""

    name: str
    folder: str = ""  # in the data set; or a tar or Parquet file of it. Empty: all of it
    below: bool = True  # whether the folders below it are of the set too
    rest: bool = False  # only what is in no other set
    repeats: float | None = None  # times that an epoch has each picture
    samples: float | None = None  # pictures of the set that an epoch has
    weight: float | None = None  # its share of the samples, beside the other sets with a weight
    class_images: bool = False
    group: int = 0  # class sets are for the other sets of their group
    loss_weight: float = 1.0
    caption_dropout: float | None = None  # None: train.caption_dropout
    caption: str = ""  # of pictures without one
    prefix: str = ""
    suffix: str = ""
    extension: str | None = None  # captions come from files with this one alone
    first_line: bool = False  # of those files
    file_names: bool = False  # captions are the pictures' names
    captions: tuple[str, ...] = ()  # of all pictures, in place of their own
    chances: tuple[tuple[str, float], ...] = ()  # of Part.origins: how often captions are drawn; the others never
    rules: Rules | None = None  # of captions' variants
    resolutions: tuple[int, ...] = ()  # none: that of params.yaml
    flip: bool | None = None  # None, as of the next three: cache_latents of params.yaml
    crop: str | None = None
    crops: int | None = None
    background: tuple[int, int, int] | None = None
    masks: str | None = None  # folder of the data set whose pictures are the masks of those of the same name
    alpha_mask: bool | None = None  # whether a picture's alpha channel is its mask; None: index.alpha_mask
    left_out: tuple[str, ...] = ()  # pictures whose names, without the extension, end so
    without: tuple[str, ...] = ()  # folders of the data set that are not of the set

    @property
    def rewrites(self) -> bool:
        """Whether captions are others than the pictures' own."""
        words = self.caption, self.prefix, self.suffix, self.extension, self.first_line, self.file_names, self.captions
        return any((*words, self.chances, self.rules))


WHOLE = (Set(""),)  # a data set without sets is one


def is_whole(sets: tuple[Set, ...]) -> bool:
    """Whether these are those of a data set without sets."""
    return not sets[0].name


@dataclass(frozen=True)
class Members:
    """The samples of a part. picture (k,) int64 indices into its paths and number (k,) int32 of the set of each; and
    their captions: caption_picture (m,), caption_number (m,) alike, texts and texts_2 (m,) string, chances (m,) float64
    of being drawn beside the sample's others."""

    picture: np.ndarray
    number: np.ndarray
    caption_picture: np.ndarray
    caption_number: np.ndarray
    texts: pa.Array
    texts_2: pa.Array
    chances: np.ndarray


def inside(part: Part, sets: tuple[Set, ...]) -> np.ndarray:
    """(sets, pictures) bool: which pictures of a part are in which sets."""
    found = np.ones((len(sets), len(part.paths)), bool)
    if not is_whole(sets):
        paths = part.paths.to_pylist()
        for number, one in enumerate(sets):
            found[number] = [holds(one, path) for path in paths]
        for number, one in enumerate(sets):
            if one.rest:
                found[number] &= ~np.delete(found, number, axis=0).any(axis=0)
    return found


def members(part: Part, sets: tuple[Set, ...]) -> Members:
    """Which pictures are in which sets, and with which captions."""
    here = inside(part, sets)
    number, picture = np.nonzero(here)
    found = [_captions(part, one, mine) for one, mine in zip(sets, here)]
    return Members(
        picture,
        number.astype(np.int32),
        np.concatenate([rows for rows, *_ in found]),
        np.repeat(np.arange(len(sets), dtype=np.int32), [len(rows) for rows, *_ in found]),
        pa.concat_arrays([texts for _, texts, _, _ in found]),
        pa.concat_arrays([texts_2 for _, _, texts_2, _ in found]),
        np.concatenate([chances for *_, chances in found]),
    )


def _captions(part: Part, one: Set, inside: np.ndarray) -> tuple[np.ndarray, pa.Array, pa.Array, np.ndarray]:
    """Those of the pictures `inside` (n,) bool, as the set has them: picture (m,), both texts (m,) and chances (m,)."""
    mine = inside[part.caption_rows]
    rows, mask = part.caption_rows[mine], pa.array(mine)
    columns = part.texts.filter(mask), part.texts_2.filter(mask)
    if not one.rewrites:
        return rows, *columns, np.ones(len(rows))
    own = zip(rows.tolist(), *(column.to_pylist() for column in (*columns, part.origins.filter(mask))))
    found = list(_written(one, own, np.flatnonzero(inside).tolist(), part.paths))
    rows, texts, texts_2, chances = zip(*found) if found else ((), (), (), ())
    columns = pa.array(texts, pa.string()), pa.array(texts_2, pa.string())
    return np.array(rows, np.int64), *columns, np.array(chances, np.float64)


def _takes(one: Set, origin: str) -> bool:
    """Whether captions of this origin are of the set."""
    return one.extension in (None, origin) and (not one.chances or origin in dict(one.chances))


def passed_over(part: Part, sets: tuple[Set, ...]) -> Counter:
    """(number of a set, origin) -> pictures of the set that have captions of this origin, and none that the set takes."""
    found, origins = Counter(), None
    for number, (one, here) in enumerate(zip(sets, inside(part, sets))):
        if one.captions or one.file_names or one.extension is None and not one.chances:
            continue
        origins = part.origins.to_pylist() if origins is None else origins
        is_taken = np.array([_takes(one, origin) for origin in origins], bool)
        has_one = np.zeros(len(here), bool)
        has_one[part.caption_rows[is_taken]] = True
        left = here[part.caption_rows] & ~has_one[part.caption_rows]
        pairs = {(row, origins[place]) for place, row in zip(np.flatnonzero(left), part.caption_rows[left].tolist())}
        found.update((number, origin) for _, origin in pairs)
    return found


def of_passed_over(found: Counter, sets: tuple[Set, ...]) -> list[str]:
    """What to say of `passed_over`."""
    said = []
    for (number, origin), count in sorted(found.items()):
        one = sets[number]
        taken = [name for name, _ in one.chances] or [one.extension]
        which = "its chances" if one.chances else "caption_extension, by kohya's default .caption"
        which = "" if one.extension == ".txt" else f" ({which})"  # OneTrainer's, which has no other
        said.append(
            f"set {one.name}: {count:,} of its pictures have captions in {_named(origin)} alone, and it takes those in "
            f"{' and '.join(map(_named, taken))}{which}"
        )
    return said


def _named(origin: str) -> str:
    return f"{origin} files" if origin else "tables, JSON or tars"


def holds(one: Set, path: str) -> bool:
    """Whether a picture's path is in the set's folder, tar or Parquet file."""
    if one.left_out and posixpath.splitext(path)[0].endswith(one.left_out):
        return False
    if any(path.startswith(f"{folder}/") for folder in one.without):
        return False
    if not one.folder:
        return one.below or "/" not in path
    if path.startswith(one.folder) and path[len(one.folder) : len(one.folder) + 1] in ("!", "#"):
        return True
    folder = posixpath.dirname(path)
    return folder == one.folder or one.below and folder.startswith(one.folder + "/")


def _written(
    one: Set, own: Iterable[tuple[int, str, str | None, str]], inside: list[int], paths: pa.StringArray
) -> Iterator[tuple[int, str, str | None, float]]:
    """(picture, text, text_2, chance) of the pictures `inside`; their captions are `own` (picture, text, text_2,
    origin)."""
    if one.captions or one.file_names:
        for row in inside:
            name = posixpath.splitext(posixpath.basename(paths[row].as_py()))[0]
            for text in one.captions or (name,):
                yield from ((row, *variant) for variant in _variants(one, text, None))
        return
    own, done = list(own), set()
    counts = Counter((row, origin) for row, _, _, origin in own)
    for row, text, text_2, origin in own:
        if not _takes(one, origin) or one.first_line and row in done:
            continue
        chance = dict(one.chances)[origin] / counts[row, origin] if one.chances else 1.0
        done.add(row)
        text = text.split("\n")[0].strip() if one.first_line else text
        yield from ((row, *pair, chance * share) for *pair, share in _variants(one, text, text_2))
    if instead := _variants(one, one.caption, None):
        yield from ((row, *variant) for row in inside if row not in done for variant in instead if variant[0])


def _variants(one: Set, text: str, text_2: str | None) -> list[tuple[str, str | None, float]]:
    """(text, text_2, chance) of each, with the set's prefix and suffix."""
    if one.rules is None:
        return [(_framed(one, text), text_2 and _framed(one, text_2), 1.0)]
    if one.rules.framed:
        return expand(_framed(one, text), text_2 and _framed(one, text_2), one.rules)
    found = expand(text, text_2, one.rules)
    return [(_framed(one, first), second and _framed(one, second), chance) for first, second, chance in found]


def _framed(one: Set, text: str) -> str:
    return " ".join(part for part in (one.prefix, text, one.suffix) if part)


def multipliers(sets: tuple[Set, ...], totals: list[float]) -> list[float]:
    """How often an epoch has a picture of each set, over what its table says of it. `totals`: the sum of that over the
    pictures of each set that are used."""
    weights = sum(one.weight for one, total in zip(sets, totals) if one.weight is not None and total)
    weighted = sum(total for one, total in zip(sets, totals) if one.weight is not None)
    found: list[float | None] = []
    for one, total in zip(sets, totals):
        if one.weight is not None:
            found.append(weighted * one.weight / weights / total if total and weights else 0.0)
        elif one.samples is not None:
            found.append(one.samples / total if total else 0.0)
        elif one.class_images and one.repeats is None:
            found.append(None)  # _of_class
        else:
            found.append(1.0 if one.repeats is None else one.repeats)
    return [_of_class(number, sets, totals, found) if often is None else often for number, often in enumerate(found)]


def epoch(sets: tuple[Set, ...], totals: list[float]) -> list[float]:
    """As `multipliers`. Raises SetsError where an epoch has less than one sample, on which nothing can be trained."""
    often = multipliers(sets, totals)
    total = sum(one * times for one, times in zip(totals, often))
    if total >= 1 - 1e-9:  # sums of fractions
        return often
    alone = " (class pictures are as many as the other sets' samples: give them repeats, or another set)"
    raise SetsError(
        f"an epoch has {total:g} samples, by the repeats and weights of the data set; wanted 1 at least"
        f"{alone if any(one.class_images for one in sets) else ''}"
    )


def _of_class(number: int, sets: tuple[Set, ...], totals: list[float], found: list[float | None]) -> float:
    """How often an epoch has each picture of a class set, which together with the other such sets of its group has as
    many samples as the sets beside them."""
    mine = [place for place, one in enumerate(sets) if one.group == sets[number].group]
    beside = sum(totals[place] * found[place] for place in mine if not sets[place].class_images)
    same = sum(totals[place] for place in mine if found[place] is None)
    return beside / same if same else 0.0


def check(sets: tuple[Set, ...], counts: Counter | np.ndarray) -> None:
    """Raises SetsError for a set without pictures. `counts`: pictures by number of set."""
    for number, one in enumerate(sets):
        if not counts[number] and not one.rest and not is_whole(sets):
            place = repr(one.folder) if one.folder else "the whole data set"
            raise SetsError(f"the set {one.name!r} has no pictures that are used: {place}")
