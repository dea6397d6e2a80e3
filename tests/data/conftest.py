"""Servers for the tests of data that lie far away."""

import pytest

from pipeline.data import far, memo
from tests.data import far_servers
from tests.data.far_samples import KEY, SECRET, forget


@pytest.fixture(scope="module")
def server():
    with far_servers.s3() as address:
        yield address


@pytest.fixture
def wire(server, monkeypatch, tmp_path):
    """Between s3:// and the server."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)
    monkeypatch.setattr(far, "WAITS", 0.01)
    wire = far_servers.Wire(server)
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": wire.address,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    forget()
    yield wire
    wire.close()
    forget()
