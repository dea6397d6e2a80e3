"""Eight ranks against one with the whole batch, with eight times the processes that two cores like, so not in `make test`,
which has two and four:

    python -m tests.training.eight_ranks

On the cache, on pictures, and with both text encoders trained whole and by adapters; the optimizer's state is shared, and the
eight are killed and go on as four. Prints a line each; exit code 1 where weights, averages or losses are others."""

import tempfile
from pathlib import Path

from tests.training import live_samples, test_distributed, test_live_runs, test_train_text_runs
from tests.training.test_distributed import FOUR_SHARDED, assert_close, outcome, port
from tests.training.test_live import patched
from tests.training.test_resume import train
from tests.training.training_samples import share_graphs, write_stub, write_workspace

EIGHT = ["device.workers=8", "train.batch_size=1", "train.shard_optimizer=true"]
TEXTS = [*test_train_text_runs.SETTINGS, "train.keep_best=false"]


def cached(root: Path) -> Path:
    root = write_workspace(root, count=30, buckets=((64, 64), (64, 32)), vae=b"vae")
    write_stub(root / "outs/convert/unet.ckpt")
    return root


def originals(root: Path, **changes) -> Path:
    root = live_samples.write_originals(
        root, count=24, sizes=((64, 64),) if "train.text_encoders" in changes else live_samples.SIZES
    )
    with patched(root / "store"):
        live_samples.run_stages(root, **changes)
    return root


CASES = {
    "cache": (cached, [*test_distributed.SETTINGS, "train.batch_size=8"]),
    "pictures": (lambda root: originals(root, **test_live_runs.CHANGES), test_live_runs.SETTINGS),
    "text encoders, whole": (lambda root: originals(root, **test_train_text_runs.CHANGES), TEXTS),
    "text encoders, adapters": (
        lambda root: originals(root, **test_train_text_runs.CHANGES),
        [*TEXTS, *test_train_text_runs.HOW["adapters"]],
    ),
}


def main() -> None:
    for name, (made, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "graphs").mkdir()
            (folder / "work").mkdir()
            workspace = made(folder / "work")
            train(workspace, share_graphs(folder / "one", folder / "graphs"), *settings)
            wanted = test_train_text_runs.without_key_biases(outcome(workspace))
            store = share_graphs(folder / "eight", folder / "graphs")
            train(workspace, store, "kill=step:3", *settings, *EIGHT, port(), code=1)
            (slices,) = store.glob("train/*/slices-*")
            assert len(list(slices.iterdir())) == 8
            assert "goes on after step 2" in train(workspace, store, *settings, *FOUR_SHARDED, port())
            assert_close(test_train_text_runs.without_key_biases(outcome(workspace)), wanted)
            print(f"{name}: as four the end of one", flush=True)
            train(workspace, share_graphs(folder / "whole", folder / "graphs"), *settings, *EIGHT, port())
            assert_close(test_train_text_runs.without_key_biases(outcome(workspace)), wanted)
            print(f"{name}: eight unbroken, the same", flush=True)


if __name__ == "__main__":
    main()
