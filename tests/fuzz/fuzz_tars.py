"""Random tars, damaged at random: what lies whole outside the damage is found, or the damage is told."""

import io
import os
import random
import tarfile
from pathlib import Path

from pipeline.data import tar
from pipeline.data.captions import CaptionError
from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from tests.fuzz.cases import try_cases

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def fuzz(seconds: float, seed: int) -> int:
    """Try cases until the time is up; returns how many. Raises AssertionError, naming the case, on a defect."""
    return try_cases(check, seconds, seed)


def check(folder: Path, seed: int, number: int) -> None:
    """One case."""
    draw = random.Random(f"{seed} {number}")
    members, data = make(draw)
    kind, damaged, start, end = damage(draw, data)
    file = folder / "a.tar"
    file.write_bytes(damaged)
    case = f"seed {seed}, case {number}: {len(members)} members, {kind} from byte {start} to {end} of {len(data)}"
    try:
        found = tar.contents(str(file))
        check_contents(found, members, damaged, kind, start, end, case)
        source = open_source(str(file))
        for part in source.parts():
            for path in part.paths.to_pylist():
                source.read(path)
    except (SourceError, CaptionError):
        pass
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{case}: {error!r}") from error


def make(draw: random.Random) -> tuple[dict[str, tuple[int, int, bytes]], bytes]:
    """(first byte, end, content) by name, and a tar of random samples; sometimes two put together."""
    members, data = {}, b""
    for piece in range(draw.choice((1, 1, 1, 2))):
        stream = io.BytesIO()
        form = draw.choice(list(FORMATS))
        with tarfile.open(fileobj=stream, mode="w", format=FORMATS[form]) as archive:
            for number in range(draw.randrange(1, 12)):
                long = draw.random() < 0.2 and form != "ustar"
                key = f"{piece}-{number:03}" + (draw.choice("aé") * draw.randrange(90, 160) if long else "")
                picture = draw.randbytes(draw.randrange(1, 4000))
                text = f"caption {number} ".encode() * draw.randrange(1, 90)
                for name, content in ((f"{key}.jpg", picture), (f"{key}.txt", text)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    if form == "pax" and draw.random() < 0.3:
                        member.pax_headers = {"comment": "x" * draw.randrange(600)}
                    start = len(data) + archive.offset
                    archive.addfile(member, io.BytesIO(content))
                    members[name] = (start, len(data) + archive.offset, content)
            last = archive.offset
        data += stream.getvalue()[: last + draw.choice((0, 1024, 1 << 20))]
    return members, data


def damage(draw: random.Random, data: bytes) -> tuple[str, bytes, int, int]:
    """What was done, the damaged bytes, and the stretch of the whole ones that it was done to."""
    kind = draw.choice(("a flipped bit", "cut", "zeros", "noise", "missing bytes", "more bytes", "nothing"))
    start = draw.randrange(len(data))
    if draw.random() < 0.3:
        start -= start % tar.BLOCK
    end = min(len(data), start + draw.choice((1, 5, 300, 512, 2000, 9000, 30_000)))
    match kind:
        case "a flipped bit":
            flipped = bytearray(data)
            flipped[start] ^= 1 << draw.randrange(8)
            return kind, bytes(flipped), start, start + 1
        case "cut":
            return kind, data[:start], start, len(data)
        case "zeros":
            return kind, data[:start] + bytes(end - start) + data[end:], start, end
        case "noise":
            return kind, data[:start] + draw.randbytes(end - start) + data[end:], start, end
        case "missing bytes":
            return kind, data[:start] + data[end:], start, end
        case "more bytes":
            return kind, data + draw.randbytes(draw.randrange(1, 3000)), len(data), len(data)
    return kind, data, len(data), len(data)


def check_contents(
    found: tar.Contents,
    members: dict[str, tuple[int, int, bytes]],
    data: bytes,
    kind: str,
    start: int,
    end: int,
    case: str,
) -> None:
    contents = {member.name: data[member.data : member.data + member.size] for member in found.members}
    moved = end - start if kind == "missing bytes" else 0
    told = found.damages or found.joined or found.behind or not found.ended
    skipped = 0
    for name, (first, last, content) in members.items():
        if last <= start:
            assert contents.get(name) == content, f"{case}: {name} lies before it and is lost"
        elif first >= end:
            lost = contents.get(name) != content
            skipped += lost and len(name.encode()) != 100  # such a name fills the header's field, as a cut one does
            within = any(d.start < last - moved and d.end > first - moved for d in found.damages)
            assert not lost or within, f"{case}: {name} at {first} lies behind it and is lost without a word"
        elif name not in contents and kind != "missing bytes":
            # Left over: names that stand in no checksum, and zeros up to the end, which are those of a whole tar.
            renamed = kind != "cut" and len(found.members) == len(members)
            at_end = not data[first:].strip(b"\0")
            assert told or renamed or at_end, f"{case}: {name} at {first} was hit and is lost without a word"
    assert skipped <= 1, f"{case}: {skipped} members behind it are lost"  # one whose long name was hit
    if kind == "nothing":
        # One in twenty tars put together without padding has the length of a padded one: no member of it is lost.
        seams = len(data) % 10240 == 0 and all(d.end - d.start == 1024 for d in found.damages)
        assert (not found.damages or seams) and len(found.members) == len(members), f"{case}: {found.damages}"
    place = 0
    for first, last in sorted([(m.start, m.end) for m in found.members] + [(d.start, d.end) for d in found.damages]):
        assert first >= place, f"{case}: what begins at {first} lies in what ends at {place}"
        assert not data[place:first].strip(b"\0"), f"{case}: bytes {place} to {first} belong to nothing"
        place = last
    assert len(data[place:].strip(b"\0")) < tar.BLOCK, f"{case}: bytes from {place} on belong to nothing"


if __name__ == "__main__":
    print(fuzz(float(os.environ.get("FUZZ_SECONDS", "60")), int(os.environ.get("FUZZ_SEED", "0"))))
