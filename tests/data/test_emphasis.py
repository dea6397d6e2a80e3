"""Weights of words: how they are read, and what they do to hidden states, against A1111's own code."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.building import tokens
from pipeline.data import captions
from pipeline.data.emphasis import is_weighted, parse, pieces
from pipeline.stage import StageError
from tests.golden import emphasis_rule

ROOT = Path(__file__).resolve().parents[2]
SPECIAL = str.maketrans({letter: f"\\{letter}" for letter in "()[]\\"})


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("a fox", [("a fox", 1)]),
        ("", [("", 1)]),
        ("a (red) fox", [("a ", 1), ("red", 1.1), (" fox", 1)]),
        ("a (red:1.4) fox", [("a ", 1), ("red", 1.4), (" fox", 1)]),
        ("((red)) [[fox]]", [("red", 1.21), (" ", 1), ("fox", 1 / 1.21)]),
        ("(a (red:1.5) fox:0.5)", [("a ", 0.5), ("red", 0.75), (" fox", 0.5)]),
        ("(red)(fox)", [("redfox", 1.1)]),
        ("(red: .5 ) (fox:+2.)", [("red", 0.5), (" ", 1), ("fox", 2)]),
        ("[a (b] c)", [("a ", 1 / 1.1), ("b", 1), (" c", 1.1)]),
        (r"\(red\) fox", [("(red) fox", 1)]),
        (r"(fox \(animal\):1.3)", [("fox (animal)", 1.3)]),
        (r"a\\b", [("a\\b", 1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("()", [("", 1)]),
        # without a partner
        ("a (fox", [("a (fox", 1)]),
        ("a fox)", [("a fox)", 1)]),
        ("a ] fox [", [("a ] fox [", 1)]),
        ("((fox)", [("(", 1), ("fox", 1.1)]),
        ("(fox:1.2", [("(fox:1.2", 1)]),
        ("fox:1.2)", [("fox:1.2)", 1)]),
        ("a \\ b\\", [("a \\ b\\", 1)]),
        (":)", [(":)", 1)]),
        ("a\n(b\nc)", [("a\n", 1), ("b\nc", 1.1)]),
    ],
)
def test_how_brackets_are_read(text, wanted):
    found = parse(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in wanted]
    np.testing.assert_allclose([weight for _, weight in found], [weight for _, weight in wanted], rtol=1e-12)
    assert is_weighted(text) == (wanted != [(text, 1)])


def read_there() -> dict[str, list]:
    """Texts -> their pieces by A1111's parse_prompt_attention."""
    return json.loads((ROOT / "tests/golden/emphasis.json").read_text())


def alike(found: list, wanted: list) -> bool:
    """With the products of brackets in any order."""
    weights = [np.array([weight for _, weight in pieces]) for pieces in (found, wanted)]
    same = [piece for piece, _ in found] == [piece for piece, _ in wanted]
    return same and np.allclose(*weights, rtol=1e-12, atol=0)


def test_brackets_are_read_as_by_a1111():
    there = read_there()
    assert [text for text in emphasis_rule.TEXTS if not alike(parse(text), there[text])] == []
    assert len(emphasis_rule.TEXTS) > 200


@pytest.mark.parametrize("text", emphasis_rule.OTHERWISE)
def test_what_is_read_otherwise_than_by_a1111(text):
    """As docs/own-data.md says."""
    wanted = emphasis_rule.OTHERWISE[text]
    assert alike(parse(text), wanted) and not alike(wanted, read_there()[text])


@given(st.text(st.sampled_from("()[]\\:1.5a \n")))
def test_any_text_has_pieces_that_hold_its_letters(text):
    found = parse(text)
    assert found and np.isfinite([weight for _, weight in found]).all()
    assert all(left[1] != right[1] for left, right in zip(found, found[1:]))
    letters = "".join(piece for piece, _ in found).replace("\\", "")
    rest = iter(text)
    assert all(letter in rest for letter in letters)  # in their order
    assert letters.count("a") == text.count("a")


@given(st.text(st.sampled_from("([a: 1")) | st.text(st.sampled_from(")]a: 1")))
def test_brackets_without_a_partner_are_text(text):
    assert parse(text) == [(text, 1.0)] and not is_weighted(text)


@given(st.text(min_size=1), st.sampled_from([0.5, 1.3, -1.0, 2.0]))
def test_an_escaped_text_is_itself(text, weight):
    escaped = text.translate(SPECIAL)
    assert parse(escaped) == [(text, 1.0)]
    assert parse(f"({escaped}:{weight})") == [(text, weight)]


def test_long_rows_of_brackets_take_no_long_time():
    """Else they would take hours."""
    assert parse("(" * 50_000 + ")" * 50_000) == [("", 1.0)]
    assert parse("(" * 50_000 + ":" * 50_000)[0][1] == 1
    assert len(parse("(a" * 300 + ")" * 300)) == 300


@pytest.mark.parametrize("text", ["(" * 10_000 + "fox" + ")" * 10_000, "((fox:999999):2)", "a ((fox:-9999):9999)"])
def test_weights_too_large_to_compute_with_are_refused(text):
    """Before: NaN, after all captions before it were encoded, and the weights of the text encoders were blamed."""
    with pytest.raises(StageError, match="brackets in brackets weigh a word"):
        captions.name(text, None, "a1111")
    with pytest.raises(StageError, match="brackets in brackets weigh a word"):
        captions.name("fox", text, "a1111")
    with pytest.raises(StageError, match="wanted at most 1,000,000"):
        tokens.weighted(lambda piece: [1], text, "a1111")
    assert captions.name(text, None) and tokens.weighted(lambda piece: [1], text, "none")
    assert pieces("(fox:999999)") == [("fox", 999999)]


@given(st.text(), st.none() | st.text())
def test_captions_without_weights_keep_their_names(text, text_2):
    same = captions.name(text, text_2, "a1111") == captions.name(text, text_2)
    assert same != (is_weighted(text) or is_weighted(text_2))


def test_captions_with_weights_have_names_of_their_own():
    pairs = [("(a)", None), ("a", "(a)"), ("(a)", "a"), ("a", None), ("a", "a")]
    assert len({captions.name(*pair, emphasis) for pair in pairs for emphasis in ("none", "a1111")}) == 8


def chunks(ids: list[int], tokenizer: tokens.Tokenizer, pad: int) -> np.ndarray:
    return tokens.chunk(ids, emphasis_rule.CHUNKS, tokenizer.begin, tokenizer.end, pad)


def test_states_are_a1111s():
    """Ids and weights by its chunks, and states by its emphasis "Original"."""
    golden, tokenizer = np.load(ROOT / "tests/golden/emphasis.npz"), tokens.Tokenizer(ROOT / "data/tokenizer")
    width_l = emphasis_rule.WIDTHS[0]
    for number, text in enumerate(emphasis_rule.CASES):
        ids, weights = tokens.weighted(tokenizer, text, "a1111")
        both = [chunks(ids, tokenizer, pad) for pad in (tokenizer.end, 0)]
        for one, padded in enumerate(both):  # there padding is put in behind the first end, after this
            told = golden[f"{number}_ids_{one}"]
            ends = np.cumsum(told == tokenizer.end, axis=1)
            assert np.array_equal(np.where(ends - (told == tokenizer.end) > 0, (tokenizer.end, 0)[one], told), padded)
        of_both = np.stack([tokens.chunk_weights(weights, emphasis_rule.CHUNKS)] * 2)
        np.testing.assert_allclose(of_both[0], golden[f"{number}_weights"], rtol=1e-6)
        hidden = [emphasis_rule.hidden(padded, one) for one, padded in enumerate(both)]
        found = tokens.emphasised(np.concatenate(hidden, axis=2), of_both, width_l)
        assert found.dtype == np.float32
        for name, part in (("encoder_0", found[..., :width_l]), ("encoder_1", found[..., width_l:])):
            np.testing.assert_allclose(part, golden[f"{number}_{name}"], rtol=5e-6, atol=5e-6)


def test_words_behind_a_comma_are_not_moved_to_the_next_chunk():
    """As A1111 does by its setting comma_padding_backtrack, 20 as it comes."""
    moved, tokenizer = (
        np.load(ROOT / "tests/golden/emphasis.npz")["moved_ids"],
        tokens.Tokenizer(ROOT / "data/tokenizer"),
    )
    found = chunks(tokenizer(emphasis_rule.MOVED), tokenizer, tokenizer.end)
    comma = found[0].tolist().index(tokenizer(",")[0], 60)
    assert (
        np.array_equal(moved[0, : comma + 1], found[0, : comma + 1]) and (moved[0, comma + 1 :] == tokenizer.end).all()
    )
    assert np.array_equal(moved[1, 1 : 76 - comma], found[0, comma + 1 : 76]) and comma < 75


def test_without_weights_states_stay_bit_for_bit():
    hidden = np.random.default_rng(0).standard_normal((2, 77, 8), np.float32)
    weights = np.ones((2, 2, 77), np.float32)
    assert tokens.emphasised(hidden, weights, 3) is hidden
    weights[0, 1, 5] = 2
    found = tokens.emphasised(hidden, weights, 3)
    assert np.array_equal(found[0], hidden[0]) and np.array_equal(found[..., 3:], hidden[..., 3:])
    assert not np.array_equal(found[1, ..., :3], hidden[1, ..., :3])
    assert found[1, ..., :3].mean() == pytest.approx(hidden[1, ..., :3].mean(), rel=1e-5)
