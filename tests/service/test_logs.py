import json
import subprocess
import sys

import pytest

from memopod.service import configure_logs

PROGRAM = """
import structlog
from memopod.service import configure_logs

configure_logs("writer", level="warning")
log = structlog.get_logger()
log.info("not shown")
log.warning("shown", step="s-1")
try:
    raise ValueError("broken")
except ValueError:
    log.exception("failed")
"""


def test_where_nobody_watches_a_line_is_a_json_object():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert ended.stdout == ""
    shown, failed = (json.loads(line) for line in ended.stderr.splitlines())
    assert (shown["event"], shown["step"], shown["level"]) == ("shown", "s-1", "warning")
    assert shown["component"] == "writer"
    assert shown["timestamp"].endswith("Z")
    assert "ValueError: broken" in failed["exception"]


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="expected one of debug, info, warning, error, got 'loud'"):
        configure_logs("writer", level="loud")
