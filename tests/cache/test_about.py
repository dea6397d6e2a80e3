"""What a shard says of itself, and the code of docs/formats.md that goes by it."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cache.format import shards
from pipeline.cache.format.about import about
from tests.cache.cache_samples import caption, latent

FORMATS = (Path(__file__).parents[2] / "docs/formats.md").read_text()
FINGERPRINT = {"vae": "0" * 32, "config": "sdxl-base", "store": "moments"}


@pytest.fixture
def outs(tmp_path, monkeypatch):
    """outs/latents with one shard, whose rows are given back sorted."""
    monkeypatch.chdir(tmp_path)
    folder = Path("outs/latents")
    folder.mkdir(parents=True)
    rows = sorted((latent(bytes([n]) * 16, (96, 64)) for n in range(3)), key=lambda row: row["row"])
    shards.write(folder / shards.shard_name(0, 1), shards.LATENTS, rows, FINGERPRINT)
    return rows


@pytest.mark.parametrize("kind", shards.KINDS.values(), ids=list(shards.KINDS))
def test_every_column_is_explained(kind):
    explained = about(kind.name, {"config": "sdxl-base", "store": "moments"})
    named = [name for key in explained for name in key.split(", ")]
    named += [name for entry in explained.values() if isinstance(entry, dict) for name in entry["shape"]]
    assert sorted(named) == sorted(kind.schema.names)
    assert all(entry["dtype"][0] == "<" and entry["order"] == "C" for entry in map(explained.get, kind.payloads))


def test_the_scale_is_sdxls(outs):
    (path,) = Path("outs/latents").iterdir()
    said = json.loads(pq.read_metadata(path).metadata[b"about"])["latent"]
    assert said["scaling_factor"] == 0.13025 and "mean" in said["channels"]
    assert about("latents", FINGERPRINT | {"store": "mean"})["latent"]["channels"].startswith("the mean")


def test_the_text_rows_decode_as_they_say(tmp_path):
    row = caption("a cat")
    shards.write(tmp_path / "a.parquet", shards.TEXT, [row], {"config": "tiny"})
    said = json.loads(pq.read_metadata(tmp_path / "a.parquet").metadata[b"about"])
    stored = pq.read_table(tmp_path / "a.parquet").to_pylist()[0]
    for name, size in (("context", 2), ("pooled", 4)):
        shape = [stored[column] for column in said[name]["shape"]]
        values = np.frombuffer(stored[name], said[name]["dtype"]).reshape(shape)
        assert values.dtype.itemsize == size and values.tobytes() == row[name]
    assert said["context"]["width"] == "the first 64 are CLIP-L's, the other 96 bigG's"


def test_the_documents_code_decodes_a_row(outs):
    pytest.importorskip("pandas")
    (code,) = re.findall(r"```python\n(.*?)```", FORMATS, re.DOTALL)
    found: dict = {}
    exec(code, found)
    # by hand: little-endian halves, channels first, mean before log variance
    values = np.array([int.from_bytes(outs[0]["latent"][i : i + 2], "little") for i in range(0, 8 * 8 * 12 * 2, 2)])
    values = values.astype(np.uint16).view(np.float16).reshape(8, 8, 12).astype(np.float32)
    assert np.array_equal(found["mean"], values[:4]) and np.array_equal(found["log_variance"], values[4:])
    noise = np.random.default_rng(0).standard_normal((4, 8, 12))
    assert np.allclose(found["unet_input"], 0.13025 * (values[:4] + np.sqrt(np.exp(values[4:])) * noise), rtol=1e-5)


def test_the_documents_queries_run(outs):
    duckdb = pytest.importorskip("duckdb")
    queries = re.findall(r"`(SELECT .*?)`", FORMATS, re.DOTALL)
    assert len(queries) == 2
    rows, said = (duckdb.sql(query).fetchall() for query in queries)
    wanted = [(row["row"].hex().upper(), 8, 8, 12, row["latent"]) for row in outs]
    assert rows == wanted
    assert json.loads(said[0][0]) == about("latents", FINGERPRINT)
