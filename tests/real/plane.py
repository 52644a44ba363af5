"""A control plane of one's own: started by `keeper.py`, which ends with the process that is named."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 90


@dataclass
class Plane:
    """A folder with certificates, tokens and logs, and the API server's port."""

    folder: Path
    port: int


def start(session, log):
    """Start one that lives as long as the process `session`; returns its folder at once."""
    folder = Path(tempfile.mkdtemp(prefix="memopod-cp-"))
    command = [sys.executable, "-m", "tests.real.keeper", str(session), str(folder)]
    # No child of this process: it outlives it where another one asked for it, and ends by itself.
    with log.open("wb") as output:
        subprocess.run(
            ["setsid", "--fork", *command], cwd=Path(__file__).parents[2], stdout=output, stderr=output,
            check=True,
        )  # fmt: skip
    return folder


def wait_ready(folder, log):
    """The control plane in this folder, once it serves."""
    deadline = time.monotonic() + START_SECONDS
    while not (folder / "ready.json").exists():
        assert folder.exists(), f"the control plane did not start:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"not ready in time: {folder}\n{log.read_text()}"
        time.sleep(0.05)
    return Plane(folder, json.loads((folder / "ready.json").read_text())["port"])
