import pytest


@pytest.fixture(scope="session")
def device():
    """The CPU, set up once for the whole run (and MindSpore imported only by tests that ask for it)."""
    import pipeline.device

    return pipeline.device.setup("CPU")
