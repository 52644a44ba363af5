"""The reviews that are sent: recordings of Argo 4.1.2, as the API server writes them."""

import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cache_server.admission import Policy, admit

SAMPLES = Path(__file__).parents[2] / "tests" / "samples" / "argo-4.1.2"
CREATOR = "system:serviceaccount:argo:argo"
POLICY = Policy(secret=b"s" * 32, trusted_creators=frozenset({CREATOR}), hold_seconds=30.0)


def held():
    """Recorded reviews of Pods that memopod holds."""
    for path in sorted(SAMPLES.glob("*.admission.json")):
        review = json.loads(path.read_text())
        request = review["request"]
        verdict = admit(
            request["object"], namespace=request["namespace"], username=CREATOR, now=datetime.now(UTC),
            controller_alive=True, policy=POLICY,
        )  # fmt: skip
        if verdict.held:
            request["userInfo"]["username"] = CREATOR
            yield path.name.partition(".admission")[0], review


def with_managed_fields(review):
    """As a server sends it that tracks field managers: Argo's own entry over all of the Pod."""
    pod = review["request"]["object"]
    fields = {name: _fields(pod[name]) for name in ("metadata", "spec")}
    entry = {
        "manager": "workflow-controller", "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {f"f:{name}": value for name, value in fields.items()},
    }  # fmt: skip
    pod["metadata"]["managedFields"] = [entry]
    return review


def _fields(value):
    if isinstance(value, dict):
        return {".": {}, **{f"f:{name}": _fields(inner) for name, inner in value.items()}}
    if isinstance(value, list) and value and all(isinstance(i, dict) and "name" in i for i in value):
        return {f'k:{{"name":"{i["name"]}"}}': {".": {}, **_fields(i)} for i in value}
    return {}


def salted(review):
    """With a salt that the load generator replaces."""
    review["request"]["object"]["metadata"].setdefault("annotations", {})["memopod.io/salt"] = "SALTSALTSALT"
    return review


def write(reviews, folder):
    """Each in a file of its own; returns the mean size in bytes."""
    folder.mkdir()
    sizes = []
    for name, review in reviews:
        text = msgspec.json.encode(review)
        (folder / f"{name}.json").write_bytes(text)
        sizes.append(len(text))
    return round(sum(sizes) / len(sizes))
