import os
import sys

import pytest

from tests import ray_nodes

# MindSpore, when it is imported, looks where the script is whose graphs it keeps; a worker of xdist has none.
if sys.argv[0] == "-c":
    sys.argv[0] = __file__

# Ranks of tests, five processes beside other tests on two cores, are silent for longer than those of a run should be.
os.environ.setdefault("MS_NODE_TIMEOUT", "300")
os.environ.update(ray_nodes.SETTINGS)  # Ray's library reads them when it is imported

# The files that take longest, which are begun first (make test gives each file to one of four processes). test_on_nodes and
# test_live_runs take graphs that test_distributed and test_train_text_runs have compiled.
LONGEST = ("test_distributed", "test_dvc", "test_sets_dvc", "test_train_text_runs", "test_train", "test_docs_run",
           "test_train_step", "test_unet", "test_npu_form", "test_on_nodes", "test_resume", "test_optimizer",
           "test_compile_cache", "test_live_runs", "test_doctor", "test_rehearsal", "test_extend", "test_index", "test_train_deleted",
           "test_train_adapters", "test_cache_cluster", "test_train_text")  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def device():
    """The CPU, set up once for the whole run (and MindSpore imported only by tests that ask for it)."""
    import pipeline.device

    return pipeline.device.setup("CPU")


@pytest.fixture(scope="module", params=["products", "Conv2D"])
def convolution(request):
    """The two forms of a convolution on a CPU, whatever this process lets oneDNN use. Winograd's larger tiles are taken
    wherever the sides allow it, which the goldens' maps would be too small for."""
    from pipeline.models.cpu import convolution, layers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "convolves_by_products", lambda: request.param == "products")
        patch.setattr(convolution, "_ENOUGH", 0)
        yield request.param


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """A folder of compiled graphs of tests/models/stub_unet.py, which the stores of all tests share, in both processes
    (training_samples.share_graphs). Their key does not know the stub: none of a real UNet may come here."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "graphs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def nodes(tmp_path_factory):
    """A Ray cluster of two nodes of a CPU and an NPU that no process uses, on loopback addresses."""
    pytest.importorskip("ray", reason="Ray is not installed here: pip install -r requirements-ray.txt")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_STORE", str(tmp_path_factory.mktemp("nodes")))
        node = {"num_cpus": 1, "resources": {"NPU": 1}, "object_store_memory": 100 << 20}
        # For 127.0.0.1 Ray's driver would take another address of this computer.
        first = {**node, "node_ip_address": "127.0.0.2", "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=first)
        cluster.add_node(**node, node_ip_address="127.0.0.3")
    yield cluster
    cluster.shutdown()


@pytest.fixture(autouse=True)
def _pillows_guard(monkeypatch):
    """pipeline/data/images.py sets Pillow's guard for the whole process, which here is that of other tests too."""
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
