import uuid
from datetime import UTC, datetime

import pytest

from cache_server.entries import Entry, open_entries
from memopod.steps import Location, OutputArtifact, Outputs


def _make_entry(**changes):
    pod = changes.get("pod_name", "run-1-train-123")
    fields = {
        "id": uuid.uuid4().hex,
        "namespace": "pipelines",
        "key": "ab" * 32,
        "key_version": 1,
        "components": {"image": "12ab", "command": "34cd"},
        "template_name": "train",
        "workflow": "run-1",
        "workflow_uid": "7f1c",
        "node_id": "run-1-123",
        "pod_name": pod,
        "pod_uid": uuid.uuid4().hex,
        "image_id": "docker.io/library/python@sha256:12",
        "outputs": Outputs(
            parameters={"loss": 'naïve "0.1"\\\n'},
            artifacts=(
                OutputArtifact(
                    name="model",
                    location=Location("s3", "minio:9000", "pipelines", f"run-1/{pod}/model.tgz"),
                    reported={"name": "model", "s3": {"key": f"run-1/{pod}/model.tgz"}},
                    size=10,
                    etag="0" * 32,
                    digest="md5:" + "0" * 32,
                ),
            ),
            result="done",
        ),
        "execution_id": 2**40,
        "started_at": datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC),
        "finished_at": datetime(2026, 1, 2, 3, 5, 5, 654321, tzinfo=UTC),
        "recorded_at": datetime(2026, 1, 2, 3, 5, 6, tzinfo=UTC),
        "max_staleness_seconds": 3600,
    }
    return Entry(**{**fields, **changes})


@pytest.fixture
def make_entry():
    return _make_entry


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'cache.db'}"


@pytest.fixture
async def entries(url):
    async with open_entries(url) as opened:
        yield opened
