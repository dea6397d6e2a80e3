"""Captions to token chunks and rows."""

import hashlib
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.cache.building import engine, text, tokens
from pipeline.cache.format import shards
from pipeline.cache.format.names import EMPTY_CAPTION
from pipeline.data import captions
from pipeline.stage import StageError
from stages import cache_text
from tests.cache.cache_samples import read_all
from tests.training.training_samples import params

BEGIN, END = 1000, 1001


class Words:
    """A tokenizer whose ids are the words themselves."""

    begin, end = BEGIN, END

    def __call__(self, caption: str) -> list[int]:
        return [int("".join(filter(str.isdigit, word)) or 0) for word in caption.split()]


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))


def write_captions(path, pairs, emphasis="none"):
    pictures = [hashlib.blake2b(str(n).encode(), digest_size=16).digest() for n in range(len(pairs))]
    table = {
        "image": pa.array(pictures, pa.binary(16)),
        "caption": pa.array([captions.name(*pair, emphasis) for pair in pairs], pa.binary(16)),
        "text": pa.array([first for first, _ in pairs]),
        "text_2": pa.array([second for _, second in pairs], pa.string()),
    }
    pq.write_table(pa.table(table), path)


def encode(ids_l, ids_g):
    """Hidden states that show the ids: CLIP-L's in channel 0, bigG's in channel 1. Pooled: the first two ids of
    each."""
    hidden = np.stack([ids_l, ids_g], axis=2).astype(np.float32)
    return hidden, np.concatenate([ids_l[:, :2], ids_g[:, :2]], axis=1).astype(np.float32)


def build(tmp_path, pairs, chunks=1, encoder=encode, batch_size=3, further=(), emphasis="none"):
    write_captions(tmp_path / "captions.parquet", pairs, emphasis)
    path, fingerprint = tmp_path / "captions.parquet", {"clip_l": "1"}
    job = text.make_job(path, fingerprint, Words, lambda: encoder, chunks, batch_size, further, emphasis, 1)
    report = engine.build(job, tmp_path / "out")
    path = tmp_path / "out" / shards.shard_name(0, 1)
    return report, {row["row"]: row for row in read_all(path, shards.TEXT)}


def context(row) -> np.ndarray:
    return np.frombuffer(row["context"], np.float16).reshape(row["tokens"], row["width"]).astype(int)


def test_further_texts_are_rows_too(tmp_path):
    report, rows = build(tmp_path, [("1 2", None)], further=["3", "1 2", "", "3"])
    assert report.encoded == 3 and set(rows) == {captions.name(text, None) for text in ("1 2", "3", "")}
    assert context(rows[captions.name("3", None)])[:3, 0].tolist() == [BEGIN, 3, END]


def as_written(row, channel) -> np.ndarray:
    return np.frombuffer(row["context"], np.float16).reshape(row["tokens"], row["width"])[:, channel].astype(np.float64)


def test_a_caption_with_weights_is_a_row_of_its_own_and_the_others_stay(tmp_path):
    """The mean over an encoder's states is kept, and the pooled embedding is that of the words."""
    pairs = [("1 2", None), ("1 (2:3)", None), ("1 2", "([7])")]
    plain, before = build(tmp_path, pairs)
    assert plain.encoded == 4
    report, rows = build(tmp_path, pairs, emphasis="a1111", further=["(4)", "1 2"])
    assert report.encoded == 3  # two captions and a preview; not those without weights
    assert rows[EMPTY_CAPTION] == before[EMPTY_CAPTION]
    words, heavy, of_g = rows[captions.name("1 2", None)], *(rows[captions.name(*pair, "a1111")] for pair in pairs[1:])
    assert words == before[captions.name("1 2", None)] and captions.name("(4)", None, "a1111") in rows
    for channel, pad in ((0, [END] * 74), (1, [END, *[0] * 73])):
        states, weights = np.array([BEGIN, 1, 2, *pad], float), np.ones(77)
        weights[2] = 3
        wanted = states * weights * (states.mean() / (states * weights).mean())
        np.testing.assert_allclose(as_written(heavy, channel), wanted, rtol=1e-3)
    assert heavy["pooled"] == words["pooled"] and heavy["caption_tokens"] == words["caption_tokens"] == 4
    np.testing.assert_array_equal(as_written(of_g, 0), as_written(words, 0))  # whose weight is 1.1 / 1.1
    assert build(tmp_path, pairs, emphasis="a1111")[0].encoded == build(tmp_path, pairs)[0].encoded == 0


def test_weights_go_on_over_chunks(tmp_path):
    ids = list(range(1, 101))
    long = " ".join(map(str, ids[:70])) + " (" + " ".join(map(str, ids[70:])) + ":2)"
    _, rows = build(tmp_path, [(long, None)], chunks=2, emphasis="a1111")
    found = as_written(rows[captions.name(long, None, "a1111")], 0)
    whole = np.array([BEGIN, *ids[:75], END, BEGIN, *ids[75:], *[END] * 51], float).reshape(2, 77)
    weights = np.ones((2, 77))
    weights[0, 71:76], weights[1, 1:26] = 2, 2
    wanted = whole * weights * (whole.mean(1) / (whole * weights).mean(1))[:, None]
    np.testing.assert_allclose(found, [wanted[0, 0], *wanted[0, 1:76], *wanted[1, 1:76], wanted[1, 76]], rtol=1e-3)


def test_an_index_of_another_emphasis_makes_no_rows(tmp_path):
    """They would be kept under names that promise something else."""
    write_captions(tmp_path / "captions.parquet", [("(1)", None)], "a1111")
    job = text.make_job(tmp_path / "captions.parquet", {"clip_l": "1"}, Words, lambda: encode, 1, 3)
    with pytest.raises(StageError, match="made with another cache_text.emphasis than none.*run `dvc repro index`"):
        engine.build(job, tmp_path / "out")
    assert not list((tmp_path / "store/cache").rglob("*.parquet"))


def test_weights_that_leave_no_mean_name_the_caption(tmp_path):
    def first_word_alone(ids_l, ids_g):
        hidden, pooled = encode(ids_l, ids_g)
        hidden[:, 0] = hidden[:, 2:] = 0
        return hidden, pooled

    with pytest.raises(StageError, match="caption .*: the encoder's result is NaN"):
        build(tmp_path, [("(1:0) 2", None)], emphasis="a1111", encoder=first_word_alone)


def test_each_caption_once_and_the_empty_one(tmp_path):
    report, rows = build(tmp_path, [("1 2", None), ("3", None), ("1 2", None), ("1 2", "7")])
    assert report.encoded == 4
    assert set(rows) == {EMPTY_CAPTION, captions.name("1 2", None), captions.name("3", None), captions.name("1 2", "7")}


def test_an_empty_caption_in_the_data_is_the_same_row(tmp_path):
    report, rows = build(tmp_path, [("", None), ("3", None)])
    assert report.encoded == 2 and EMPTY_CAPTION in rows


def test_each_encoder_pads_in_its_own_way_and_reads_its_own_caption(tmp_path):
    _, rows = build(tmp_path, [("1 2", None), ("1 2", "7")])
    same, other = context(rows[captions.name("1 2", None)]), context(rows[captions.name("1 2", "7")])
    assert same[:, 0].tolist() == [BEGIN, 1, 2] + [END] * 74  # CLIP-L pads with the end of text
    assert same[:, 1].tolist() == [BEGIN, 1, 2, END] + [0] * 73  # OpenCLIP pads with 0
    assert other[:, 0].tolist() == same[:, 0].tolist()
    assert other[:, 1].tolist() == [BEGIN, 7, END] + [0] * 74
    assert np.frombuffer(rows[captions.name("1 2", "7")]["pooled"], np.float32).tolist() == [BEGIN, 1, BEGIN, 7]


def kohya_chunks(ids: list[int], total: int, end_pads: bool) -> list[list[int]]:
    """The rule of sd-scripts' get_input_ids, written from its description: the tokenizer pads or cuts the caption to
    75 * n + 2, each stretch of 75 gets the first and last id of the whole; where padding is not the end token, a chunk
    that ends within the caption ends in the end token, and one that begins with padding begins with the end token."""
    pad = END if end_pads else 0
    whole = [BEGIN, *ids[: total - 2], END]
    whole += [pad] * (total - len(whole))
    chunks = []
    for start in range(1, total - 1, 75):
        chunk = [whole[0], *whole[start : start + 75], whole[-1]]
        if not end_pads:
            if chunk[-2] not in (END, pad):
                chunk[-1] = END
            if chunk[1] == pad:
                chunk[1] = END
        chunks.append(chunk)
    return chunks


@pytest.mark.parametrize("count", [0, 1, 74, 75, 76, 149, 150, 151, 224, 225, 300])
@pytest.mark.parametrize("end_pads", [True, False])
def test_chunks_are_kohyas(count, end_pads):
    ids = list(range(1, count + 1))
    ours = tokens.chunk(ids, 3, BEGIN, END, pad=END if end_pads else 0)
    assert ours.tolist() == kohya_chunks(ids, 227, end_pads)


def test_long_captions_are_encoded_in_chunks_and_joined(tmp_path):
    long = " ".join(str(n) for n in range(1, 201))
    _, rows = build(tmp_path, [(long, None), ("5", None)], chunks=3)
    row = rows[captions.name(long, None)]
    assert (row["tokens"], row["caption_tokens"]) == (227, 202)
    assert context(row)[:, 0].tolist() == [BEGIN, *range(1, 201)] + [END] * 26
    assert context(rows[captions.name("5", None)]).shape == (227, 2)
    assert np.frombuffer(row["pooled"], np.float32).tolist() == [BEGIN, 1, BEGIN, 1]  # of the first chunk


def test_captions_over_77_tokens_are_counted(tmp_path):
    texts = [" ".join("1" for _ in range(n)) for n in (75, 76, 150, 151)]
    build(tmp_path, [(caption, None) for caption in texts])
    assert text.count_long(tmp_path / "out", chunks=1) == (3, 3, 5)
    assert text.count_long(tmp_path / "out", chunks=2) == (1, 3, 5)


def test_an_edited_caption_encodes_one(tmp_path):
    build(tmp_path, [("1", None), ("2", None)])
    assert build(tmp_path, [("1", None), ("9", None)])[0].encoded == 1
    assert build(tmp_path, [("1", None), ("2", None)])[0].encoded == 0


def test_a_broken_result_names_the_caption(tmp_path):
    def broken(ids_l, ids_g):
        hidden, pooled = encode(ids_l, ids_g)
        pooled[ids_l[:, 1] == 2] = np.inf
        return hidden, pooled

    with pytest.raises(StageError, match="caption '2': its pooled embedding is infinite"):
        build(tmp_path, [("1", None), ("2", None)], encoder=broken)


@pytest.mark.parametrize("edited", ["tokenizer/vocab.json", "outs/convert/clip_g.ckpt", None])
def test_files_that_are_edited_before_they_are_read_make_no_rows(tmp_path, monkeypatch, edited):
    """Else the store would keep one tokenizer's rows under another's name."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "outs/convert/clip_l.ckpt",
        "outs/convert/clip_g.ckpt",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first")
    (tmp_path / "outs/index").mkdir()
    write_captions(tmp_path / cache_text.CAPTIONS, [("1 2", None)])

    def reads(name, value):
        def read(*_):
            if edited and edited.startswith(name):
                (tmp_path / edited).write_text("second")
            return value

        return read

    stub = SimpleNamespace(setup=lambda target: target)
    monkeypatch.setattr(pipeline, "device", stub, raising=False)
    monkeypatch.setitem(sys.modules, "pipeline.device", stub)
    encoders = SimpleNamespace(text_encoder=reads("outs", encode))
    monkeypatch.setitem(sys.modules, "pipeline.models.encode", encoders)
    monkeypatch.setattr(cache_text, "Tokenizer", reads("tokenizer", Words()))
    monkeypatch.setattr(cache_text, "check_vocabulary", lambda *_: None)  # "first" is no vocabulary
    settings = params(**{"model.tokenizer": "tokenizer"})
    if edited:
        name = "tokenizer" if "tokenizer" in edited else "clip_g"
        with pytest.raises(StageError, match=f"{name} of the encoders changed while this stage ran"):
            cache_text.main(settings)
        assert not list((tmp_path / "store/cache").rglob("*.parquet")) and not (tmp_path / "outs/text").exists()
    else:
        cache_text.main(settings)
        assert list((tmp_path / "outs/text").iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 0}', "has 1 tokens and the text encoders of model.config sdxl-base know 49408"),
        ("[1, 2]", "has no tokens"),
        ("{", "is not a vocabulary in JSON"),
        ("[" * 100_000, "is not a vocabulary in JSON"),
        (b"\xff", "is not a vocabulary in JSON"),
    ],
)
def test_a_vocabulary_that_is_not_the_encoders_is_refused(tmp_path, text, said):
    (tmp_path / "vocab.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "merges.txt").touch()
    with pytest.raises(StageError, match=f"vocab.json {said}"):
        tokens.check_vocabulary(tmp_path, 49408, "sdxl-base")


def test_the_vocabulary_of_the_encoders_is_taken(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").touch()
    tokens.check_vocabulary(tmp_path, 2, "tiny")


def test_a_broken_tokenizer_is_said_without_a_traceback(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_bytes(b"#version\na b c d e\n\xff")
    with pytest.raises(StageError, match="is not a CLIP tokenizer"):
        tokens.Tokenizer(tmp_path)
