"""Each flag of the other trainers' scripts stands on the page for their users: beside our key, or among those without one.

tests/reference/make_flags.py reads the flags."""

import json
import re

import pytest

from tests.project import ROOT
from tests.reference.make_flags import FLAGS, SCRIPTS

PAGES = {"mindone": "from-mindone", "kohya": "from-kohya-and-diffusers", "diffusers": "from-kohya-and-diffusers"}
FOUND = json.loads(FLAGS.read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_flag_is_on_its_page(name):
    text = (ROOT / f"docs/{PAGES[name]}.md").read_text()
    flags, there = FOUND[name]["flags"], set(re.findall(r"--\w+", text))
    assert len(flags) >= 55 and [flag for flag in flags if flag not in there] == []


def test_the_commits_are_those_of_the_pages():
    assert {name: (found["repository"], found["commit"]) for name, found in FOUND.items()} == {
        name: tuple(script[:2]) for name, script in SCRIPTS.items()
    }
    assert FOUND["mindone"]["commit"] in (ROOT / "docs/from-mindone.md").read_text()
    comparison = (ROOT / "docs/comparison.md").read_text()
    assert all(FOUND[name]["commit"] in comparison for name in ("kohya", "diffusers"))


def test_no_flag_has_a_counterpart_and_none():
    """A row of the tables, and the list below them."""
    page = (ROOT / "docs/from-kohya-and-diffusers.md").read_text()
    rows, _, rest = page.partition("**Without a counterpart here**")
    lacking = re.findall(r"`(--\w+)`", rest.partition("\n## ")[0])
    in_rows = set(re.findall(r"`(--\w+)", rows))
    assert len(lacking) > 50 and [flag for flag in lacking if flag in in_rows] == []
    assert sorted(set(lacking)) == sorted(lacking)
