"""Hits that run all the same, and are compared with what they could have reused."""

import hashlib
import json
import random
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from cache_server.audit import audit_key, compare, is_audited
from memopod.kube import EVENTS
from memopod.steps import Location, OutputArtifact, Outputs, names

KEY = audit_key(b"s" * 32, "pipelines")
VALUE = "the value of a secret"


def artifact(digest="md5:" + "a" * 32, name="data"):
    location = Location("s3", "minio:9000", "pipelines", "run/data")
    return OutputArtifact(name=name, location=location, reported={}, size=7, etag="e", digest=digest)


def outputs(value="1", result=None, artifacts=()):
    return Outputs(parameters={"Output": value}, result=result, artifacts=artifacts)


@given(st.text(min_size=1))
def test_nothing_is_audited_at_rate_0_and_everything_at_rate_1(uid):
    assert not is_audited(uid, 0.0)
    assert is_audited(uid, 1.0)


def test_a_share_of_the_pods_is_audited_and_always_the_same_ones():
    audited = [uid for uid in map(str, range(10_000)) if is_audited(uid, 0.05)]
    assert 400 < len(audited) < 600
    assert set(audited) <= {uid for uid in map(str, range(10_000)) if is_audited(uid, 0.06)}


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        (outputs(), outputs(), "same"),
        (outputs(), outputs("2"), "different"),
        (outputs(result="a"), outputs(result="b"), "different"),
        (outputs(artifacts=(artifact(),)), outputs(artifacts=(artifact(),)), "same"),
        (outputs(artifacts=(artifact(),)), outputs(artifacts=(artifact("md5:" + "b" * 32),)), "different"),
        (outputs(artifacts=(artifact(None),)), outputs(artifacts=(artifact(),)), "unknown"),
    ],
)
def test_what_differs_is_found(before, after, result):
    assert compare(before, after, unpacked={"data"}, key=KEY).result == result


def test_other_bytes_of_a_packed_artifact_say_nothing():
    other = outputs(artifacts=(artifact("md5:" + "b" * 32),))
    comparison = compare(outputs(artifacts=(artifact(),)), other, unpacked=set(), key=KEY)
    assert comparison.result == "unknown"
    assert comparison.incomparable == ("data",)


def test_a_difference_names_outputs_and_digests_and_no_values():
    comparison = compare(outputs(VALUE, VALUE), outputs(VALUE + "!", None), unpacked=(), key=KEY)
    text = " ".join(comparison.differing)
    assert "parameter Output: hmac:" in text
    assert "result: none, was hmac:" in text
    assert VALUE not in text


def test_what_differs_cannot_be_guessed_without_the_servers_secret():
    contents = [artifact("md5:" + hashlib.new("md5", text.encode()).hexdigest()) for text in "yn"]
    before, after = outputs("yes", "1", (contents[0],)), outputs("no", "2", (contents[1],))
    told = " ".join(compare(before, after, unpacked={"data"}, key=KEY).differing)
    assert told.count("hmac:") == 6
    for guessed in ("yes", "no", "1", "2", "y", "n"):
        for algorithm in ("md5", "sha1", "sha256"):
            assert hashlib.new(algorithm, guessed.encode()).hexdigest()[:16] not in told
    assert told == " ".join(compare(before, after, unpacked={"data"}, key=KEY).differing)
    for other in (audit_key(b"t" * 32, "pipelines"), audit_key(b"s" * 32, "another")):
        again = " ".join(compare(before, after, unpacked={"data"}, key=other).differing)
        assert not set(re.findall("hmac:[0-9a-f]+", told)) & set(re.findall("hmac:[0-9a-f]+", again))


def reported(value):
    return {"parameters": [{"name": "Output", "value": value, "valueFrom": {"path": "/tmp/o"}}]}


@pytest.fixture
def auditing(cluster, parts, bucket):
    return type(parts)(cluster, parts.entries, bucket, audit_rate=1.0)


def marks(pod):
    annotations = pod["metadata"]["annotations"]
    return annotations[names.DECISION], annotations[names.REASON], annotations.get(names.AUDITS)


def counted(result):
    return REGISTRY.get_sample_value("memopod_audits_total", {"result": result}) or 0.0


async def test_a_step_that_is_not_deterministic_is_caught(cluster, parts, auditing):
    seeded = random.Random(7)
    first = str(seeded.random())
    entry = await parts.entry(reported(first))
    pod = await auditing.decide(await cluster.held_pod())
    assert marks(pod) == ("run", "audit", entry.id)
    before = counted("different")
    second = str(seeded.random())
    assert await auditing.record(await cluster.run(pod, reported(second))) is None
    assert await parts.entries.get(entry.id) is None, "neither of the two is more right"
    assert counted("different") == before + 1
    events = (await cluster.client.list(EVENTS, namespace="pipelines"))["items"]
    [event] = [e for e in events if e["involvedObject"]["uid"] == pod["metadata"]["uid"]]
    assert (event["type"], event["reason"]) == ("Warning", "AuditDifference")
    assert "parameter Output: hmac:" in event["message"]
    assert first not in json.dumps(event)
    assert second not in json.dumps(event)
    assert marks(await parts.decide(await cluster.held_pod()))[:2] == ("run", "miss")


async def test_a_step_that_puts_out_the_same_keeps_its_entry(cluster, parts, auditing):
    entry = await parts.entry(reported("7"))
    pod = await auditing.decide(await cluster.held_pod())
    before = counted("same")
    assert await auditing.record(await cluster.run(pod, reported("7"))) is None
    assert counted("same") == before + 1
    assert await parts.entries.get(entry.id) == replace(entry)
    pod = await parts.decide(await cluster.held_pod())
    assert marks(pod)[:2] == ("reuse", "hit")


async def test_where_the_entry_is_gone_meanwhile_the_run_is_recorded(cluster, parts, auditing):
    entry = await parts.entry(reported("7"))
    pod = await auditing.decide(await cluster.held_pod())
    await parts.entries.retire(entry.id, "test")
    assert await auditing.record(await cluster.run(pod, reported("8"))) is not None


async def test_a_pod_cannot_bring_along_what_it_audits(cluster, parts):
    entry = await parts.entry(reported("7"))

    def forged(pod):
        pod["metadata"]["annotations"][names.AUDITS] = entry.id
        pod["metadata"]["annotations"][names.SALT] = "another key"

    pod = await parts.decide(await cluster.held_pod(change=forged))
    assert marks(pod) == ("run", "miss", None)
