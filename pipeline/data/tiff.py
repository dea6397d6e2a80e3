"""TIFF (revision 6.0): which kinds of pixels are read, and what Pillow leaves to its caller.

A file may hold samples of any number, width and meaning. Those that are not known to be read right are refused by name."""

import io

from PIL import ImagePalette, TiffImagePlugin
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    COMPRESSION,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    TiffImageFile,
)

# libtiff for uncompressed files too: Pillow's own reader takes WhiteIsZero in planes for BlackIsZero, and knows no
# subsampled YCbCr.
TiffImagePlugin.READ_LIBTIFF = True
_OPEN_INFO = TiffImagePlugin.OPEN_INFO  # (byte order, photometric, sample format, fill order, bits, extra) → modes
_OPEN_INFO[b"MM", 0, (1,), 1, (16,), ()] = ("I;16B", "I;16B")  # as it has it for b"II"; we turn both, see is_white_zero
# libtiff turns the bits of fill order 2 itself, and Pillow then takes the modes of fill order 1.
_OPEN_INFO |= {
    (*key[:3], 2, *key[4:]): modes for key, modes in _OPEN_INFO.items() if (*key[:3], 2, *key[4:]) not in _OPEN_INFO
}

_PHOTOMETRIC = {
    0: "grey (white is 0)",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "L*a*b*",
}
_SAMPLE_FORMAT = {1: "", 2: "signed ", 3: "float ", 4: "", 5: "complex ", 6: "complex "}
_EXTRA = {0: "unnamed", 1: "premultiplied alpha", 2: "alpha"}
_DEPTHS = {0: (1, 2, 4, 8, 16), 1: (1, 2, 4, 8, 12, 16), 2: (8, 16), 3: (1, 2, 4, 8), 5: (8, 16), 6: (8,)}
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
_JPEG, _OLD_JPEG = 7, 6


def open_tiff(data: bytes) -> TiffImageFile:
    """The first picture's header.

    Raises NotImplementedError with the name of the pixels when they are not known to be read right, and what Pillow
    raises on a broken file."""
    stream = io.BytesIO(data)
    head = stream.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head + (stream.read(8) if head[2:4] in (b"+\0", b"\0+") else b""))
    stream.seek(tags.next)
    tags.load(stream)
    if PHOTOMETRIC_INTERPRETATION not in tags:
        raise ValueError("no tag says what the pixels mean")
    if not _is_known(tags):
        raise NotImplementedError(_named(tags))
    try:
        image = TiffImageFile(io.BytesIO(data))
    except SyntaxError as error:
        if "unknown pixel mode" in str(error):
            raise NotImplementedError(_named(tags)) from None
        raise
    if image.mode in ("P", "PA") and max(tags[COLORMAP]) < 256:  # 8 bits in the place of 16, which libtiff takes too
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[COLORMAP]))
    return image


def depth(image: TiffImageFile) -> int:
    """Bits of a sample."""
    return image.tag_v2.get(BITSPERSAMPLE, (1,))[0]


def is_white_zero(image: TiffImageFile) -> bool:
    return image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _is_known(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    photometric, bits, extra = tags.get(PHOTOMETRIC_INTERPRETATION), *_samples(tags)
    if tags.get(COMPRESSION) == _OLD_JPEG or photometric not in _DEPTHS:
        return False
    if set(tags.get(SAMPLEFORMAT, (1,))) - {1, 4} or len(set(bits)) != 1 or bits[0] not in _DEPTHS[photometric]:
        return False
    if tags.get(PLANAR_CONFIGURATION, 1) == 2 and photometric in (0, 1, 3) and len(bits) > 1:
        return False  # Pillow puts the alpha's plane elsewhere
    if tags.get(COMPRESSION) == _JPEG and bits[0] != 8:
        return False
    further = len(bits) - _COLOURS[photometric]
    if tags.get(PLANAR_CONFIGURATION, 1) == 2 and (further > 1 or further != len(extra)):
        return False
    return further >= 0


def _samples(tags: TiffImagePlugin.ImageFileDirectory_v2) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bits of each sample of a pixel, and the meaning of those beyond the colours."""
    bits = tuple(tags.get(BITSPERSAMPLE, (1,)))
    number = tags.get(SAMPLESPERPIXEL, 1)
    return bits * number if len(bits) == 1 and 1 < number < 100 else bits, tuple(tags.get(EXTRASAMPLES, ()))


def _named(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    bits, extra = _samples(tags)
    photometric = tags.get(PHOTOMETRIC_INTERPRETATION)
    sign = _SAMPLE_FORMAT.get(max(tags.get(SAMPLEFORMAT, (1,))), "unknown ")
    name = f"of {len(bits)} × {sign}{max(bits)} bits, {_PHOTOMETRIC.get(photometric, f'photometric {photometric}')}"
    if extra:
        name += " with " + ", ".join(_EXTRA.get(kind, "unknown") for kind in extra[:3])
    if tags.get(PLANAR_CONFIGURATION, 1) == 2:
        name += ", in planes"
    if tags.get(COMPRESSION) == _OLD_JPEG:
        name += ", old-style JPEG"
    return name
