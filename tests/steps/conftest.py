import importlib.util
import json
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "samples"
FUZZ = Path(__file__).parents[1] / "fuzz"


def load_sample(version, name):
    return json.loads((SAMPLES / f"argo-{version}" / f"{name}.json").read_text())


@pytest.fixture
def sample():
    return load_sample


@pytest.fixture
def make_pod():
    """A Pod as Argo 4.1 builds it, before admission: the recording `parameters.make`."""
    return lambda: load_sample("4.1.2", "parameters.make.admission")["request"]["object"]


@pytest.fixture(scope="session")
def template_texts():
    """The generator of template texts, which `make fuzz` uses too."""
    return _load("template_texts")


def _load(name):
    spec = importlib.util.spec_from_file_location(name, FUZZ / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
