import json
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "samples"
# The catalogues and generators that `make fuzz` uses too.
sys.path.append(str(Path(__file__).parents[1] / "fuzz"))


def load_sample(version, name):
    return json.loads((SAMPLES / f"argo-{version}" / f"{name}.json").read_text())


@pytest.fixture
def sample():
    return load_sample


@pytest.fixture
def make_pod():
    """A Pod as Argo 4.1 builds it, before admission: the recording `parameters.make`."""
    return lambda: load_sample("4.1.2", "parameters.make.admission")["request"]["object"]
