"""The sandbox's artifact repository, as a cluster's would be configured for Argo."""

from typing import Any

ENDPOINT = "minio.sandbox:9000"
BUCKET = "pipelines"


def repository() -> dict[str, Any]:
    """Argo's artifact repository: where outputs go that name no location of their own."""
    return {
        "s3": {
            "endpoint": ENDPOINT,
            "bucket": BUCKET,
            "insecure": True,
            "keyFormat": "artifacts/{{workflow.name}}/{{pod.name}}",
        }
    }


def archive_location(workflow: str, pod: str) -> dict[str, Any]:
    """The `archiveLocation` of a template whose step reads or writes artifacts."""
    return {
        "archiveLogs": False,
        "s3": {
            "endpoint": ENDPOINT,
            "bucket": BUCKET,
            "insecure": True,
            "key": f"artifacts/{workflow}/{pod}",
        },
    }
