"""Pictures to latent rows."""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cache.building import engine, latents
from pipeline.cache.building.pictures import as_input, as_pixels, reduce_moments
from pipeline.cache.format import shards
from pipeline.cache.format.names import latent_row
from pipeline.cache.format.preparation import Preparation
from pipeline.data import geometry
from pipeline.data.sources import open_source
from pipeline.stage import StageError
from tests.cache.cache_samples import read_all

CENTER = Preparation("moments", "center", 1, False, "lanczos", (255, 255, 255))
BUCKET = (64, 48)  # width, height


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))


@pytest.fixture
def pictures(tmp_path):
    """Four pictures, one of them in the folder twice, and one that was rejected."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (50, 100 + number, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "copy.png").write_bytes((folder / "2.png").read_bytes())
    (folder / "z.png").write_bytes(b"broken")
    write_index(tmp_path)
    return tmp_path


def write_index(root, bucket=BUCKET):
    files = sorted((root / "images").iterdir())
    data = [path.read_bytes() for path in files]
    sizes = [Image.open(io.BytesIO(one)).size if one != b"broken" else (0, 0) for one in data]
    numbers = [*zip(*sizes, strict=True), [bucket[0]] * len(files), [bucket[1]] * len(files)]
    table = {"image": pa.array([hashlib.blake2b(one, digest_size=16).digest() for one in data], pa.binary(16))}
    table["path"] = pa.array([path.name for path in files])
    for name, column in zip(("width", "height", "bucket_width", "bucket_height"), numbers, strict=True):
        table[name] = pa.array(column, pa.int32())
    table["rejected"] = pa.array([None if one != b"broken" else "not an image" for one in data], pa.string())
    table["mask"] = pa.nulls(len(data), pa.string())
    table["focus"] = pa.nulls(len(data), pa.list_(pa.float32()))
    table["views"] = pa.nulls(len(data), pa.list_(pa.int32()))
    pq.write_table(pa.table(table), root / "images.parquet")


def encode(pixels: np.ndarray) -> np.ndarray:
    """Moments that show the pixels: the mean of each 8 x 8 block's channels, then a log variance of log(0.25)."""
    b, _, height, width = pixels.shape
    blocks = pixels.reshape(b, 3, height // 8, 8, width // 8, 8).mean(axis=(3, 5))
    variance = np.full((b, 4, height // 8, width // 8), np.log(0.25))
    return np.concatenate([blocks, blocks[:, :1], variance], axis=1).astype(np.float32)


def build(root, preparation=CENTER, encoder=encode, batch_size=3):
    job = latents.make_job(
        root / "images.parquet",
        open_source(str(root / "images")),
        preparation.fingerprint,
        preparation,
        lambda: encoder,
        batch_size,
        2,
    )
    report = engine.build(job, root / "out")
    path = root / "out" / shards.shard_name(0, 1)
    return report, {row["row"]: row for row in read_all(path, shards.LATENTS)}


def values(row) -> np.ndarray:
    return np.frombuffer(row["latent"], np.float16).reshape(row["channels"], row["latent_height"], row["latent_width"])


def name(root, file: str) -> bytes:
    return hashlib.blake2b((root / "images" / file).read_bytes(), digest_size=16).digest()


def test_each_content_once_with_its_numbers(pictures):
    report, rows = build(pictures)
    assert report.encoded == 4 and len(rows) == 4
    row = rows[latent_row(name(pictures, "1.png"), False, 0)]
    prepared = geometry.prepare((pictures / "images/1.png").read_bytes(), BUCKET, "center", "lanczos", (255, 255, 255))
    expected = encode(prepared.pixels.transpose(2, 0, 1)[None].astype(np.float64) / 127.5 - 1)[0]
    assert np.abs(values(row) - expected).max() < 1e-3
    wanted = {
        "original_height": 50,
        "original_width": 101,
        "crop_top": 0,
        "target_height": 48,
        "target_width": 64,
        "flip": 0,
    }
    assert {key: row[key] for key in wanted} == wanted
    assert row["crop_left"] == prepared.crop_top_left[1] > 0
    assert row["image"] == name(pictures, "1.png")


def test_renamed_and_removed_pictures_encode_nothing_and_edited_ones_do(pictures):
    build(pictures)
    (pictures / "images/1.png").rename(pictures / "images/renamed.png")
    (pictures / "images/3.png").unlink()
    write_index(pictures)
    assert build(pictures)[0].encoded == 0
    Image.new("RGB", (80, 60), "red").save(pictures / "images/0.png")
    write_index(pictures)
    report, rows = build(pictures)
    assert report.encoded == 1 and len(rows) == 3


def test_another_bucket_encodes_again_and_going_back_does_not(pictures):
    _, first = build(pictures)
    write_index(pictures, bucket=(48, 64))
    report, second = build(pictures)
    assert report.encoded == 4 and first.keys() == second.keys()
    write_index(pictures)
    assert build(pictures)[0].encoded == 0


def test_a_mirrored_row_mirrors_the_same_crop(pictures):
    _, rows = build(pictures, Preparation("moments", "random", 2, True, "lanczos", (255, 255, 255)))
    assert len(rows) == 16
    image = name(pictures, "0.png")
    lefts = set()
    for crop in range(2):
        plain, mirrored = rows[latent_row(image, False, crop)], rows[latent_row(image, True, crop)]
        assert np.abs(values(plain)[..., ::-1] - values(mirrored)).max() < 1e-2
        resized_width = 96  # 100 x 50 covers 64 x 48 at 96 x 48
        assert plain["crop_left"] + mirrored["crop_left"] == resized_width - 64
        assert plain["crop_top"] == mirrored["crop_top"] and (plain["flip"], mirrored["flip"]) == (0, 1)
        lefts.add(plain["crop_left"])
    assert len(lefts) == 2  # the two crops of this picture differ


def test_more_crops_keep_the_crops_that_are_there(pictures):
    build(pictures, Preparation("moments", "random", 1, False, "lanczos", (255, 255, 255)))
    report, rows = build(pictures, Preparation("moments", "random", 3, True, "lanczos", (255, 255, 255)))
    assert (report.encoded, len(rows)) == (20, 24)


def test_mean_and_sample_are_four_channels_of_the_posterior(pictures):
    _, moments = build(pictures)
    _, mean = build(pictures, Preparation("mean", "center", 1, False, "lanczos", (255, 255, 255)))
    sampling = Preparation("sample", "center", 1, False, "lanczos", (255, 255, 255))
    _, sample = build(pictures, sampling)
    draws = []
    for row in moments:
        assert np.array_equal(values(mean[row]), values(moments[row])[:4])
        draws.append((values(sample[row]).astype(float) - values(mean[row])) / 0.5)  # the standard deviation is 0.5
    draws = np.stack(draws)
    assert abs(draws.mean()) < 4 / np.sqrt(draws.size) and abs(draws.std() - 1) < 4 / np.sqrt(2 * draws.size)
    again = reduce_moments(encode(np.zeros((1, 3, 48, 64)))[0], "sample", b"0" * 16)
    assert np.array_equal(again, reduce_moments(encode(np.zeros((1, 3, 48, 64)))[0], "sample", b"0" * 16))


def test_a_picture_edited_after_the_index_is_an_error_that_names_it(pictures):
    Image.new("RGB", (100, 50), "red").save(pictures / "images/0.png")
    with pytest.raises(StageError, match="picture 0.png is not the one that the index read: .*`touch .*/images/0.png`"):
        build(pictures)
    assert not (pictures / "out").exists()


@pytest.mark.parametrize("value, reason", [(np.nan, "NaN"), (np.inf, "infinite"), (1e5, "too large for float16")])
def test_a_latent_that_cannot_be_stored_names_the_picture(pictures, value, reason):
    Image.new("RGB", (100, 50), (9, 9, 9)).save(pictures / "images/bad.png")
    write_index(pictures)

    def broken(pixels):
        result = encode(pixels)
        result[np.ptp(pixels, axis=(1, 2, 3)) == 0, 5] = value
        return result

    with pytest.raises(StageError, match=f"picture bad.png: the encoder's result is {reason}; .*float32"):
        build(pictures, encoder=broken)


def test_pixels_survive_the_way_to_the_encoder_and_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(as_pixels(as_input(pixels)), pixels)
    assert (as_input(pixels).min(), as_input(pixels).max()) == (-1, 1)
