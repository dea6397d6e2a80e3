"""Pictures as they are in the wild, each with what has to become of it. `python tests/data/odd_pictures.py FOLDER` writes
them.

Most show the same four quadrants, 60 wide and 40 high, in a different coding."""

import io
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 60, 40
RED, GREEN, BLUE, YELLOW = (220, 30, 20), (10, 160, 40), (20, 40, 200), (230, 210, 30)
QUADRANTS = (RED, GREEN, BLUE, YELLOW)  # top left, top right, bottom left, bottom right
BACKGROUND = (90, 140, 190)
MAX_PIXELS = 1_000_000
MIN_SIDE = 16

# EXIF 2.32, tag 0x0112: where the upright picture's corners are stored, as NumPy operations that store them so
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


@dataclass(frozen=True)
class Odd:
    name: str
    data: bytes
    quadrants: tuple = ()  # the four colours that a reader has to see; empty: the picture is rejected
    rejected: str = ""  # the kind of the rejection
    tolerance: int = 0
    profile_ignored: bool = False


def quadrants(colours: tuple = QUADRANTS) -> np.ndarray:
    """(40, 60, channels) array of four colours, of the dtype that holds them."""
    colours = np.array(colours)
    pixels = np.empty((HEIGHT, WIDTH, colours.shape[1]), np.uint8 if colours.max() < 256 else np.uint16)
    for index, colour in enumerate(colours):
        y, x = divmod(index, 2)
        pixels[y * HEIGHT // 2 : (y + 1) * HEIGHT // 2, x * WIDTH // 2 : (x + 1) * WIDTH // 2] = colour
    return pixels


def encode(image: Image.Image | np.ndarray, form: str, **options) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    values = Image.Exif()
    values[0x0112] = orientation
    return values.tobytes()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_png(pixels: np.ndarray, colour_type: int, bits: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of (height, width, channels) pixels, written chunk by chunk for what Pillow does not write."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(scanlines)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_header(width: int, height: int, scanlines: bytes, bits: int = 8) -> bytes:
    """A PNG that claims a size, with whatever pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", scanlines) + chunk(b"IEND", b"")


def icc_profile(space: bytes = b"RGB ", gamma: float = 1.0, columns: str = "rgb", more: bytes = b"") -> bytes:
    """An ICC version 2 profile with sRGB's primaries (in the order `columns`), one gamma, and `more` in a private tag.

    ICC.1:2001-04: 128 bytes header, tag table, tags; numbers are s15Fixed16, the curve is u8Fixed8."""
    primaries = {  # sRGB (IEC 61966-2-1), adapted to the profile connection space's D50 by Bradford
        "r": (0.43607, 0.22249, 0.01392),
        "g": (0.38515, 0.71687, 0.09708),
        "b": (0.14307, 0.06061, 0.71410),
    }

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(8 + 3 + 67 + 3)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip("rgb", columns):
            tags[name.encode() + b"XYZ"] = xyz(primaries[column])
            tags[name.encode() + b"TRC"] = curve
    if more:
        tags[b"priv"] = b"data\0\0\0\0\0\0\0\1" + more
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    tail = struct.pack(">I", len(tags)) + table + body
    header = struct.pack(">I4sI4s4s4s", 128 + len(tail), b"\0" * 4, 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + tail


def srgb(linear: float) -> int:
    """IEC 61966-2-1: linear light 0..1 → 0..255."""
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


def corpus() -> list[Odd]:
    return [
        *_formats(),
        *_orientations(),
        *_transparent(),
        *_depths(),
        *_colour_models(),
        *_profiles(),
        *_metadata(),
        *_several(),
        *_bad(),
    ]


def _formats():
    plain = quadrants()
    yield Odd("plain.png", encode(plain, "PNG"), QUADRANTS)
    yield Odd("plain.jpg", encode(plain, "JPEG", quality=95, subsampling=0), QUADRANTS, tolerance=3)
    yield Odd(
        "progressive.jpeg", encode(plain, "JPEG", quality=95, subsampling=0, progressive=True), QUADRANTS, tolerance=3
    )
    yield Odd("plain.webp", encode(plain, "WEBP", lossless=True), QUADRANTS)
    yield Odd("plain.bmp", encode(plain, "BMP"), QUADRANTS)
    yield Odd("plain.gif", encode(plain, "GIF"), QUADRANTS)
    yield Odd("plain.tif", encode(plain, "TIFF"), QUADRANTS)
    yield Odd("lzw.tiff", encode(plain, "TIFF", compression="tiff_lzw"), QUADRANTS)
    yield Odd("plain.avif", encode(plain, "AVIF", quality=95, subsampling="4:4:4"), QUADRANTS, tolerance=4)
    yield Odd("a PNG.jpg", encode(plain, "PNG"), QUADRANTS)
    yield Odd("größe 大 'x'.png", encode(plain, "PNG"), QUADRANTS)
    yield Odd("CAPITALS.PNG", encode(plain, "PNG"), QUADRANTS)
    yield Odd("long ratio.png", encode(np.zeros((MIN_SIDE, 9000, 3), np.uint8), "PNG"), ((0, 0, 0),) * 4)


def _orientations():
    for orientation, store in STORED.items():
        pixels = store(quadrants())
        data = encode(pixels, "JPEG", quality=95, subsampling=0, exif=exif(orientation))
        yield Odd(f"exif {orientation}.jpg", data, QUADRANTS, tolerance=3)
    turned = STORED[6](quadrants())
    yield Odd("exif 6.png", encode(turned, "PNG", exif=exif(6)), QUADRANTS)
    yield Odd("exif 6.webp", encode(turned, "WEBP", lossless=True, exif=exif(6)), QUADRANTS)
    yield Odd("exif 6.tif", encode(turned, "TIFF", exif=exif(6)), QUADRANTS)
    yield Odd("exif 6 lzw.tif", encode(turned, "TIFF", compression="tiff_lzw", exif=exif(6)), QUADRANTS)
    yield Odd(
        "exif 6.avif", encode(turned, "AVIF", quality=95, subsampling="4:4:4", exif=exif(6)), QUADRANTS, tolerance=4
    )
    body = exif(6).removeprefix(b"Exif\0\0")
    yield Odd("exif after the pixels.png", raw_png(turned, 2, 8, after=chunk(b"eXIf", body)), QUADRANTS)
    yield Odd(
        "exif 9.jpg", encode(quadrants(), "JPEG", quality=95, subsampling=0, exif=exif(9)), QUADRANTS, tolerance=3
    )
    broken = b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0\0\0"
    yield Odd(
        "broken exif.jpg", encode(quadrants(), "JPEG", quality=95, subsampling=0, exif=broken), QUADRANTS, tolerance=3
    )


def _transparent():
    seen = (RED, GREEN, BLUE, BACKGROUND)
    rgba = quadrants([(*c, 255) for c in QUADRANTS[:3]] + [(*YELLOW, 0)])
    yield Odd("rgba.png", encode(rgba, "PNG"), seen)
    yield Odd("rgba.webp", encode(rgba, "WEBP", lossless=True, exact=True), seen)
    yield Odd("rgba.tif", encode(rgba, "TIFF"), seen)
    half = quadrants([(*c, 255) for c in QUADRANTS[:3]] + [(*YELLOW, 51)])  # 51/255 = 1/5
    mixed = tuple(round((4 * below + above) / 5) for below, above in zip(BACKGROUND, YELLOW))
    yield Odd("half transparent.png", encode(half, "PNG"), (RED, GREEN, BLUE, mixed), tolerance=1)
    palette = Image.fromarray(quadrants()).quantize(4)
    clear = palette.getpixel((WIDTH - 1, HEIGHT - 1))
    yield Odd("palette.png", encode(palette, "PNG"), QUADRANTS)
    yield Odd("palette, transparent.png", encode(palette, "PNG", transparency=clear), seen)
    yield Odd("palette, transparent.gif", encode(palette, "GIF", transparency=clear), seen)
    grey = ((200, 255), (100, 255), (0, 255), (255, 0))
    yield Odd(
        "la.png", encode(Image.fromarray(quadrants(grey), "LA"), "PNG"), ((200,) * 3, (100,) * 3, (0,) * 3, BACKGROUND)
    )
    yield Odd("rgb, key.png", encode(quadrants(), "PNG", transparency=YELLOW), seen)


def _depths():
    grey = ((65535,), (32768,), (3000,), (0,))
    seen = tuple((value >> 8,) * 3 for (value,) in grey)
    yield Odd("grey.png", encode(quadrants([(v >> 8,) for (v,) in grey])[:, :, 0], "PNG"), seen)
    yield Odd(
        "grey.jpg", encode(quadrants([(v >> 8,) for (v,) in grey])[:, :, 0], "JPEG", quality=95), seen, tolerance=2
    )
    yield Odd("grey 16.png", raw_png(quadrants(grey), 0, 16), seen)
    yield Odd("grey 16.tif", encode(Image.fromarray(quadrants(grey)[:, :, 0]), "TIFF"), seen)
    key = chunk(b"tRNS", struct.pack(">H", 0))
    yield Odd("grey 16, key.png", raw_png(quadrants(grey), 0, 16, before=key), (*seen[:3], BACKGROUND))
    for number, wrong in enumerate((b"", b"\0", b"\0\0\0")):  # libpng passes over them too
        yield Odd(f"grey 16, no key {number}.png", raw_png(quadrants(grey), 0, 16, before=chunk(b"tRNS", wrong)), seen)
    deep = [tuple(value * 257 for value in colour) for colour in QUADRANTS]
    yield Odd("rgb 16.png", raw_png(quadrants(deep), 2, 16), QUADRANTS)
    yield Odd("rgb 16, no key.png", raw_png(quadrants(deep), 2, 16, before=chunk(b"tRNS", bytes(2))), QUADRANTS)
    clear = [(*c, 65535) for c in deep[:3]] + [(*deep[3], 0)]
    yield Odd("rgba 16.png", raw_png(quadrants(clear), 6, 16), (RED, GREEN, BLUE, BACKGROUND))
    no_key = raw_png(quadrants(clear), 6, 16, before=chunk(b"tRNS", bytes(6)))
    yield Odd("rgba 16, no key.png", no_key, (RED, GREEN, BLUE, BACKGROUND))
    white, black = (255,) * 3, (0,) * 3
    bilevel = Image.fromarray(quadrants(((255,), (0,), (0,), (255,)))[:, :, 0]).convert("1")
    yield Odd("one bit.png", encode(bilevel, "PNG"), (white, black, black, white))
    yield Odd("float.tif", encode(Image.new("F", (WIDTH, HEIGHT)), "TIFF"), rejected="unsupported pixels")
    yield Odd("32 bit.tif", encode(Image.new("I", (WIDTH, HEIGHT)), "TIFF"), rejected="unsupported pixels")


def _colour_models():
    ink = Image.fromarray(quadrants([tuple(255 - v for v in colour) + (0,) for colour in QUADRANTS]), "CMYK")
    yield Odd("cmyk.tif", encode(ink, "TIFF"), QUADRANTS)
    yield Odd("cmyk.jpg", encode(ink, "JPEG", quality=95, subsampling=0), QUADRANTS, tolerance=4)
    yield Odd("ycbcr.tif", encode(Image.fromarray(quadrants()).convert("YCbCr"), "TIFF"), QUADRANTS, tolerance=3)


def _profiles():
    linear = tuple(tuple(srgb(value / 255) for value in colour) for colour in QUADRANTS)
    plain = quadrants()
    yield Odd("linear light.png", encode(plain, "PNG", icc_profile=icc_profile()), linear, tolerance=1)
    yield Odd(
        "linear light.jpg",
        encode(plain, "JPEG", quality=95, subsampling=0, icc_profile=icc_profile()),
        linear,
        tolerance=6,
    )
    swapped = tuple(tuple(srgb(value / 255) for value in colour[::-1]) for colour in QUADRANTS)
    yield Odd("red is blue.png", encode(plain, "PNG", icc_profile=icc_profile(columns="bgr")), swapped, tolerance=2)
    rgba = quadrants([(*c, 255) for c in QUADRANTS[:3]] + [(*YELLOW, 0)])
    data = encode(rgba, "PNG", icc_profile=icc_profile())
    yield Odd("linear light, transparent.png", data, (*linear[:3], BACKGROUND), tolerance=1)
    grey = quadrants(((200,), (100,), (0,), (255,)))[:, :, 0]
    seen = tuple((srgb(value / 255),) * 3 for value in (200, 100, 0, 255))
    yield Odd("grey, linear.png", encode(grey, "PNG", icc_profile=icc_profile(b"GRAY")), seen, tolerance=1)
    yield Odd("grey, rgb profile.png", encode(grey, "PNG", icc_profile=icc_profile()), seen, tolerance=1)
    yield Odd(
        "broken profile.png",
        encode(plain, "PNG", icc_profile=b"no profile at all" * 20),
        QUADRANTS,
        profile_ignored=True,
    )
    cut = icc_profile()[:200]
    yield Odd("cut profile.png", encode(plain, "PNG", icc_profile=cut), QUADRANTS, profile_ignored=True)
    data = encode(plain, "PNG", icc_profile=icc_profile(b"GRAY"))
    yield Odd("grey profile, colour pixels.png", data, QUADRANTS, profile_ignored=True)


def _metadata():
    """Whole pixels beside metadata that is large or broken."""
    plain = quadrants()
    noise = np.random.default_rng(5).integers(0, 256, 1_500_000, np.uint8).tobytes()
    text = noise.replace(b"\0", b"x")
    linear = tuple(tuple(srgb(value / 255) for value in colour) for colour in QUADRANTS)
    large = icc_profile(more=noise)
    exif_body = exif(6).removeprefix(b"Exif\0\0")
    turned = STORED[6](plain)
    xmp = b"XML:com.adobe.xmp\0"
    upright = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    zeros = zlib.compress(bytes(100_000_000))
    for name, more in {
        "large text": chunk(b"tEXt", b"workflow\0" + text),
        "large zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(text)),
        "large iTXt": chunk(b"iTXt", b"workflow\0\0\0\0\0" + text),
        "large XMP": chunk(b"iTXt", xmp + b"\1\0\0\0" + zlib.compress(text)),
        "100,000 texts": chunk(b"tEXt", b"a\0b" * 9) * 100_000,
        "text without end": chunk(b"tEXt", b"") + chunk(b"zTXt", b"a") + chunk(b"iTXt", b"XML:com.adobe.xmp"),
        "zTXt of another method": chunk(b"zTXt", b"a\0\7" + text[:99]),
        "bad checksum of text": chunk(b"tEXt", b"a\0b")[:-1] + b"!",
        "short pHYs, gAMA, cHRM, sRGB": b"".join(chunk(n, b"") for n in (b"pHYs", b"gAMA", b"cHRM", b"sRGB")),
        "broken animation": chunk(b"acTL", b"\0") + chunk(b"fcTL", bytes(9)),
        "bomb of XMP": chunk(b"iTXt", xmp + b"\1\0\0\0" + zeros),
        "bomb of texts": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 500,
        "broken eXIf": chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        "large eXIf": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0" + noise),
    }.items():
        yield Odd(f"{name}.png", raw_png(plain, 2, 8, before=more), QUADRANTS)
    for name, more in {
        "broken iCCP": chunk(b"iCCP", b"P\0\0" + text[:3000]),
        "iCCP without end": chunk(b"iCCP", b"P"),
        "iCCP of large noise": chunk(b"iCCP", b"P\0\0" + zlib.compress(text)),
        "bomb of iCCP": chunk(b"iCCP", b"P\0\0" + zeros),
    }.items():
        yield Odd(f"{name}.png", raw_png(plain, 2, 8, before=more), QUADRANTS, profile_ignored=True)
    packed = chunk(b"iCCP", b"P\0\0" + zlib.compress(large))
    yield Odd("large profile.png", raw_png(plain, 2, 8, before=packed), linear, tolerance=1)
    yield Odd(
        "exif behind text.png", raw_png(turned, 2, 8, chunk(b"tEXt", text) + chunk(b"eXIf", exif_body)), QUADRANTS
    )
    raw = b"\nexif\n%8d\n%s\n" % (len(exif(6)), exif(6).hex().encode())
    more = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))
    yield Odd("exif of ImageMagick.png", raw_png(turned, 2, 8, more), QUADRANTS)
    yield Odd("turned by XMP.png", raw_png(turned, 2, 8, chunk(b"iTXt", xmp + b"\0\0\0\0" + upright)), QUADRANTS)
    yield Odd(
        "large profile.webp", encode(plain, "WEBP", lossless=True, icc_profile=large, xmp=text), linear, tolerance=1
    )
    yield Odd("large profile.tif", encode(plain, "TIFF", icc_profile=large), linear, tolerance=1)
    data = encode(plain, "JPEG", quality=95, subsampling=0, icc_profile=large, comment=text[:60_000], xmp=text[:60_000])
    yield Odd("large profile.jpg", data, linear, tolerance=6)
    cut = data.replace(b"ICC_PROFILE\0\2", b"ICC_PROFILE\0\0", 1)  # a part of the profile too few
    cut = cut[: cut.index(b"ICC_PROFILE\0\3") - 4] + cut[cut.index(b"ICC_PROFILE\0\4") - 4 :]
    yield Odd("profile with a hole.jpg", cut, QUADRANTS, tolerance=3, profile_ignored=True)
    data = encode(plain, "AVIF", quality=95, subsampling="4:4:4", icc_profile=large, xmp=text)
    yield Odd("large profile.avif", data, linear, tolerance=8)
    broken = b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0\0\0"
    yield Odd("broken exif.webp", encode(plain, "WEBP", lossless=True, exif=broken), QUADRANTS)
    data = encode(plain, "AVIF", quality=95, subsampling="4:4:4", exif=broken)
    yield Odd("broken exif.avif", data, QUADRANTS, tolerance=4)
    tags = Image.Exif()
    tags.get_ifd(0x8769)[0x9286] = "a comment"
    data = encode(plain, "TIFF", exif=tags.tobytes())
    at = data.index(struct.pack("<H", 0x8769)) + 8  # the offset of EXIF's own tags
    yield Odd("broken exif.tif", data[:at] + b"\xff\xff\0\0" + data[at + 4 :], QUADRANTS)
    many = Image.Exif()
    many.update({54_000 + number: "x" * 100 for number in range(3000)})
    yield Odd("3,000 tags.tif", encode(plain, "TIFF", exif=many), QUADRANTS)


def _several():
    first, second = Image.fromarray(quadrants()), Image.fromarray(quadrants(((0, 0, 0),) * 4))
    more = {"save_all": True, "append_images": [second]}
    yield Odd("animated.gif", encode(first, "GIF", **more), QUADRANTS)
    yield Odd("animated.webp", encode(first, "WEBP", lossless=True, **more), QUADRANTS)
    yield Odd("animated.png", encode(first, "PNG", **more), QUADRANTS)
    yield Odd("two pages.tif", encode(first, "TIFF", **more), QUADRANTS)
    yield Odd("two views.jpg", encode(first, "MPO", quality=95, subsampling=0, **more), QUADRANTS, tolerance=3)


def _bad():
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for form, name in (
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("TIFF", "tif"),
        ("AVIF", "avif"),
        ("BMP", "bmp"),
    ):
        data = encode(noise, form)
        yield Odd(f"half.{name}", data[: len(data) // 2], rejected="broken")
    yield Odd("header alone.png", encode(noise, "PNG")[:33], rejected="broken")
    yield Odd("signature alone.jpg", b"\xff\xd8\xff\xe0", rejected="broken")
    yield Odd("broken pixels.png", png_header(WIDTH, HEIGHT, b"this is not zlib"), rejected="broken")
    yield Odd("empty.jpg", b"", rejected="empty")
    yield Odd("text.png", b"this is a text\n" * 9, rejected="not an image")
    yield Odd("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", rejected="not an image")
    yield Odd(
        "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"/>', rejected="not an image"
    )
    yield Odd("archive.webp", b"PK\x03\x04" + bytes(60), rejected="not an image")
    yield Odd("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60), rejected="not an image")
    yield Odd("postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n", rejected="not an image")
    yield Odd("zero wide.png", png_header(0, HEIGHT, zlib.compress(b"")), rejected="broken")
    zeros = zlib.compress(bytes(30_000 * (1 + 30_000 // 8)))  # 900 million pixels in 0.1 MB
    yield Odd("bomb.png", png_header(30_000, 30_000, zeros, bits=1), rejected="too many pixels")
    yield Odd(
        "bomb.gif",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + _gif_frame(65535, 65535),
        rejected="too many pixels",
    )
    yield Odd(
        "bomb in the frame.gif",
        b"GIF89a" + struct.pack("<HHBBB", 20, 20, 0, 0, 0) + _gif_frame(65535, 65535),
        rejected="too many pixels",
    )
    canvas = struct.pack("<I", 16382)[:3] * 2  # width - 1, height - 1
    webp = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    yield Odd("bomb.webp", b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp, rejected="too many pixels")
    for form, name in (("JPEG", "jpg"), ("BMP", "bmp"), ("TIFF", "tif"), ("AVIF", "avif")):
        yield Odd(f"bomb.{name}", _claim(encode(noise, form), form, 16_000), rejected="too many pixels")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000)))
    yield Odd("bomb in a comment.png", raw_png(quadrants(), 2, 8, before=text), QUADRANTS)
    yield Odd("just above.png", encode(np.zeros((1000, 1001), np.uint8), "PNG"), rejected="too many pixels")
    yield Odd("tiny.png", encode(np.zeros((8, 8), np.uint8), "PNG"), rejected="too small")
    yield Odd("thread.png", encode(np.zeros((1, 5000), np.uint8), "PNG"), rejected="too small")


def _claim(data: bytes, form: str, side: int) -> bytes:
    """The picture of 60 × 40 pixels with a header that claims `side` × `side`."""
    layout = {  # what stands before the two numbers, and their coding
        "JPEG": (b"\xff\xc0\0\x11\x08", ">HH", (HEIGHT, WIDTH)),  # start of frame
        "BMP": (b"\x28\0\0\0", "<ii", (WIDTH, HEIGHT)),  # size of the header that holds them
        "AVIF": (b"ispe\0\0\0\0", ">II", (WIDTH, HEIGHT)),  # image spatial extents
    }
    if form == "TIFF":
        for tag, value in ((256, WIDTH), (257, HEIGHT)):
            entry = struct.pack("<HHII", tag, 4, 1, value)
            assert entry in data
            data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, side))
        return data
    before, coding, sides = layout[form]
    assert before + struct.pack(coding, *sides) in data
    return data.replace(before + struct.pack(coding, *sides), before + struct.pack(coding, side, side))


def _gif_frame(width: int, height: int) -> bytes:
    """Graphic control (restore to background, which makes a reader take memory at once) and one frame's header."""
    control = b"\x21\xf9\x04\x09\0\0\0\0"
    return control + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0x80) + bytes(6) + b"\x02\x02\x4c\x01\0;"


def write(folder: Path) -> list[Odd]:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = corpus()
    for odd in pictures:
        (folder / odd.name).write_bytes(odd.data)
    return pictures


if __name__ == "__main__":
    print(f"{len(write(Path(sys.argv[1])))} pictures in {sys.argv[1]}")
