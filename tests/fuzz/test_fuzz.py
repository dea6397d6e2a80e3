"""Each kind of fuzz for some seconds; `python -m tests.fuzz` for longer."""

import pytest

from tests.fuzz.__main__ import KINDS


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # as pipeline/data/images.py does, outside of pytest
@pytest.mark.parametrize("kind", KINDS)
def test_some_seconds(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    assert KINDS[kind](2.0, 1) > 0
