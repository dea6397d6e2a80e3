"""Masks: pictures that say where another counts, white in full and black least (train.mask_floor).

A mask is `name.mask.png` or OneTrainer's `name-masklabel.png` beside `name.jpg`, or a picture of the same name in a
set's folder of masks, as kohya's conditioning_data_dir has them; in a tar it is the member `key.mask.png`."""

import hashlib
import posixpath
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.data.kinds import mask_stem
from pipeline.data.match import match
from pipeline.data.part import Part, Unmatched, choose_pictures
from pipeline.data.sets import Set, SetsError, holds

ALPHA = ""  # in the place of a mask's path: the picture's own alpha channel
OF_ALPHA = hashlib.blake2b(b"alpha", digest_size=16).digest()  # in the place of the hash of a mask's bytes
NO_PARTNER = "no picture of this name"


def content(image: bytes, mask: bytes | None, focus: bytes = b"") -> bytes:
    """16 bytes that name a picture with its mask and its centre of interest (focus.key). The first two are blake2b of the
    files' bytes, 16 bytes; without the others the name is the picture's own. Its first half is the picture's in any case:
    by that pictures are held out."""
    if mask is None and not focus:
        return image
    return image[:8] + hashlib.blake2b(image + (mask or b"") + focus, digest_size=8).digest()


def beside(stems: dict[str, list[str]], candidates: Collection[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The masks among pictures, by their names: picture -> its masks; and those of `candidates` whose picture is not
    there. stems: the pictures that may have masks, by their names without extension."""
    wanted = defaultdict(list)
    for path in candidates:
        wanted[mask_stem(path)].append(path)
    whole = {path: [path] for paths in stems.values() for path in paths}
    partners = match(wanted, stems)
    owners = {stem: stems[there] for stem, there in partners.items()}
    owners |= {
        stem: whole[there] for stem, there in match(wanted.keys() - partners.keys(), whole).items()
    }  # a.png.mask.png
    found = defaultdict(list)
    for stem, pictures in owners.items():
        for picture in pictures:
            found[picture] += wanted[stem]
    return found, sorted(path for stem, paths in wanted.items() if stem not in owners for path in paths)


def several(masks: list[str]) -> str:
    """Why a picture is lost that has more than one."""
    return f"several masks: {', '.join(sorted(masks))}; keep one"


def of_sets(part: Part, sets: tuple[Set, ...]) -> Part:
    """The part with the masks that its sets have in folders of their own, which are pictures no more. Raises
    SetsError."""
    folders = [(one, one.masks) for one in sets if one.masks is not None]
    if not folders:
        return part
    paths = part.paths.to_pylist()
    rows, unmatched = {path: row for row, path in enumerate(paths)}, list(part.unmatched)
    masks, stamps, is_mask = part.masks.to_pylist(), part.mask_stamps.copy(), np.zeros(len(paths), bool)
    for one, folder in folders:
        there = {}
        for path in paths:
            if path.startswith(f"{folder}/"):
                is_mask[rows[path]] = True
                there.setdefault(posixpath.splitext(path[len(folder) + 1 :])[0], []).append(path)
        mine = [path for path in paths if not path.startswith(f"{folder}/") and holds(one, path)]
        begin = len(one.folder) + 1 if one.folder else 0
        names = {path: posixpath.splitext(path[begin:])[0] for path in mine}
        partners = match(names.values(), there)
        for path, name in names.items():
            found = there.get(partners.get(name), [])
            if not found:
                unmatched.append(Unmatched(path, "picture", f"no mask: none of this name in {folder}"))
                continue
            known = masks[rows[path]]
            if len(found) > 1 or known not in (None, found[0]):
                both = ", ".join(sorted({*found, *filter(None, [known])}))
                raise SetsError(f"the set {one.name!r}: {path} has {both} for a mask; keep one")
            masks[rows[path]], stamps[rows[path]] = found[0], part.stamps[rows[found[0]]]
        alone = there.keys() - set(partners.values())
        unmatched += [Unmatched(path, "mask", NO_PARTNER) for name in sorted(alone) for path in there[name]]
    with_masks = replace(part, masks=pa.array(masks, pa.string()), mask_stamps=stamps, unmatched=unmatched)
    return choose_pictures(with_masks, ~is_mask)


def of_alpha(part: Part, sets: tuple[Set, ...], transparent: np.ndarray, usual: bool) -> Part:
    """The part with the alpha channel as mask of those `transparent` (n,) bool pictures that have no other, where their
    set, or else `usual` (index.alpha_mask), says so. Raises SetsError where two sets of one picture say differently."""
    masks, paths = part.masks.to_pylist(), part.paths.to_pylist()
    for row in np.flatnonzero(transparent & part.masks.is_null().to_numpy(zero_copy_only=False)).tolist():
        mine = [one for one in sets if holds(one, paths[row])]
        said = {usual if one.alpha_mask is None else one.alpha_mask for one in mine}
        if len(said) > 1:
            names = ", ".join(repr(one.name) for one in mine)
            raise SetsError(f"{paths[row]} is in the sets {names}, whose alpha_mask is not the same; give them one")
        if True in said:
            masks[row] = ALPHA
    return replace(part, masks=pa.array(masks, pa.string()))
