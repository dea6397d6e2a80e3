"""What of a PNG its pixels need. Text, workflows and other metadata beside whole pixels are passed over, however large or
broken they are (PNG, W3C Recommendation, third edition)."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_LARGEST = 16 << 20  # bytes of a decompressed colour profile or XMP; the largest profiles in use have some 5 MB
HDR = {16: "PQ", 18: "HLG"}  # transfer functions of ITU-T H.273 that sRGB's range cannot hold


def open_png(data: bytes) -> PngImagePlugin.PngImageFile:
    """The picture's header. Of the metadata only what changes how it looks is left: the colour profile, EXIF and XMP,
    which hold the orientation, in `info`.

    Raises ValueError when the pixels are not whole, NotImplementedError when they mean what is not known here."""
    kept, info = [data[:8]], {}
    position, name = 8, b""
    while position + 12 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if not name.isalpha() or end > len(data):
            break  # cut or damaged: the reader finds that pixels are missing
        body = data[position + 8 : end - 4]
        if name == b"tRNS" and not _fits(body, data[25:26], kept):
            pass  # as libpng does: the pixels are whole
        elif name in _NEEDED:
            if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(data[end - 4 : end]):
                raise ValueError(f"bad checksum of {name.decode()}")
            kept.append(data[position:end])
        elif name[:1].isupper():  # a critical chunk: without it the pixels cannot be understood (section 5.4)
            raise NotImplementedError(f"with the chunk {name.decode()}")
        elif name == b"cICP" and body[1:2] and body[1] in HDR:
            raise NotImplementedError(f"with {HDR[body[1]]} brightness (HDR)")
        else:
            info |= _metadata(name, body)
        position = end
    image = PngImagePlugin.PngImageFile(io.BytesIO(b"".join(kept)))
    image.info |= info
    return image


def _fits(transparency: bytes, colour_type: bytes, chunks: list[bytes]) -> bool:
    """Whether a tRNS chunk has the length that it should have (section 11.3.1.1)."""
    if colour_type == b"\3":  # an alpha for each colour of the palette, or for the first of them
        colours = next(((len(chunk) - 12) // 3 for chunk in chunks if chunk[4:8] == b"PLTE"), 0)
        return 0 < len(transparency) <= colours
    return len(transparency) == {b"\0": 2, b"\2": 6}.get(colour_type)


def _metadata(name: bytes, body: bytes) -> dict:
    """The entry in Pillow's `info`; a profile that cannot be read is None."""
    if name == b"iCCP":
        return {"icc_profile": _inflate(body.partition(b"\0")[2][1:])}
    if name == b"eXIf":
        return {"exif": b"Exif\0\0" + body}
    if name == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
        packed, text = body[18:19] == b"\1", body[20:].split(b"\0", 2)[-1]
        text = _inflate(text) if packed else text
        return {} if text is None else {"xmp": text}
    if name == b"zTXt" and body.startswith(b"Raw profile type exif\0"):  # as ImageMagick writes EXIF
        text = _inflate(body[23:])
        return {} if text is None else {"Raw profile type exif": text.decode("latin-1")}
    return {}


def _inflate(packed: bytes) -> bytes | None:
    """None: broken, or larger than any real one."""
    stream = zlib.decompressobj()
    try:
        body = stream.decompress(packed, _LARGEST)
    except zlib.error:
        return None
    return body if stream.eof else None


def transparent_colour(image: PngImagePlugin.PngImageFile, data: bytes) -> Image.Image | None:
    """Of a loaded grey or RGB picture the alpha (mode L) that its transparent colour (tRNS) makes, compared at the full
    depth; None without one."""
    key = image.info.get("transparency")
    if key is None or image.mode == "P":
        return None
    bits = data[24]
    wanted = np.array(key) & ((1 << bits) - 1)  # the lower bits alone count (section 11.3.1.1)
    if image.mode == "1":
        is_clear = np.asarray(image) == bool(wanted)
    elif image.mode == "L":
        is_clear = np.asarray(image) == wanted * 255 // ((1 << bits) - 1)
    elif image.mode == "RGB":
        is_clear = (np.asarray(image) == (wanted >> 8 if bits == 16 else wanted)).all(2)
        if bits == 16:
            is_clear &= (_low_bytes(data) == (wanted & 255)).all(2)
    else:
        is_clear = np.asarray(image) == wanted
    return Image.fromarray(np.where(is_clear, 0, 255).astype(np.uint8))


def _low_bytes(data: bytes) -> np.ndarray:
    """(height, width, 3) uint8: what Pillow leaves out of 16-bit RGB, by reading it in the other order of bytes."""
    image = open_png(data)
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    return np.asarray(image)
