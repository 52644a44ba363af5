import json
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture
def sample():
    return lambda version, name: json.loads((SAMPLES / f"argo-{version}" / f"{name}.json").read_text())


@pytest.fixture
def make_pod(sample):
    """A Pod as Argo 4.1 builds it, before admission: the recording `parameters.make`."""
    return lambda: sample("4.1.2", "parameters.make.admission")["request"]["object"]
