"""`memopod sandbox up --control-plane`: a sandbox on Kubernetes' own API server, its accounts kept."""

import json
import subprocess
import sys

from tests.real.cluster import LIMIT, until

MEMOPOD = (sys.executable, "-m", "memopod.cli")
PIPELINE = "memopod/sandbox/examples/two_steps.yaml"


async def test_a_pipeline_runs_and_is_reused_on_the_real_api_server(plane, tmp_path):
    state, log = tmp_path / "s", tmp_path / "log"
    with log.open("wb") as output:
        command = (*MEMOPOD, "sandbox", "up", "--control-plane", "--state", str(state))
        sandbox = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: ASYNC220 (quick)
    try:
        await until(lambda: "ready" in log.read_text().splitlines(), "the sandbox is ready", limit=60)
        for how in ("executed", "reused"):
            command = (*MEMOPOD, "run", PIPELINE, "--json", "--state", str(state))
            done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT)  # noqa: ASYNC221
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout.splitlines()[-1])["state"] == "Succeeded"
            assert how in done.stdout
    finally:
        sandbox.terminate()
        assert sandbox.wait(LIMIT) == 0, log.read_text()
    for name in ("cache-server", "janitor", "metadata-writer"):
        assert "Forbidden" not in (state / "logs" / f"{name}.log").read_text()
