"""Every mode and bit depth of the accepted formats against other decoders (tests/golden/make_pictures.py)."""

import re
import struct

import numpy as np
import pytest

from pipeline.data import images
from tests.golden import make_pictures

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as pipeline/data/images.py does outside pytest
GOLDEN = make_pictures.read()
# What is refused by name. Everything else has to be read.
REFUSED = re.compile(
    r"(grey|white is zero|rgb) (32|8 signed|16 signed|32 signed|float|half float) .*tif"
    r"|(white is zero 12 ..|grey 12 be|lab .*|(white|cmyk) (alpha|premultiplied) .*)\.tif"
    r"|white unspecified .*tif|(grey|cmyk) unspecified 16 .*tif|grey (alpha|premultiplied) 16 .*tif"
    r"|(grey alpha 8|two more samples|rgba, extra samples not named), (.*, )?separate\.tif"
    r"|16 1555 v5\.bmp|16 4444 v5\.bmp|32 10 bit\.bmp"
)
# Where decoders are free: chroma of half the size is stretched in their own ways, premultiplied colour is divided and
# rounded at 8 or at 16 bits, YCbCr by tables of 8 bits or in one go.
TOLERANCE = {r".*(10|12) 420\.avif": 24, r".*\.avif|rgb premultiplied 16.*|ycbcr.*": 2}


@pytest.mark.parametrize("name", [name for name in GOLDEN if not REFUSED.fullmatch(name)])
def test_pixels_are_those_of_another_decoder(name):
    data, pixels = GOLDEN[name]
    tolerance = next((value for pattern, value in TOLERANCE.items() if re.fullmatch(pattern, name)), 1)
    alpha = pixels[:, :, 3:] / 255
    for background in ((0, 0, 0), (250, 128, 10)):
        wanted = pixels[:, :, :3] * alpha + np.array(background) * (1 - alpha)
        found = images.decode(data, background)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= tolerance + 0.5 + 1e-9, np.abs(found - wanted).max()


@pytest.mark.parametrize("name", [name for name in GOLDEN if REFUSED.fullmatch(name)])
def test_what_cannot_be_read_right_is_refused_by_name(name):
    with pytest.raises(images.Rejected, match="unsupported pixels: (TIFF of|BMP of|BMP Unsupported)"):
        images.decode(GOLDEN[name][0], (0, 0, 0))


def test_most_are_read():
    refused = [name for name in GOLDEN if REFUSED.fullmatch(name)]
    assert len(GOLDEN) > 450 and len(refused) < len(GOLDEN) / 5


def test_palette_with_alpha():
    colours, pixels = np.random.default_rng(1).integers(0, 65536, (256, 3)), make_pictures.noise(2)
    alpha = pixels[:, :, 1:] / 255
    for order in "<>":
        data = make_pictures.tiff(pixels, 8, 3, order, (2,), colormap=colours)
        wanted = (colours[pixels[:, :, 0]] >> 8) * alpha + 90 * (1 - alpha)
        assert np.abs(images.decode(data, (90, 90, 90)) - wanted).max() <= 1


def test_subsampled_ycbcr_without_compression():
    """TIFF 6.0, section 21: 2×2 of Y, then Cb and Cr. ImageMagick 6 reads such files wrong, so this is the equation."""
    units = np.random.default_rng(2).integers(0, 256, (6, 7, 6), np.uint8)
    data = make_pictures.tiff(units.reshape(12, 21, 1), 8, 6, "<", more=((530, 3, [2, 2]),))
    tags = {256: (21, 14), 277: (1, 3)}
    for tag, (found, wanted) in tags.items():
        for kind in (3, 4):
            old, new = (struct.pack("<HHII", tag, kind, 1, value) for value in (found, wanted))
            data = data.replace(old, new)
    luma = units[:, :, :4].reshape(6, 7, 2, 2).transpose(0, 2, 1, 3).reshape(12, 14).astype(float)
    blue, red = (np.kron(units[:, :, place].astype(float) - 128, np.ones((2, 2))) for place in (4, 5))
    wanted = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], 2)
    assert np.abs(images.decode(data, (0, 0, 0)) - wanted.clip(0, 255)).max() <= 1.5
