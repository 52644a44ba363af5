from structlog.testing import capture_logs

from memopod.kube import EVENTS, PODS, emit


async def test_an_event_is_about_its_object(client):
    body = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "main", "image": "x"}]}}
    pod = await client.create(PODS, body, namespace="pipelines")
    await emit(client, pod, reason="Reused", message="from entry 7", component="memopod")
    (event,) = (await client.list(EVENTS, namespace="pipelines"))["items"]
    assert event["involvedObject"]["uid"] == pod["metadata"]["uid"]
    assert event["involvedObject"]["kind"] == "Pod"
    assert (event["reason"], event["type"], event["source"]) == ("Reused", "Normal", {"component": "memopod"})


async def test_a_failure_is_logged_and_not_raised(client):
    regarding = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "absent"}}
    with capture_logs() as logs:
        await emit(client, regarding, reason="Reused", message="secret", component="memopod")
    assert [entry["event"] for entry in logs] == ["event not recorded"]
    assert "secret" not in str(logs)
