"""What commands answer stands alone on standard output."""

import pytest
import structlog
from typer.testing import CliRunner

from memopod.cli import app


@pytest.fixture(autouse=True)
def structlog_as_before():
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("command", ["why", "preview", "cache", "lineage"])
def test_a_command_logs_to_standard_error(command, capsys):
    structlog.reset_defaults()
    structlog.get_logger().warning("before")
    assert "before" in capsys.readouterr().out
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
    structlog.get_logger().warning("told")
    told = capsys.readouterr()
    assert (told.out, "told" in told.err) == ("", True)
