"""The reviews that are sent: recordings of Argo 4.1.2, as the API server writes them."""

import json
import random
import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cache_server.admission import Policy, admit

SAMPLES = Path(__file__).parents[2] / "tests" / "samples" / "argo-4.1.2"
RUNS = 64
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


def of_new_step(review):
    """Of a step that nobody has seen: the load generator gives a variable of it another value each time."""
    spec = review["request"]["object"]["spec"]
    main = next(c for c in spec["containers"] if c["name"] == "main")
    main.setdefault("env", []).append({"name": "EPOCHS", "value": "SALTSALTSALT"})
    return review


def another_run(review, chosen):
    """The text of a review of another run: other names, ids, traces and token, wherever they are written."""
    metadata = review["request"]["object"]["metadata"]
    owner, annotations = metadata["ownerReferences"][0], metadata["annotations"]
    number = metadata["name"].rpartition("-")[2]
    text = msgspec.json.encode(review).decode()
    fresh = [
        (owner["name"].rpartition("-")[2], "bcdfghjklmnpqrstvwxz2456789"),
        (owner["uid"], "0123456789abcdef"),
    ]
    fresh += [(number, "0123456789")] if number.isdigit() else []
    fresh += [
        (annotations[name], "0123456789abcdef")
        for name in ("workflows.argoproj.io/trace-id", "workflows.argoproj.io/span-id")
        if name in annotations
    ]
    fresh.append((review["request"]["uid"], "0123456789abcdef"))
    for old, letters in fresh:
        text = text.replace(old, "".join("-" if c == "-" else chosen.choice(letters) for c in old))
    token = "".join(chosen.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
    return re.sub(r"kube-api-access-[a-z0-9]+", f"kube-api-access-{token}", text).encode()


def write(reviews, folder, runs=RUNS):
    """Reviews of so many runs of each, a line each, in any order; returns the mean size in bytes."""
    folder.mkdir()
    chosen = random.Random(20261124)
    texts = [another_run(review, chosen) for _, review in reviews for _ in range(runs)]
    chosen.shuffle(texts)
    (folder / "reviews.jsonl").write_bytes(b"\n".join(texts) + b"\n")
    return round(sum(map(len, texts)) / len(texts))
