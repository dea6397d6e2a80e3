"""What the index found, in words."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from pipeline.data.fit import shown_times
from pipeline.data.part import Lost, Unmatched, some


@dataclass
class Summary:
    files: int = 0
    used: int = 0
    read: int = 0  # files that the memo did not know
    reasons: Counter = field(default_factory=Counter)  # kind of rejection → files
    buckets: Counter = field(default_factory=Counter)  # (width, height) → files
    captions: int = 0  # distinct ones of each distinct picture that is used
    without_caption: int = 0  # distinct pictures
    profiles_ignored: int = 0
    masked: int = 0  # files that are used and have a mask
    focused: int = 0  # and a centre of interest
    enlarged: int = 0  # files that are smaller than their bucket
    most_enlarged: float = 1.0  # times, of those
    places: list[str] = field(default_factory=list)  # the folder or files that were read
    others: list[str] = field(default_factory=list)  # files that are neither pictures nor captions
    lost: list[Lost] = field(default_factory=list)  # pictures that could not be opened; counted in files and reasons
    unmatched: list[Unmatched] = field(default_factory=list)
    members: Counter = field(default_factory=Counter)  # number of a set → files of it that are used
    times: Counter = field(default_factory=Counter)  # number of a set → the sum of their Part.times
    copies: list[str] = field(default_factory=list)  # "a.png = b.png"
    copied: int = 0  # files whose content another file has too, that one not counted
    near: list[tuple[str, str, int]] = field(default_factory=list)  # rows of near.csv
    samples: int = 0  # pictures, each in each of its sets
    often: float = 0.0  # samples of an epoch
    sets: list[str] = field(default_factory=list)  # what each is

    def __str__(self) -> str:
        lines = [f"index: {self.used:,} of {self.files:,} pictures are used"]
        known = max(self.files - self.read, 0)
        lines += [f"index: {self.read:,} pictures were read" + (f", {known:,} have not changed" if known else "")]
        lines += [f"index:   rejected, {kind}: {count:,}" for kind, count in sorted(self.reasons.items())]
        lines += [
            f"index:   bucket {width}×{height}: {count:,}" for (width, height), count in sorted(self.buckets.items())
        ]
        lines += [
            f"index: {self.captions:,} captions; {self.without_caption:,} pictures have none and get the empty one"
        ]
        lines += [f"index: {line}" for line in self.sets]
        if self.copied:
            lines.append(
                f"index: {self.copied:,} files are copies (copies.csv): each counts, and their pictures are encoded "
                f"once: {some(self.copies)}"
            )
        if self.near:
            pairs = [f"{first} ~ {path}" for path, first, _ in self.near]
            lines.append(
                f"index: {len(self.near):,} pictures look like another one (near.csv) and are used all the same: {some(pairs)}"
            )
        if self.sets or self.often != self.samples:
            lines.append(f"index: {self.samples:,} samples, {self.often:,.10g} an epoch")
        if self.masked:
            lines.append(f"index: {self.masked:,} of the used pictures have a mask")
        if self.focused:
            lines.append(f"index: {self.focused:,} of the used pictures have a centre of interest (focus or bbox)")
        if self.enlarged:
            lines.append(
                f"index: {self.enlarged:,} of the used pictures are enlarged, {shown_times(self.most_enlarged)} times at most"
            )
        if self.profiles_ignored:
            lines.append(
                f"index: {self.profiles_ignored:,} pictures have a broken colour profile and are taken as sRGB"
            )
        damages = [f"{lost.path}: {lost.reason}" for lost in self.lost if kind_of(lost.reason) == "damaged"]
        lines += [f"index: {damage}" for damage in damages]
        groups = defaultdict(list)
        for path, what, reason in sorted(self.unmatched):
            groups[what, kind_of(reason)].append(path)
        lines += [
            f"index: {len(paths):,} left alone (unmatched.csv), {what}, {reason}: {some(paths)}"
            for (what, reason), paths in sorted(groups.items())
        ]
        if self.others:
            lines.append(f"index: {len(self.others):,} other files are left alone: {some(self.others)}")
        return "\n".join(lines)


def kind_of(reason: str) -> str:
    """What a rejection is of, such as "too small": its first words."""
    return reason.partition(":")[0]
