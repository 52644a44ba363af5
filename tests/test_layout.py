import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICES = ["cache_server", "cache_server.janitor", "metadata_writer", "metadata_store", "metadata_guard"]


@pytest.mark.parametrize("module", SERVICES)
def test_every_service_explains_itself(module):
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.startswith("usage: memopod ")
    assert "--health-port" in result.stdout


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("cache_server", ["--no-such-flag"]),
        ("cache_server", ["--artifact-check", "sometimes"]),
        ("cache_server", ["--database=sqlite:///x.db", "--seal-key-file", "/does/not/exist"]),
        ("cache_server.janitor", ["--log-level", "loud"]),
    ],
)
def test_a_bad_flag_is_one_message_and_no_traceback(module, arguments):
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert arguments[-1].lstrip("-") in result.stderr


def test_the_janitor_needs_no_database():
    code = "import cache_server.janitor, sys; print(*{'sqlalchemy', 'redis', 'obstore'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "\n"


def test_every_package_says_what_it_is_for():
    packages = [
        path
        for root in ("cache_server", "metadata_guard", "metadata_store", "metadata_writer", "memopod")
        for path in (ROOT / root).rglob("__init__.py")
    ]
    assert len(packages) >= 12
    for path in packages:
        assert len(path.read_text().split('"""')[1]) > 30, path


def test_no_document_points_at_what_is_not_there():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for link in _links(document.read_text()):
            if not link.startswith(("http://", "https://", "#")):
                assert (document.parent / link.partition("#")[0]).exists(), (document, link)


def _links(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)
