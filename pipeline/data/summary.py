"""What the index found, in words."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from pipeline.data.fit import shown_times
from pipeline.data.part import Lost, Unmatched, some
from pipeline.stage import printable


@dataclass
class Summary:
    files: int = 0
    used: int = 0
    read: int = 0  # files that the memo did not know
    reasons: Counter = field(default_factory=Counter)  # kind of rejection → files
    buckets: Counter = field(default_factory=Counter)  # (width, height) → files
    every_bucket: Counter = field(default_factory=Counter)  # as `buckets`, of all views; empty where each has one
    encoded: int = 0  # files, each as often as it is encoded; 0 where that is once
    at: Counter = field(default_factory=Counter)  # further resolution of a set → pictures that are large enough
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
    passed_over: Counter = field(default_factory=Counter)  # sets.passed_over
    copies: list[str] = field(default_factory=list)  # "a.png = b.png"
    copied: int = 0  # files whose content another file has too, that one not counted
    near: list[tuple[str, str, int]] = field(default_factory=list)  # rows of near.csv
    samples: int = 0  # pictures, each in each of its sets
    often: float = 0.0  # samples of an epoch
    sets: list[str] = field(default_factory=list)  # what each is

    def __str__(self) -> str:
        lines = [f"index: {self.used:,} of {counted(self.files, 'picture')} {'is' if self.used == 1 else 'are'} used"]
        known = max(self.files - self.read, 0)
        unchanged = f", {counted(known, 'has', 'have')} not changed" if known else ""
        lines += [f"index: {counted(self.read, 'picture was', 'pictures were')} read{unchanged}"]
        lines += [f"index:   rejected, {kind}: {count:,}" for kind, count in sorted(self.reasons.items())]
        lines += [
            f"index:   bucket {width}×{height}: {count:,}" for (width, height), count in sorted(self.buckets.items())
        ]
        lines += [
            f"index:   further bucket {width}×{height}: {count:,}"
            for (width, height), count in sorted((self.every_bucket - self.buckets).items())
        ]
        lines += [
            f"index:   resolution {side} is not used: no picture is large enough (index.min_side, index.max_enlargement)"
            for side, count in sorted(self.at.items())
            if not count
        ]
        if self.encoded:
            lines.append(
                f"index: {counted(self.encoded, 'latent')} of {counted(self.used, 'picture')} (cache_latents.flip and crops make "
                "more of them, copies fewer)"
            )
        lines += [
            f"index: {counted(self.captions, 'caption')}; "
            f"{counted(self.without_caption, 'picture has none and gets', 'pictures have none and get')} the empty one"
        ]
        lines += [f"index: {line}" for line in self.sets]
        if self.copied:
            lines.append(
                f"index: {counted(self.copied, 'file is a copy', 'files are copies')} (copies.csv): each counts, and "
                f"their pictures are encoded once: {some(self.copies)}"
            )
        if self.near:
            pairs = [f"{first} ~ {path}" for path, first, _ in self.near]
            lines.append(
                f"index: {counted(len(self.near), 'picture looks', 'pictures look')} like another one (near.csv) and "
                f"{'is' if len(self.near) == 1 else 'are'} used all the same: {some(pairs)}"
            )
        if self.sets or self.often != self.samples:
            lines.append(f"index: {counted(self.samples, 'sample')}, {self.often:,.10g} an epoch")
        if self.masked:
            lines.append(
                f"index: {counted(self.masked, 'of the used pictures has', 'of the used pictures have')} a mask"
            )
        if self.focused:
            have = counted(self.focused, "of the used pictures has", "of the used pictures have")
            lines.append(f"index: {have} a centre of interest (focus or bbox)")
        if self.enlarged:
            lines.append(
                f"index: {counted(self.enlarged, 'of the used pictures is', 'of the used pictures are')} enlarged, "
                f"{shown_times(self.most_enlarged)} times at most"
            )
        if self.profiles_ignored:
            lines.append(
                f"index: {counted(self.profiles_ignored, 'picture has', 'pictures have')} a broken colour profile, taken "
                "as sRGB"
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
            lines.append(
                f"index: {counted(len(self.others), 'other file is', 'other files are')} left alone: {some(self.others)}"
            )
        return "\n".join(map(printable, lines))


def counted(number: int, one: str, more: str | None = None) -> str:
    """`1 picture`, `2,000 pictures`; more: where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def samples_of(number: float) -> str:
    """`1 sample`, `4.5 samples`."""
    return f"{number:,.10g} sample{'' if number == 1 else 's'}"


def kind_of(reason: str) -> str:
    """What a rejection is of, such as "too small": its first words."""
    return reason.partition(":")[0]
