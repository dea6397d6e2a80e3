import contextlib
import inspect
import pickle
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipeline.data import geometry, images
from tests.data import odd_pictures
from tests.data.odd_pictures import (
    BACKGROUND,
    HEIGHT,
    MAX_PIXELS,
    QUADRANTS,
    WIDTH,
    chunk,
    corpus,
    encode,
    quadrants,
    raw_png,
)

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as pipeline/data/images.py does outside pytest
CORPUS = corpus()
GOOD = [odd for odd in CORPUS if odd.quadrants]
DECODES = [odd for odd in GOOD if odd.name != "long ratio.png"]
BAD = [odd for odd in CORPUS if odd.rejected not in ("", "too small")]


def name(odd):
    return odd.name


def test_names_are_distinct():
    assert len({odd.name for odd in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("odd", DECODES, ids=name)
def test_shows_its_quadrants_upright(odd):
    picture = images.read(odd.data, BACKGROUND, MAX_PIXELS)
    pixels = picture.pixels
    assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    for index, wanted in enumerate(odd.quadrants):
        y, x = divmod(index, 2)
        middle = pixels[y * 20 + 6 : y * 20 + 14, x * 30 + 10 : x * 30 + 20].reshape(-1, 3).astype(int)
        assert np.abs(middle - wanted).max() <= odd.tolerance, (index, middle[0], wanted)
    assert picture.profile_ignored == odd.profile_ignored


@pytest.mark.parametrize("odd", BAD, ids=name)
def test_is_rejected_with_a_reason(odd):
    with pytest.raises(images.Rejected) as caught:
        images.decode(odd.data, BACKGROUND, MAX_PIXELS)
    assert caught.value.kind == odd.rejected
    assert "0x" not in str(caught.value) and "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # crosses from a worker


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_any_truncation_is_whole_or_rejected(form):
    """Cut at any byte: either the pixels of the whole file come out, or a Rejected; nothing else is raised."""
    noise = np.random.default_rng(1).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    data = encode(noise, form)
    whole = images.decode(data, BACKGROUND)
    rejected = cut_off = 0
    for end in range(0, len(data), 7):
        try:
            assert np.array_equal(images.decode(data[:end], BACKGROUND, MAX_PIXELS), whole)
        except images.Rejected as reason:
            rejected += 1
            cut_off += "is cut off: its end is missing" in str(reason)
    assert rejected > len(data) / 7 * 0.9
    if form != "TIFF":  # whose decoder does not say
        assert cut_off > rejected * 0.9


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_flipped_bytes_raise_nothing_but_rejected(form):
    data = bytearray(
        encode(quadrants(), form, exif=odd_pictures.exif(6)) if form != "GIF" else encode(quadrants(), form)
    )
    generator = np.random.default_rng(2)
    for _ in range(150):
        broken = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            broken[position] = generator.integers(0, 256)
        with contextlib.suppress(images.Rejected):
            images.decode(bytes(broken), BACKGROUND, MAX_PIXELS)


def test_a_cut_header_is_rejected_by_a_process_that_has_read_nothing_yet():
    """Pillow registers its readers of WEBP, TIFF and AVIF only when it needs them."""
    whole = encode(quadrants(), "JPEG", exif=b"Exif\0\0" + bytes(20_000))
    program = f"""
from pipeline.data import images
try:
    images.decode({whole[:4096]!r}, (0, 0, 0))
except images.Rejected as reason:
    print(reason)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("broken: JPEG ") and not result.stderr


def test_threads_with_different_bounds_do_not_disturb_each_other():
    """Pillow has one bound for the whole process, and for TIFF looks at it again while it decodes."""
    cases = [encode(quadrants(), form) for form in ("TIFF", "TIFF", "TIFF", "TIFF", "GIF", "WEBP", "PNG")] * 300

    def kind(number: int) -> str:
        bound = WIDTH * HEIGHT // 3 if number % 2 else None
        try:
            return str(images.decode(cases[number // 2], BACKGROUND, bound).shape)
        except images.Rejected as reason:
            return reason.kind

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as threads:
            kinds = list(threads.map(kind, range(2 * len(cases))))
    finally:
        sys.setswitchinterval(interval)
    assert set(kinds[::2]) == {str((HEIGHT, WIDTH, 3))} and set(kinds[1::2]) == {"too many pixels"}


def test_checksums_of_pixels_count():
    """Bytes that are changed in a PNG's pixels but still inflate would be other pixels."""
    data = encode(quadrants(), "PNG", compress_level=0)
    at = data.index(b"IDAT") + 300
    with pytest.raises(images.Rejected, match="broken: PNG bad checksum of IDAT"):
        images.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], BACKGROUND)


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG"), (13, None)])
def test_pictures_in_hdr_are_refused(transfer, name):
    data = raw_png(quadrants(), 2, 8, before=chunk(b"cICP", bytes([9, transfer, 0, 1])))
    avif = encode(quadrants(), "AVIF")
    at = avif.index(b"colrnclx") + 8
    avif = avif[:at] + struct.pack(">HH", 9, transfer) + avif[at + 4 :]
    for form, picture in (("PNG", data), ("AVIF", avif)):
        if name is None:
            images.decode(picture, BACKGROUND)
        else:
            with pytest.raises(images.Rejected, match=f"unsupported pixels: {form} with {name} brightness"):
                images.decode(picture, BACKGROUND)


def test_unknown_critical_chunks_are_refused():
    """Apple's CgBI has other bytes in IDAT than the standard."""
    data = raw_png(quadrants(), 2, 8)
    data = data[:8] + chunk(b"CgBI", bytes(4)) + data[8:]
    with pytest.raises(images.Rejected, match="unsupported pixels: PNG with the chunk CgBI"):
        images.decode(data, BACKGROUND)


def test_jpeg_of_12_bits_is_refused_by_name():
    data = encode(quadrants(), "JPEG")
    with pytest.raises(images.Rejected, match="unsupported pixels: JPEG cannot handle 12-bit"):
        images.decode(data.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), BACKGROUND)


def test_bombs_cost_no_memory(tmp_path):
    """In a process of its own, because the peak memory of a process never falls."""
    for odd in CORPUS:
        if odd.name.startswith("bomb"):
            (tmp_path / odd.name).write_bytes(odd.data)
    program = f"""
import resource, sys
from pathlib import Path
from pipeline.data import images
bombs = [path.read_bytes() for path in sorted(Path({str(tmp_path)!r}).iterdir())]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in bombs:
    try:
        images.decode(data, (0, 0, 0), {MAX_PIXELS})
    except images.Rejected as error:
        assert error.kind == "too many pixels", error
print(len(bombs), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, megabytes = map(int, result.stdout.split())
    assert count == 12 and megabytes < 60  # of which a decompressed profile may take 16


def test_more_pixels_than_pillow_likes_are_read_when_the_bound_allows_it(monkeypatch):
    """Pillow's own guard (raises above 2 × 89 million) must not reject what max_pixels lets through."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(quadrants(), "PNG")
    assert images.decode(data, BACKGROUND).shape == (HEIGHT, WIDTH, 3)
    assert images.decode(data, BACKGROUND, WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)


# --- geometry


@pytest.mark.parametrize("bucket", [(64, 64), (128, 32), (32, 128), (96, 64), (60, 40), (30, 20)])
@pytest.mark.parametrize("interpolation", geometry.INTERPOLATIONS)
def test_fit_is_resize_then_crop(bucket, interpolation):
    """Against Pillow's resize of the whole picture and a NumPy slice. A smooth picture: Pillow does the two axes in
    either order, which differs where a filter overshoots and is cut to 0..255."""
    y, x = np.mgrid[0:70, 0:101]
    pixels = np.stack([60 + x, 60 + y, 100 + 30 * np.sin(x / 9) * np.cos(y / 7)], axis=2).astype(np.uint8)
    prepared = geometry.fit(pixels, bucket, "random", interpolation, geometry.generator(b"0123456789abcdef"))
    height, width = prepared.resized_size
    whole = np.array(Image.fromarray(pixels).resize((width, height), geometry.INTERPOLATIONS[interpolation]))
    top, left = prepared.crop_top_left
    wanted = whole[top : top + bucket[1], left : left + bucket[0]]
    assert prepared.pixels.shape == (bucket[1], bucket[0], 3) == wanted.shape
    assert np.abs(prepared.pixels.astype(int) - wanted).max() <= 2  # each axis rounds to 8 bits
    assert prepared.original_size == (70, 101) and prepared.target_size == (bucket[1], bucket[0])


def test_cover_is_the_smallest_size_that_covers():
    generator = np.random.default_rng(3)
    for _ in range(2000):
        height, width, bucket_width, bucket_height = map(int, generator.integers(1, 3000, 4))
        resized_height, resized_width = geometry.cover(height, width, (bucket_width, bucket_height))
        assert resized_height >= bucket_height and resized_width >= bucket_width
        assert resized_height == bucket_height or resized_width == bucket_width
        scale = geometry.enlargement(width, height, bucket_width, bucket_height)
        assert scale == max(bucket_height / height, bucket_width / width)
        assert abs(resized_height - height * scale) <= 0.5 + 1e-9 or resized_height == bucket_height
        assert abs(resized_width - width * scale) <= 0.5 + 1e-9 or resized_width == bucket_width


def test_center_crop_is_in_the_middle():
    pixels = np.zeros((100, 200, 3), np.uint8)
    assert geometry.fit(pixels, (50, 50), "center", "lanczos", None).crop_top_left == (0, 25)
    assert geometry.fit(pixels.transpose(1, 0, 2), (50, 50), "center", "area", None).crop_top_left == (25, 0)


def test_random_crops_reach_both_edges_and_are_a_function_of_the_row():
    pixels = np.zeros((10, 13, 3), np.uint8)
    lefts = [
        geometry.fit(pixels, (10, 10), "random", "area", geometry.generator(bytes([i] * 16))).crop_top_left[1]
        for i in range(100)
    ]
    assert set(lefts) == {0, 1, 2, 3}
    again = geometry.fit(pixels, (10, 10), "random", "area", geometry.generator(bytes([7] * 16)))
    assert again.crop_top_left[1] == lefts[7]


def test_mirror_is_the_crop_of_the_mirrored_picture():
    generator = np.random.default_rng(4)
    pixels = generator.integers(0, 256, (40, 100, 3), dtype=np.uint8)
    prepared = geometry.fit(pixels, (20, 20), "random", "area", geometry.generator(b"x" * 16))
    mirrored = geometry.mirror(prepared)
    left, mirrored_left = prepared.crop_top_left[1], mirrored.crop_top_left[1]
    assert left != mirrored_left and left + mirrored_left == 50 - 20
    resized = np.array(Image.fromarray(np.ascontiguousarray(pixels[:, ::-1])).resize((50, 20), Image.Resampling.BOX))
    assert np.array_equal(mirrored.pixels, resized[:, mirrored_left : mirrored_left + 20])
    assert geometry.mirror(mirrored).crop_top_left == prepared.crop_top_left


def test_a_thread_of_a_picture_costs_its_bucket_only():
    """Resized as a whole it would be 512 × 16 million pixels."""
    pixels = np.zeros((1_000_000, 32, 3), np.uint8)
    prepared = geometry.fit(pixels, (512, 2048), "center", "lanczos", None)
    assert prepared.resized_size == (16_000_000, 512) and prepared.pixels.shape == (2048, 512, 3)
    assert prepared.crop_top_left == ((16_000_000 - 2048) // 2, 0)


def test_prepare_from_bytes():
    odd = next(odd for odd in CORPUS if odd.name == "exif 6.webp")
    prepared = geometry.prepare(odd.data, (32, 32), "center", "lanczos", BACKGROUND)
    assert (
        prepared.original_size == (HEIGHT, WIDTH)
        and prepared.resized_size == (32, 48)
        and prepared.crop_top_left == (0, 8)
    )
    for (y, x), wanted in zip(((4, 4), (4, 27), (27, 4), (27, 27)), QUADRANTS):
        assert np.abs(prepared.pixels[y, x].astype(int) - wanted).max() <= 2
    assert pickle.loads(pickle.dumps(prepared)).crop_top_left == (0, 8)


def test_unknown_crop():
    with pytest.raises(ValueError, match="crop is 'middle', wanted center or random"):
        geometry.fit(np.zeros((8, 8, 3), np.uint8), (4, 4), "middle", "area", None)


def test_params_allow_the_interpolations_that_exist():
    from pipeline.params import CacheLatents

    allowed = inspect.get_annotations(CacheLatents)["interpolation"].__args__
    assert set(allowed) == set(geometry.INTERPOLATIONS)


@pytest.mark.parametrize("alphas", [0, 1, 4, 5])
def test_a_palettes_alphas_are_as_many_as_its_colours_or_none(alphas):
    """With none, or more than the palette has colours, libpng takes the picture for opaque; and so does this."""
    picture = Image.new("P", (2, 2))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    plain = encode(picture, "PNG")
    place = plain.index(b"IDAT") - 4
    data = plain[:place] + chunk(b"tRNS", bytes(alphas)) + plain[place:]
    seen = images.read(data, (7, 7, 7), 1000).pixels
    assert plain.count(b"PLTE") == 1 and plain[plain.index(b"PLTE") - 4 :][:4] == struct.pack(">I", 12)
    assert seen.tolist() == [[[255, 0, 0] if alphas in (0, 5) else [7, 7, 7]] * 2] * 2
