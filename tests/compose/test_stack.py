"""The stack of docker-compose.yml, as processes: a pipeline runs, and is reused."""

import json
import shutil
import time

import boto3
import pytest

from memopod.sandbox.argo import BUCKET
from tests.compose.processes import LIMIT, Stack
from tests.conftest import scratch

EXAMPLE = "memopod/sandbox/examples/two_steps.yaml"


@pytest.fixture(scope="module")
def stack():
    with scratch("compose") as folder:
        running = Stack(folder)
        try:
            running.start()
            yield running
        finally:
            running.stop()
            shutil.rmtree(folder / "state", ignore_errors=True)


def eventually(question):
    end = time.monotonic() + LIMIT
    while not (answer := question()):
        assert time.monotonic() < end, "still not so"
        time.sleep(0.2)
    return answer


@pytest.mark.timeout(400)
def test_the_second_run_is_reused_and_lineage_shows_both(stack):
    first = json.loads(stack.memopod("run", EXAMPLE, "--json").splitlines()[-1])
    assert {task["decision"] for task in first["tasks"]} == {"executed"}, first
    eventually(lambda: len(json.loads(stack.memopod("cache", "list", "--json"))) == 2)

    second = json.loads(stack.memopod("run", EXAMPLE, "--json").splitlines()[-1])
    assert {task["decision"] for task in second["tasks"]} == {"reused"}, second
    assert second["outputs"] == first["outputs"]

    both = {first["run"], second["run"]}
    eventually(
        lambda: both == {r["run"] for r in json.loads(stack.memopod("lineage", "runs", "--json"))["runs"]}
    )

    # Where the file says that things are: artifacts in the object store, hot entries in Redis.
    objects = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{stack.ports[9000]}", region_name="us-east-1",
        aws_access_key_id="a", aws_secret_access_key="s",
    ).list_objects_v2(Bucket=BUCKET)  # fmt: skip
    assert objects["KeyCount"] == 1
