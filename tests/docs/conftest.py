import importlib
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

ROOT = Path(__file__).parents[2]
PACKAGES = ("cache_server", "metadata_guard", "metadata_store", "metadata_writer", "memopod")


@pytest.fixture(scope="session")
def pages():
    """Every page that people read: path below the repository -> text."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in [*paths, ROOT / "envoy" / "README.md"]}


@pytest.fixture(scope="session")
def sources():
    """The text of all of the program's modules and manifests: path below the repository -> text."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {
        str(path.relative_to(ROOT)): path.read_text() for path in [*paths, *(ROOT / "deploy").rglob("*.yaml")]
    }


@pytest.fixture(scope="session")
def metrics(sources):
    """What the services export: name of a metric as Prometheus knows it -> (type, names of its labels)."""
    for path, text in sources.items():
        if path.endswith(".py") and "prometheus_client" in text:
            importlib.import_module(path.removesuffix(".py").replace("/", "."))
    exported = {}
    for collector in list(REGISTRY._collector_to_names):
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            if re.match("(memopod|metadata)_", name):
                labels = getattr(
                    collector, "_labelnames", ("decision", "reason") * (family.type == "counter")
                )
                exported[name] = family.type, tuple(labels)
    assert len(exported) > 30
    return exported
