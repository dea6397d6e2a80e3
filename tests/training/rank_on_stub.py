"""What a rank on a node of a cluster runs in tests: the train stage on the stub, with the params.yaml of its workspace, and
a second for each step, so that there is time to kill it."""

import functools
import time

from pipeline import stage
from pipeline.training import run
from stages import train
from tests.training.training_samples import be_small


def slowly(function):
    @functools.wraps(function)
    def wrapped(*args):
        time.sleep(1)
        return function(*args)

    return wrapped


if __name__ == "__main__":
    be_small(stub=True)
    run._check = slowly(run._check)
    stage.run(train.main)
