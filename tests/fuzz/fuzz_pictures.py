"""Damaged pictures of every accepted format: each has to be decoded or rejected with a reason, the same in every thread
and process.

`python -m tests.fuzz.fuzz_pictures SECONDS SEED`"""

import io
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
from PIL import Image

from pipeline.data import images
from tests.data import odd_pictures
from tests.golden import make_pictures

_BOUND = 200_000  # pixels
_BACKGROUND = (90, 140, 190)
_BATCH = 100
_PLAIN = re.compile(r"(empty|not an image|too many pixels|broken|unsupported pixels)(: [^\n]{1,300})?")


def fuzz(seconds: float, seed: int) -> int:
    """Try damaged pictures until the time is up; how many they were. Raises AssertionError with the seed and number of
    the case that fails; `damaged(whole(), seed, number)` makes its bytes again."""
    number, pictures = 0, whole()
    context = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(1, context) as process:
        process.submit(_outcomes, []).result()  # the process has started
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            cases = [damaged(pictures, seed, number + n) for n in range(_BATCH)]
            there = process.submit(_outcomes, cases)
            here = list(threads.map(outcome, cases))
            try:
                others = there.result()
            except Exception as error:
                raise AssertionError(f"seed {seed}, a case from {number} on ended its process: {error!r}") from None
            for n, (one, other) in enumerate(zip(here, others)):
                where = f"seed {seed}, case {number + n}"
                assert one == other, f"{where}: {one} in a thread, {other} in a process"
                assert isinstance(one, bytes) or _PLAIN.fullmatch(one), f"{where}: {one}"
                assert isinstance(one, bytes) or not re.search(r"0x[0-9a-fA-F]{5,}|/\w+/\w+", one), f"{where}: {one}"
            number += len(cases)
    return number


def whole() -> list[bytes]:
    """A small picture of every mode, depth and compression of every format, and the metadata they can carry."""
    pictures = [data for data, _ in make_pictures.read().values()]
    pictures += [
        odd.data for odd in odd_pictures.corpus() if not odd.name.startswith("bomb") and len(odd.data) < 20_000
    ]
    pixels = make_pictures.smooth(3)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 300
    exif.get_ifd(0x8769)[0x9286] = "a comment"
    exif.get_ifd(0x8825)[1] = "N"
    more = {"exif": exif.tobytes(), "icc_profile": odd_pictures.icc_profile()}
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for form, options in {
        "PNG": more,
        "JPEG": more | {"xmp": xmp, "comment": b"a comment"},
        "WEBP": more | {"xmp": xmp},
        "TIFF": more,
        "AVIF": more | {"xmp": xmp},
        "GIF": {"comment": b"a comment"},
    }.items():
        pictures += [odd_pictures.encode(pixels, form, **options)] * 5
    return pictures


def damaged(pictures: list[bytes], seed: int, number: int) -> bytes:
    """Case `number`: a picture that is cut, has bytes changed, left out or doubled, numbers set to their ends, or a part
    of another in it."""
    draw = np.random.Generator(np.random.Philox(key=seed, counter=number))
    data = bytearray(pictures[draw.integers(len(pictures))])
    if not data:
        return b""
    is_tiff = data[:2] in (b"II", b"MM")
    in_header = draw.random() < 0.6  # more worth damaging than the pixels

    def place() -> int:
        if not in_header:
            return int(draw.integers(len(data)))
        place = int(draw.integers(min(len(data), 400)))
        return len(data) - 1 - place if is_tiff and draw.random() < 0.8 else place  # many have their header at the end

    for _ in range(int(draw.integers(1, 4))):
        if not data:
            break
        # What moves a TIFF's header makes all of it unreadable.
        kind, at = draw.choice([1, 2, 5]) if is_tiff and draw.random() < 0.8 else draw.integers(7), place()
        if kind == 0:
            del data[at:]
        elif kind == 1:
            for _ in range(int(draw.integers(1, 9))):
                data[place()] = draw.integers(256)
        elif kind == 2:
            data[at] ^= 1 << draw.integers(8)
        elif kind == 3:
            del data[at : at + int(draw.integers(1, 40))]
        elif kind == 4:
            data[at:at] = data[at : at + int(draw.integers(1, 40))]
        elif kind == 5:
            size = int(draw.choice([2, 4]))
            value = int(draw.choice([0, 1, 0x7F, 0x80, 0xFF])) * (256 ** (size - 1)) + int(draw.choice([0, 0xFF]))
            data[at : at + size] = value.to_bytes(size, "big" if draw.random() < 0.5 else "little")
        else:
            other = pictures[draw.integers(len(pictures))]
            start = int(draw.integers(len(other) + 1))
            data[at : at + int(draw.integers(40))] = other[start : start + int(draw.integers(200))]
    data = bytes(data)
    return _with_true_checksums(data) if data.startswith(b"\x89PNG") and draw.random() < 0.7 else data


def outcome(data: bytes) -> bytes | str:
    """The pixels, or the reason of the rejection."""
    try:
        picture = images.read(data, _BACKGROUND, _BOUND)
    except images.Rejected as error:
        return str(error)
    except BaseException as error:
        return f"raised {error!r}"
    height, width, _ = picture.pixels.shape
    if picture.pixels.dtype != np.uint8 or not 0 < height * width <= _BOUND:
        return f"let through {picture.pixels.dtype} {picture.pixels.shape}"
    return b"%d %d " % (height, width) + picture.pixels.tobytes()


def _outcomes(cases: list[bytes]) -> list[bytes | str]:
    return [outcome(data) for data in cases]


def _with_true_checksums(data: bytes) -> bytes:
    """A PNG whose chunks fit their checksums again, so that the damage comes further than to those."""
    stream, out = io.BytesIO(data[8:]), data[:8]
    while len(head := stream.read(8)) == 8:
        body = stream.read(int.from_bytes(head[:4]))
        out += odd_pictures.chunk(head[4:], body)
        stream.read(4)
    return out


if __name__ == "__main__":
    print(fuzz(float(sys.argv[1]), int(sys.argv[2])), "damaged pictures")
