"""Every mode and bit depth of the accepted formats against other decoders (tests/golden/make_pictures.py)."""

import re

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
