"""Eight ranks against one with the whole batch, with eight times the processes that two cores like, so not in `make test`,
which has two and four:

    python -m tests.training.eight_ranks

On the cache, on pictures, and with both text encoders trained whole and by adapters; the eight share the optimizer's state
where it can be cut, are killed and go on as four. Prints a line each; exit code 1 where weights, averages or losses are others."""

import re
import tempfile
from pathlib import Path

from tests.training.test_distributed import FOUR_SHARDED, SETTINGS, assert_close, outcome, port, with_cache
from tests.training.test_live_runs import SETTINGS as LIVE
from tests.training.test_live_runs import with_pictures
from tests.training.test_resume import train
from tests.training.test_train_text_runs import HOW, with_captions, without_key_biases
from tests.training.test_train_text_runs import SETTINGS as TEXTS
from tests.training.training_samples import share_graphs

EIGHT = ["device.workers=8", "train.batch_size=1", "train.shard_optimizer=true"]
CASES = {
    "cache": (with_cache, [*SETTINGS, "train.batch_size=8"]),
    "pictures": (with_pictures, LIVE),
    "text encoders, whole": (with_captions, TEXTS),
    "text encoders, adapters": (with_captions, [*TEXTS, *HOW["adapters"]]),
}


def main() -> None:
    for name, (made, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "graphs").mkdir()
            (folder / "work").mkdir()
            workspace = made(folder / "work")
            train(workspace, share_graphs(folder / "one", folder / "graphs"), *settings)
            wanted = without_key_biases(outcome(workspace))
            store = share_graphs(folder / "eight", folder / "graphs")
            train(workspace, store, "kill=step:4", *settings, *EIGHT, port(), code=1)
            # eight do not divide the stub's four channels, but weights of encoders
            assert bool(list(store.glob("train/*/slices-*/*"))) == name.startswith("text encoders")
            assert re.search("goes on after step [24]", train(workspace, store, *settings, *FOUR_SHARDED, port()))
            assert_close(without_key_biases(outcome(workspace)), wanted)
            print(f"{name}: as four the end of one", flush=True)
            train(workspace, share_graphs(folder / "whole", folder / "graphs"), *settings, *EIGHT, port())
            assert_close(without_key_biases(outcome(workspace)), wanted)
            print(f"{name}: eight unbroken, the same", flush=True)


if __name__ == "__main__":
    main()
