"""Each kind of fuzz for some seconds; `python -m tests.fuzz` for longer."""

import pytest

from tests.fuzz.__main__ import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_some_seconds(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    assert KINDS[kind](4.0, 1) > 0
