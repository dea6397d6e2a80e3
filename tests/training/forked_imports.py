"""All that a training on the stub imports, for the process that tests/training/forked.py forks from. A test process has
one, so that it is tests/cache/cache_children.py's as well."""

import sys

sys.argv[0] = __file__  # MindSpore looks at its import where the script is whose graphs it keeps

import pipeline.device  # noqa: E402, F401

import pipeline.training.build  # noqa: E402, F401
import pipeline.training.run  # noqa: E402, F401
import stages.train  # noqa: E402, F401
import tests.cache.cache_children  # noqa: E402, F401
import tests.models.stub_unet  # noqa: E402, F401
import tests.training.live_samples  # noqa: E402, F401
import tests.training.training_samples  # noqa: E402, F401
