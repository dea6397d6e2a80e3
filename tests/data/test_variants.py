"""Variants of captions: what is drawn, how often, and that they are a function of seed, caption and number."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.variants import Rules, expand

TAGS = "sks, a, b, c"


def texts(text: str, **rules) -> dict[str, float]:
    found = expand(text, None, Rules(**rules))
    assert sum(chance for *_, chance in found) == pytest.approx(1)
    return {text: chance for text, _, chance in found}


def test_without_rules_a_caption_is_itself():
    assert texts(" a,b , c") == {" a,b , c": 1}
    assert texts("{a|b}, c", count=8) == {"{a|b}, c": 1}


def test_shuffled_tags_keep_the_first():
    found = texts(TAGS, count=600, shuffle=True, keep=1)
    orders = ["a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"]
    assert found.keys() == {f"sks, {order}" for order in orders}
    # chi-squared, 5 degrees of freedom: 20.5 is its 0.1 % point
    assert sum((600 * chance - 100) ** 2 / 100 for chance in found.values()) < 20.5


def test_dropped_tags():
    found = texts(TAGS, count=2000, drop=0.25, keep=1)
    assert all(text.split(", ")[0] == "sks" for text in found)
    for tag in "abc":  # binomial(2000, 3/4): outside of 1500 ± 80 with probability 4e-5, once and for all
        assert abs(sum(chance for text, chance in found.items() if tag in text.split(", ")[1:]) - 0.75) < 0.04
    assert len(found) == 8  # each is dropped by itself
    assert texts(TAGS, count=5, drop=1.0) == {"": 1}


def test_a_separator_of_ones_own():
    assert texts("a; b, c;d", count=50, shuffle=True, separator=";", joined="; ").keys() == {
        "; ".join(order) for order in (("a", "b, c", "d"), ("a", "d", "b, c"), ("b, c", "a", "d"), ("b, c", "d", "a"),
                                       ("d", "a", "b, c"), ("d", "b, c", "a"))
    }  # fmt: skip


def test_a_fence_keeps_what_is_before_it_and_behind_a_second():
    draws = {"count": 200, "shuffle": True, "keep": 1, "fence": "|||"}
    assert texts("a, b ||| c, d", **draws).keys() == {"a, b, c, d", "a, b, d, c"}
    assert texts("a ||| c, d ||| e, f", **draws).keys() == {"a, c, d, e, f", "a, d, c, e, f"}
    assert texts("||| c, d", **draws).keys() == {"c, d", "d, c"}
    assert texts("a, c, d", **draws).keys() == {"a, c, d", "a, d, c"}  # without one `keep` counts
    assert texts("a ||| c", count=3, fence="|||") == {"a ||| c": 1}  # no tag is moved
    assert texts("a ||| c, d ||| e", count=9, drop=1.0, fence="|||") == {"a, e": 1}


def test_a_binder_holds_tags_together():
    found = texts("a;;;b, c", count=50, shuffle=True, binder=";;;")
    assert found.keys() == {"a,b, c", "c, a,b"}
    assert texts("a;;;b", count=3, binder=";;;") == {"a,b": 1}


def test_wildcards():
    found = texts("a {red|green|} {cat|dog} {{x|y}}", count=600, wildcards=True)
    colours = {text.split()[1] if len(text.split()) == 4 else "" for text in found}
    assert colours == {"red", "green", ""} and len(found) == 6
    assert all(text.endswith(" {x|y}") for text in found)
    assert all(abs(600 * chance - 100) < 50 for chance in found.values())
    for text in ("{a|{b|c} }", "{a|{b|c}}", "{ {a|b}|c}"):
        assert texts(text, count=200, wildcards=True).keys() == {"a", "b", "c"}, text
    nested = texts("{a|{b|c}}", count=1000, wildcards=True)
    assert abs(nested["a"] - 1 / 2) < 0.06 and abs(nested["b"] - 1 / 4) < 0.06
    assert texts("{a|{b|{c|{{d}}}}} {{e}}", count=200, wildcards=True).keys() == {
        f"{one} {{e}}" for one in ("a", "b", "c", "{d}")
    }
    assert texts("{ a", count=3, wildcards=True) == {"{ a": 1}
    assert texts("{" * 5000 + "|" * 5000 + "}" * 5000, count=1, wildcards=True)


def test_a_variant_is_a_function_of_seed_caption_and_number():
    rules = Rules(count=8, shuffle=True, drop=0.2)
    few, many = (
        Counter({text: count * chance for text, _, chance in expand(TAGS, None, Rules(count, shuffle=True, drop=0.2))})
        for count in (8, 9)
    )
    assert sum((many - few).values()) == pytest.approx(1) and not few - many  # one more leaves the others
    assert expand(TAGS, None, rules) == expand(TAGS, None, rules)
    assert expand(TAGS, None, rules) != expand(TAGS, None, Rules(8, 1, shuffle=True, drop=0.2))
    # as they were when this was written, on any machine
    assert [text for text, *_ in expand(TAGS, None, Rules(3, shuffle=True))] == ["b, a, sks, c", "b, c, sks, a"]


def test_both_texts_have_variants():
    found = expand("a, b", "c, d", Rules(40, shuffle=True))
    assert {(text, second) for text, second, _ in found} == {
        (first, second) for first in ("a, b", "b, a") for second in ("c, d", "d, c")
    }


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.booleans(), st.integers(0, 3), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
def test_any_caption(text, shuffle, keep, drop, wildcards):
    """Tags are never made up, and those that are kept stand first."""
    rules = Rules(4, 7, shuffle, keep, drop, wildcards=wildcards)
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    for found, second, chance in expand(text, None, rules):
        assert second is None and 0 < chance <= 1
        if wildcards:
            continue
        if not (shuffle or drop):
            assert found == text
        else:
            there = [tag for tag in found.split(", ") if tag]
            assert there[:keep] == tags[: min(keep, len(there))] and not Counter(there) - Counter(tags)
            assert drop or len(there) == len(tags)
