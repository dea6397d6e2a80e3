"""Pictures in every mode and bit depth that the accepted formats hold, coded and decoded by other programs than ours.

`python -m tests.golden.make_pictures` writes pictures.tar.xz: each picture and, as name.npy, its pixels (height, width, 4)
uint8, red, green, blue, alpha, not premultiplied, of 16 bits the high byte. It needs Debian's imagemagick, libvips-tools,
libtiff-tools, webp, libavif-bin and libjpeg-turbo-progs (made with those of Debian 12). The pixels are ImageMagick's but
for what `_seen` says; where libvips sees others the picture is named with the largest difference, for a person to judge.
"""

import io
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("pictures.tar.xz")
WIDTH, HEIGHT = 13, 11


def run(*command: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run(list(map(str, command)), input=stdin, capture_output=True, check=True).stdout


def smooth(channels: int, bits: int = 8) -> np.ndarray:
    """(height, width, channels) that every coder keeps well: waves of another length in each channel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [np.sin((1 + c) * x / 9 + c) * np.cos((2 - c / 2) * y / 8) for c in range(channels)]
    return ((np.stack(waves, 2) + 1) / 2 * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)


def noise(channels: int, bits: int = 8) -> np.ndarray:
    return np.random.default_rng(channels * 100 + bits).integers(0, 2**bits, (HEIGHT, WIDTH, channels))


def packed(samples: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Rows (height, samples a row) of 1 to 16 bits as bytes, padded at the end of each row."""
    if bits in (8, 16, 32):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in samples]
    shifts = np.arange(bits)[::-1]
    return [np.packbits((row[:, None] >> shifts & 1).astype(np.uint8).reshape(-1)).tobytes() for row in samples]


# --- PNG


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(pixels: np.ndarray, kind: int, bits: int, more: bytes = b"", interlaced: bool = False) -> bytes:
    height, width, channels = pixels.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first row, first column, and the steps of both
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for y, x, step_y, step_x in passes:
        part = pixels[y::step_y, x::step_x]
        rows += b"".join(b"\0" + row for row in packed(part.reshape(part.shape[0], -1), bits) if part.size)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def pngs() -> Iterator[tuple[str, bytes]]:
    kinds = {"grey": (0, 1, (1, 2, 4, 8, 16)), "rgb": (2, 3, (8, 16)), "la": (4, 2, (8, 16)), "rgba": (6, 4, (8, 16))}
    for kind, (number, channels, depths) in kinds.items():
        for bits in depths:
            pixels = noise(channels, bits)
            for interlaced in (False, True):
                yield f"{kind} {bits}{' interlaced' * interlaced}.png", png(pixels, number, bits, b"", interlaced)
            if number in (0, 2):
                key = pixels[5, 5]
                pixels = pixels.copy()
                pixels[2, 2] = key
                if bits == 16:
                    pixels[3, 3] = key ^ 1  # the high bytes alike
                    pixels[4, 4] = key ^ 256  # the low bytes alike
                more = chunk(b"tRNS", key.astype(">u2").tobytes())
                for interlaced in (False, True):
                    yield (
                        f"{kind} {bits} key{' interlaced' * interlaced}.png",
                        png(pixels, number, bits, more, interlaced),
                    )
    for bits in (1, 2, 4, 8):
        count = min(2**bits, 200)
        palette = chunk(b"PLTE", np.random.default_rng(bits).integers(0, 256, (count, 3), np.uint8).tobytes())
        indices = noise(1, bits) % count
        clear = indices[5, 5, 0]
        alphas = {
            "": b"",
            " one clear": chunk(b"tRNS", bytes([255] * int(clear) + [0])),
            " alphas": chunk(b"tRNS", bytes((255 - 37 * n) % 256 for n in range(max(count // 2, 1)))),
        }
        for name, more in alphas.items():
            yield f"palette {bits}{name}.png", png(indices, 3, bits, palette + more, interlaced=name != "")


# --- TIFF


def tiff(
    pixels: np.ndarray,
    bits: int,
    photometric: int,
    order: str = "<",
    extra: tuple[int, ...] = (),
    sample_format: int | None = None,
    colormap: np.ndarray | None = None,
    more: tuple[tuple[int, int, list[int]], ...] = (),
) -> bytes:
    """Uncompressed, one strip; `more` are further tags (tag, type 3 or 4, values)."""
    height, width, channels = pixels.shape
    data = b"".join(packed(pixels.reshape(height, -1), bits, order))
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [1]), 262: (3, [photometric])}
    tags |= {273: (4, [8]), 277: (3, [channels]), 278: (4, [height]), 279: (4, [len(data)])}
    if extra:
        tags[338] = (3, list(extra))
    if sample_format:
        tags[339] = (3, [sample_format] * channels)
    if colormap is not None:
        tags[320] = (3, colormap.T.reshape(-1).tolist())
    tags |= {tag: (kind, values) for tag, kind, values in more}
    data += bytes(len(data) % 2)
    entries, outside = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        if len(body) > 4:
            place = struct.pack(f"{order}I", 8 + len(data) + len(outside))
            outside += body + bytes(len(body) % 2)
            body = place
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + body.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data) + len(outside))
    return head + data + outside + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def tiffs(folder: Path) -> Iterator[tuple[str, bytes]]:
    plain: dict[str, bytes] = {}
    for order, end in (("<", "le"), (">", "be")):
        for bits in (1, 2, 4, 8, 16, 32):
            for photometric, name in ((0, "white is zero"), (1, "grey")):
                plain[f"{name} {bits} {end}"] = tiff(noise(1, bits), bits, photometric, order)
        for bits in (1, 2, 4, 8):
            colormap = np.random.default_rng(bits).integers(0, 65536, (2**bits, 3))
            plain[f"palette {bits} {end}"] = tiff(noise(1, bits), bits, 3, order, colormap=colormap)
        for bits in (8, 16):
            plain[f"rgb {bits} {end}"] = tiff(noise(3, bits), bits, 2, order)
            plain[f"cmyk {bits} {end}"] = tiff(noise(4, bits), bits, 5, order)
            plain[f"lab {bits} {end}"] = tiff(noise(3, bits), bits, 8, order)
            for extra, name in ((0, "unspecified"), (1, "premultiplied"), (2, "alpha")):
                for channels, kind, photometric in ((2, "grey", 1), (4, "rgb", 2), (5, "cmyk", 5), (2, "white", 0)):
                    pixels = noise(channels, bits)
                    if extra == 1:
                        pixels[:, :, :-1] = pixels[:, :, :-1] * pixels[:, :, -1:] // (2**bits - 1)
                    plain[f"{kind} {name} {bits} {end}"] = tiff(pixels, bits, photometric, order, (extra,))
        plain[f"rgba, extra samples not named {end}"] = tiff(noise(4), 8, 2, order)
        plain[f"two more samples {end}"] = tiff(noise(5), 8, 2, order, (2, 0))
        plain[f"rgb 32 {end}"] = tiff(noise(3, 32), 32, 2, order)
        for bits in (8, 16, 32):
            plain[f"grey {bits} signed {end}"] = tiff(noise(1, bits), bits, 1, order, sample_format=2)
        plain[f"rgb 8 signed {end}"] = tiff(noise(3, 8), 8, 2, order, sample_format=2)
        floats = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), np.float32).view(np.uint32)
        plain[f"grey float {end}"] = tiff(floats[:, :, :1], 32, 1, order, sample_format=3)
        plain[f"rgb float {end}"] = tiff(floats, 32, 2, order, sample_format=3)
        plain[f"rgb half float {end}"] = tiff(noise(3, 16), 16, 2, order, sample_format=3)
        ycbcr = ((530, 3, [1, 1]),)
        plain[f"ycbcr {end}"] = tiff(smooth(3), 8, 6, order, more=ycbcr)
        plain[f"grey 12 {end}"] = tiff(noise(1, 12), 12, 1, order)
        plain[f"white is zero 12 {end}"] = tiff(noise(1, 12), 12, 0, order)
        plain[f"palette 8, of 8 bit colours {end}"] = tiff(
            noise(1), 8, 3, order, colormap=np.random.default_rng(8).integers(0, 256, (256, 3))
        )
    yield from ((f"{name}.tif", data) for name, data in plain.items())
    often = (
        "white is zero 1",
        "white is zero 8",
        "white is zero 16",
        "grey 1",
        "grey 4",
        "grey 8",
        "grey 16",
        "palette 4",
    )
    often += (
        "palette 8",
        "rgb 8",
        "rgb 16",
        "cmyk 8",
        "cmyk 16",
        "rgb alpha 8",
        "rgb premultiplied 16",
        "grey alpha 8",
    )
    often += ("ycbcr", "two more samples", "rgba, extra samples not named")
    for name, data in ((name, plain[f"{name} le"]) for name in often):
        bits = next(int(word) for word in [*name.split(), "8"] if word.isdigit())
        source, target = folder / "in.tif", folder / "out.tif"
        source.write_bytes(data)
        ways = {"lzw": ("-c", "lzw"), "zip, lsb first": ("-c", "zip", "-f", "lsb2msb"), "packbits": ("-c", "packbits")}
        ways["separate"] = ("-p", "separate")
        ways["lzw, separate"] = ("-c", "lzw", "-p", "separate")
        ways["tiled"] = ("-t", "-w", "16", "-l", "16")
        ways["zip, tiled"] = ("-c", "zip", "-t", "-w", "16", "-l", "16")
        ways["strips"] = ("-r", "4")
        ways["lsb first"] = ("-f", "lsb2msb")
        ways["big"] = ("-8",)
        ways["zip, swapped"] = ("-c", "zip", "-B" if name.endswith("le") else "-L")
        if bits in (8, 16) and "palette" not in name:
            ways["lzw, predictor"] = ("-c", "lzw:2")
            ways["zip, predictor, separate"] = ("-c", "zip:2", "-p", "separate")
        if bits == 1 and ("grey" in name or "white" in name):
            ways |= {
                "g3": ("-c", "g3"),
                "g4": ("-c", "g4"),
                "g3 2d": ("-c", "g3:2d"),
                "g4, lsb": ("-c", "g4", "-f", "lsb2msb"),
            }
        for way, arguments in ways.items():
            target.unlink(missing_ok=True)
            result = subprocess.run(["tiffcp", *arguments, source, target], capture_output=True)
            if result.returncode == 0:
                yield f"{name}, {way}.tif", target.read_bytes()
    # JPEG in TIFF, of a size that its blocks divide or do not
    source, target = folder / "in.tif", folder / "out.tif"
    for name, pixels, photometric in (("rgb", smooth(3), 2), ("grey", smooth(1), 1)):
        source.write_bytes(tiff(pixels, 8, photometric))
        for way, arguments in {
            "jpeg": ("-c", "jpeg:95"),
            "jpeg, rgb": ("-c", "jpeg:r:95"),
            "jpeg, tiled": ("-c", "jpeg:95", "-t", "-w", "16", "-l", "16"),
        }.items():
            run("tiffcp", *arguments, source, target)
            yield f"{name}, {way}.tif", target.read_bytes()
    source.write_bytes(plain["cmyk 8 le"])
    run("tiffcp", "-c", "jpeg:95", source, target)
    yield "cmyk, jpeg.tif", target.read_bytes()


# --- BMP


def bmp(
    rows: list[bytes],
    bits: int,
    header: int = 40,
    compression: int = 0,
    palette: bytes = b"",
    masks: tuple[int, ...] = (),
    top_down: bool = False,
    colours: int = 0,
) -> bytes:
    rows = [row + bytes(-len(row) % 4) for row in rows] if compression in (0, 3) else rows
    body = b"".join(rows if top_down else rows[::-1])
    if header == 12:
        head = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        height = -HEIGHT if top_down else HEIGHT
        head = struct.pack(
            "<IiiHHIIiiII", header, WIDTH, height, 1, bits, compression, len(body), 2835, 2835, colours, 0
        )
        head += struct.pack(f"<{len(masks)}I", *masks)
        if header > 40:
            head = head.ljust(header, b"\0")
            if header >= 108:
                head = head[:56] + b"BGRs" + head[60:]
    offset = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + head + palette + body


def bmps() -> Iterator[tuple[str, bytes]]:
    for bits in (1, 4, 8):
        colours = np.random.default_rng(bits).integers(0, 256, (2**bits, 4), np.uint8)
        colours[:, 3] = 0
        rows = packed(noise(1, bits)[:, :, 0], bits)
        yield f"palette {bits}.bmp", bmp(rows, bits, palette=colours.tobytes())
        yield f"palette {bits} top down.bmp", bmp(rows, bits, palette=colours.tobytes(), top_down=True)
        yield f"palette {bits} os2.bmp", bmp(rows, bits, 12, palette=colours[:, :3].tobytes())
        few = packed(noise(1, bits)[:, :, 0] % max(2 ** (bits - 1), 2), bits)
        yield (
            f"palette {bits} half.bmp",
            bmp(few, bits, palette=colours[: max(2 ** (bits - 1), 2)].tobytes(), colours=max(2 ** (bits - 1), 2)),
        )
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1)
    grey[:, 3] = 0
    yield "grey 8.bmp", bmp(packed(noise(1)[:, :, 0], 8), 8, palette=grey.tobytes())
    for name, ends in (("black first", (0, 255)), ("white first", (255, 0))):
        colours = b"".join(bytes([end] * 3 + [0]) for end in ends)
        yield f"black and white, {name}.bmp", bmp(packed(noise(1, 1)[:, :, 0], 1), 1, palette=colours)
    words = packed(noise(1, 16)[:, :, 0], 16, "<")
    yield "16.bmp", bmp(words, 16)
    yield "16 555.bmp", bmp(words, 16, compression=3, masks=(0x7C00, 0x3E0, 0x1F))
    yield "16 565.bmp", bmp(words, 16, compression=3, masks=(0xF800, 0x7E0, 0x1F))
    yield "16 1555 v5.bmp", bmp(words, 16, 124, 3, masks=(0x7C00, 0x3E0, 0x1F, 0x8000))
    yield "16 4444 v5.bmp", bmp(words, 16, 124, 3, masks=(0xF00, 0xF0, 0xF, 0xF000))
    yield "24.bmp", bmp(packed(noise(3).reshape(HEIGHT, -1), 8), 24)
    yield "24 os2.bmp", bmp(packed(noise(3).reshape(HEIGHT, -1), 8), 24, 12)
    yield "24 top down.bmp", bmp(packed(noise(3).reshape(HEIGHT, -1), 8), 24, top_down=True)
    wide = packed(noise(4).reshape(HEIGHT, -1), 8)
    blank = noise(4)
    blank[:, :, 3] = 0
    yield "32.bmp", bmp(packed(blank.reshape(HEIGHT, -1), 8), 32)
    yield "32 with a fourth byte.bmp", bmp(wide, 32)
    yield "32 bitfields.bmp", bmp(wide, 32, compression=3, masks=(0xFF0000, 0xFF00, 0xFF))
    yield "32 v4 alpha.bmp", bmp(wide, 32, 108, 3, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    yield "32 v5 alpha.bmp", bmp(wide, 32, 124, 3, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    yield "32 v5 rgba.bmp", bmp(wide, 32, 124, 3, masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000))
    yield "32 v5 no alpha.bmp", bmp(wide, 32, 124, 3, masks=(0xFF0000, 0xFF00, 0xFF, 0))
    yield "32 10 bit.bmp", bmp(wide, 32, 124, 3, masks=(0x3FF00000, 0xFFC00, 0x3FF, 0))
    for bits, compression in ((8, 1), (4, 2)):
        colours = np.random.default_rng(bits).integers(0, 256, (2**bits, 4), np.uint8)
        colours[:, 3] = 0
        rows = []
        for row in noise(1, bits)[:, :, 0].astype(np.uint8):
            if bits == 8:
                literal = bytes([0, 7]) + row[6:].tobytes() + b"\0"
                rows.append(b"".join(bytes([1, value]) for value in row[:6]) + literal + b"\0\0")
            else:
                rows.append(bytes([6, row[0] << 4 | row[1], 0, 7]) + packed(row[None, 6:], 4)[0] + b"\0\0")
        rows[0] = rows[0][:-2] + b"\0\1"  # the end of the picture; rows stand from the lowest
        yield f"rle{bits}.bmp", bmp(rows, bits, compression=compression, palette=colours.tobytes())


# --- GIF


def gif(
    frames: list[dict],
    colours: np.ndarray,
    background: int = 0,
    screen: tuple[int, int] = (WIDTH, HEIGHT),
    own: bool = False,
) -> bytes:
    """Frames: left, top, indices (height, width), and clear, disposal, interlaced, local as they are needed. Codes are
    written uncompressed: 9 bits each, with a clear code before the table grows."""
    data = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x70 if own else 0xF7, background, 0)
    data += b"" if own else colours.tobytes()
    for frame in frames:
        clear = frame.get("clear")
        flags = (frame.get("disposal", 0) << 2) | (clear is not None)
        data += b"\x21\xf9\x04" + struct.pack("<BHBB", flags, 10, clear or 0, 0)
        indices = frame["indices"]
        height, width = indices.shape
        local = 0x87 if own else 0
        if frame.get("interlaced"):
            indices = np.concatenate([indices[0::8], indices[4::8], indices[2::4], indices[1::2]])
            local |= 0x40
        data += b"," + struct.pack("<HHHHB", frame.get("left", 0), frame.get("top", 0), width, height, local)
        data += colours.tobytes() if own else b""
        codes = []
        for number, value in enumerate(indices.reshape(-1).tolist()):
            codes += [256] * (number % 100 == 0) + [value]
        bits = sum(code << (9 * place) for place, code in enumerate([*codes, 257]))
        body = bits.to_bytes(-(-9 * (len(codes) + 1) // 8), "little")
        data += (
            b"\x08"
            + b"".join(bytes([len(body[i : i + 255])]) + body[i : i + 255] for i in range(0, len(body), 255))
            + b"\0"
        )
    return data + b";"


def gifs() -> Iterator[tuple[str, bytes]]:
    colours = np.random.default_rng(7).integers(0, 256, (256, 3), np.uint8)
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    whole = noise(1)[:, :, 0]
    part = whole[:5, :6]
    clear = int(part[2, 2])
    yield "plain.gif", gif([{"indices": whole}], colours)
    yield "local colours.gif", gif([{"indices": whole}], colours, own=True)
    yield "interlaced.gif", gif([{"indices": whole, "interlaced": True}], colours)
    yield "grey.gif", gif([{"indices": whole}], grey)
    yield "grey, clear.gif", gif([{"indices": whole, "clear": clear}], grey)
    yield "clear.gif", gif([{"indices": whole, "clear": clear}], colours, background=3)
    yield "clear beyond.gif", gif([{"indices": whole % 200, "clear": 250}], colours)
    for disposal in range(4):
        frames = [{"indices": part, "left": 3, "top": 2, "clear": clear, "disposal": disposal}]
        yield f"part, clear, disposal {disposal}.gif", gif(frames, colours, background=9)
        opaque = [{"indices": part, "left": 3, "top": 2, "disposal": disposal}]
        yield f"part, disposal {disposal}.gif", gif(opaque, colours, background=9)
        yield f"part, disposal {disposal}, animated.gif", gif([*opaque, {"indices": whole}], colours, background=9)
    yield "part, grey.gif", gif([{"indices": part, "left": 3, "top": 2}], grey, background=9)
    yield "part, local colours.gif", gif([{"indices": part, "left": 3, "top": 2}], colours, own=True)


# --- JPEG, WebP, AVIF


def netpbm(pixels: np.ndarray, deepest: int = 255) -> bytes:
    height, width, channels = pixels.shape
    dtype = ">u2" if deepest > 255 else "u1"
    return b"P%d %d %d %d\n" % (6 if channels == 3 else 5, width, height, deepest) + pixels.astype(dtype).tobytes()


def jpegs() -> Iterator[tuple[str, bytes]]:
    colour, grey = netpbm(smooth(3)), netpbm(smooth(1))
    yield "grey.jpg", run("cjpeg", "-quality", "95", stdin=grey)
    for name, arguments in {
        "420": ("-sample", "2x2"),
        "422": ("-sample", "2x1"),
        "440": ("-sample", "1x2"),
        "444": ("-sample", "1x1"),
        "411": ("-sample", "4x1"),
        "progressive": ("-progressive",),
        "arithmetic": ("-arithmetic",),
        "restart": ("-restart", "1"),
        "rgb": ("-rgb",),
        "grey of colour": ("-grayscale",),
    }.items():
        yield f"{name}.jpg", run("cjpeg", "-quality", "95", *arguments, stdin=colour)
    raw = (smooth(4)).tobytes()
    form = ("-size", f"{WIDTH}x{HEIGHT}", "-depth", "8", "cmyk:-", "-quality", "95", "-sampling-factor", "1x1")
    ink = run("convert", *form, "jpg:-", stdin=raw)
    yield "ink.jpg", ink
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
    bare = ink[: ink.index(b"\xff\xee")] + ink[ink.index(b"\xff\xee") + 16 :] if b"\xff\xee" in ink else ink
    yield "cmyk, no marker.jpg", bare
    yield "cmyk, adobe.jpg", bare[:2] + adobe + b"\0" + bare[2:]
    yield "ycck, adobe.jpg", bare[:2] + adobe + b"\2" + bare[2:]
    rgb = run("cjpeg", "-quality", "95", "-rgb", stdin=colour)
    yield "rgb, adobe.jpg", rgb


def webps(folder: Path) -> Iterator[tuple[str, bytes]]:
    source, target = folder / "in.png", folder / "out.webp"
    fine = smooth(4)
    for name, pixels, kind in (("rgb", smooth(3), 2), ("rgba", fine, 6)):
        source.write_bytes(png(pixels, kind, 8))
        for way, arguments in {
            "lossless": ("-lossless", "-exact"),
            "lossy": ("-q", "95"),
            "lossy alpha": ("-q", "95", "-alpha_q", "50"),
        }.items():
            run("cwebp", "-quiet", *arguments, source, "-o", target)
            yield f"{name} {way}.webp", target.read_bytes()


def avifs(folder: Path) -> Iterator[tuple[str, bytes]]:
    source, target = folder / "in.png", folder / "out.avif"
    for name, kind, channels in (("grey", 0, 1), ("rgb", 2, 3), ("rgba", 6, 4)):
        for bits in (8, 10, 12):
            source.write_bytes(png(smooth(channels, 16 if bits > 8 else 8), kind, 16 if bits > 8 else 8))
            for layout in ("400",) if channels == 1 else ("444", "420"):
                run("avifenc", "-s", "8", "--min", "0", "--max", "4", "-d", bits, "-y", layout, source, target)
                yield f"{name} {bits} {layout}.avif", target.read_bytes()
    source.write_bytes(png(smooth(4), 6, 8))
    for name, arguments in {
        "lossless": ("-l",),
        "premultiplied": ("--premultiply", "--min", "0", "--max", "4"),
        "limited": ("-r", "limited", "--min", "0", "--max", "4"),
        "bt709": ("--cicp", "1/13/1", "--min", "0", "--max", "4"),
        "turned": ("--irot", "1", "--min", "0", "--max", "4"),
        "mirrored": ("--imir", "0", "--min", "0", "--max", "4"),
        "turned and mirrored": ("--irot", "3", "--imir", "1", "--min", "0", "--max", "4"),
    }.items():
        run("avifenc", "-s", "8", *arguments, source, target)
        yield f"rgba {name}.avif", target.read_bytes()


# --- other decoders


def imagemagick(file: Path) -> np.ndarray:
    """(height, width, 4) uint8. A GIF's first frame is laid on a transparent canvas, as browsers show it."""
    first = f"{file.suffix[1:]}:{file}[0]"
    raw = run("convert", first, "-colorspace", "sRGB", "-depth", "16", "RGBA:-")
    width, height, *place = map(int, run("convert", first, "-format", "%w %h %W %H %X %Y", "info:").split())
    pixels = (np.frombuffer(raw, "<u2").reshape(height, width, 4) >> 8).astype(np.uint8)
    if file.suffix != ".gif":
        return pixels
    canvas_width, canvas_height, left, top = place
    canvas = np.zeros((canvas_height, canvas_width, 4), np.uint8)
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def libvips(file: Path, folder: Path) -> np.ndarray:
    target = folder / "vips.png"
    run("vips", "colourspace", file, folder / "vips.v", "srgb")
    run("vips", "copy", folder / "vips.v", target)
    return imagemagick(target)


def avifdec(file: Path, case: str) -> np.ndarray:
    """libheif, which the others use, leaves the alpha out. Turning (ISO 23008-12, 6.5.10 and 6.5.12) is left to us."""
    target = file.with_suffix(".png")
    run("avifdec", file, target)
    pixels = imagemagick(target)
    if case.endswith("turned.avif"):
        pixels = np.rot90(pixels)
    if case.endswith("mirrored.avif"):
        pixels = np.rot90(pixels, 3)[:, ::-1] if "turned" in case else pixels[::-1]
    return pixels


def composed(rgba: np.ndarray) -> np.ndarray:
    """On grey: what is transparent has no colour."""
    alpha = rgba[:, :, 3:] / 255
    return rgba[:, :, :3] * alpha + 128 * (1 - alpha)


def _seen(file: Path, case: str, folder: Path) -> np.ndarray:
    if file.suffix == ".avif":
        return avifdec(file, case)
    if case.startswith(("white is zero 2", "white is zero 4")):
        return libvips(file, folder)  # ImageMagick 6 takes them for BlackIsZero
    pixels = imagemagick(file)
    if "unspecified" in case or case == "32 with a fourth byte.bmp":
        # TIFF 6.0, ExtraSamples: unspecified data is no alpha; neither are 32-bit BMP's unused bits without masks.
        pixels = pixels.copy()
        pixels[:, :, 3] = 255
    return pixels


def write(pictures: dict[str, tuple[bytes, np.ndarray]]) -> None:
    with tarfile.open(GOLDEN, "w:xz") as tar:
        for name, (data, pixels) in pictures.items():
            array = io.BytesIO()
            np.save(array, pixels, allow_pickle=False)
            for member, body in ((name, data), (f"{name}.npy", array.getvalue())):
                info = tarfile.TarInfo(member)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))


def read() -> dict[str, tuple[bytes, np.ndarray]]:
    """name → bytes of the picture, pixels (height, width, 4) uint8."""
    with tarfile.open(GOLDEN) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    return {
        name: (data, np.load(io.BytesIO(files[f"{name}.npy"]), allow_pickle=False))
        for name, data in files.items()
        if not name.endswith(".npy")
    }


def main() -> None:
    pictures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [*pngs(), *tiffs(folder), *bmps(), *gifs(), *jpegs(), *webps(folder), *avifs(folder)]
        for number, (case, data) in enumerate(cases):
            file = folder / f"{number}{Path(case).suffix}"
            file.write_bytes(data)
            pixels = np.empty((0, 0, 4), np.uint8)
            try:
                pixels = _seen(file, case, folder)
                other = libvips(file, folder)
                if other.shape != pixels.shape:
                    print(f"{case}: libvips has {other.shape}, wanted {pixels.shape}")
                elif (worst := np.abs(composed(other) - composed(pixels)).max()) > 2:
                    print(f"{case}: libvips differs by {worst:.0f}")
            except subprocess.CalledProcessError as error:
                print(f"{case}: {error.cmd[0]}: {error.stderr[:200]}")
            pictures[case] = data, pixels
    write(pictures)


if __name__ == "__main__":
    main()
