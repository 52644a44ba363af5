import asyncio
import base64
import copy
import json
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from memopod.kube import (
    CONFIG_MAPS,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    PODS,
    ApiError,
    Client,
    Forbidden,
    Invalid,
)
from memopod.sandbox.certificates import prepare_state

NS = "pipelines"
SAMPLES = Path(__file__).parents[2] / "samples"
HOLD = [{"op": "add", "path": "/spec/schedulingGates", "value": [{"name": "memopod.io/decide"}]}]


class Webhook:
    """A real HTTPS server; `answer(review)` gives the response, or an aiohttp response as it is."""

    def __init__(self):
        self.reviews = []
        self.queries = []
        self.answer = allow

    async def handle(self, request):
        review = await request.json()
        self.reviews.append(review)
        self.queries.append(dict(request.query))
        answer = self.answer(review)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, web.Response):
            return answer
        return web.json_response(
            {"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": answer}
        )


def allow(review, operations=None, **rest):
    response = {"uid": review["request"]["uid"], "allowed": True, **rest}
    if operations is not None:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(operations).encode()).decode()
    return response


@pytest.fixture
async def webhook(tmp_path):
    files = prepare_state(tmp_path, 1)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.cache_server.certificate, files.cache_server.key)
    hook = Webhook()
    app = web.Application()
    app.router.add_post("/mutate", hook.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    hook.url = f"https://127.0.0.1:{runner.addresses[0][1]}/mutate"
    hook.ca_bundle = files.ca_bundle
    yield hook
    await runner.cleanup()


@pytest.fixture
def register(webhook, server, client):
    async def create(name="hook", **rest):
        entry = {
            "name": f"{name}.memopod.io",
            "clientConfig": {"url": webhook.url, "caBundle": webhook.ca_bundle},
            "rules": [
                {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
            ],
            "admissionReviewVersions": ["v1", "v1beta1"],
            "sideEffects": "None",
            "failurePolicy": "Ignore",
            "timeoutSeconds": 1,
            **rest,
        }
        await client.create(MUTATING_WEBHOOKS, {"metadata": {"name": name}, "webhooks": [entry]})

    return create


async def test_a_patch_changes_the_pod_before_it_is_stored(webhook, register, create_pod):
    webhook.answer = lambda review: allow(review, HOLD)
    await register()
    pod = await create_pod()
    assert pod["spec"]["schedulingGates"] == [{"name": "memopod.io/decide"}]
    assert pod["status"]["conditions"][0]["reason"] == "SchedulingGated"
    assert webhook.queries == [{"timeout": "1s"}]


async def test_the_request_says_who_what_and_where(webhook, register, server, tmp_path, make_pod):
    await register()
    async with Client.from_kubeconfig(str(tmp_path / "kube" / "workflow-controller.kubeconfig")) as argo:
        await argo.create(PODS, make_pod(), namespace=NS)
    review = webhook.reviews[0]
    request = review["request"]
    assert review["apiVersion"] == "admission.k8s.io/v1"
    assert request["userInfo"]["username"] == "system:serviceaccount:argo:argo"
    assert request["userInfo"]["groups"] == [
        "system:serviceaccounts",
        "system:serviceaccounts:argo",
        "system:authenticated",
    ]
    assert (request["name"], request["namespace"], request["operation"]) == ("a", NS, "CREATE")
    assert request["kind"] == {"group": "", "version": "v1", "kind": "Pod"}
    assert request["object"]["status"] == {}
    assert not {"uid", "creationTimestamp", "resourceVersion"} & request["object"]["metadata"].keys()


async def test_the_version_that_the_webhook_prefers_is_spoken(webhook, register, create_pod):
    await register(admissionReviewVersions=["v1beta1"])
    await create_pod()
    assert webhook.reviews[0]["apiVersion"] == "admission.k8s.io/v1beta1"


async def test_pods_as_argo_sends_them_reach_the_webhook_as_recorded(webhook, register, client):
    await client.create(NAMESPACES, {"metadata": {"name": "kubeflow"}})
    await register()
    recordings = sorted(SAMPLES.glob("*/*.admission.json"))
    assert recordings
    for path in recordings:
        recorded = json.loads(path.read_text())["request"]["object"]
        await client.create(PODS, as_sent(recorded), namespace=recorded["metadata"]["namespace"])
        seen = webhook.reviews.pop()["request"]["object"]
        assert comparable(seen) == comparable(recorded), path.name
        await client.delete(PODS, seen["metadata"]["name"], namespace=seen["metadata"]["namespace"])


def as_sent(recorded):
    """A recorded Pod without what the real API server had added before it called the webhook."""
    pod = copy.deepcopy(recorded)
    spec = pod["spec"]
    added = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    spec["tolerations"] = [entry for entry in spec["tolerations"] if entry.get("key") not in added]
    for field in (
        "priority",
        "preemptionPolicy",
        "schedulerName",
        "dnsPolicy",
        "enableServiceLinks",
        "terminationGracePeriodSeconds",
        "serviceAccount",
    ):
        spec.pop(field, None)
    # Argo's agent mounts a token by itself, under the same name but from a Secret.
    tokens = {v["name"] for v in spec.get("volumes") or [] if "projected" in v and "kube-api" in v["name"]}
    spec["volumes"] = [v for v in spec.get("volumes") or [] if v["name"] not in tokens]
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        mounts = container.get("volumeMounts") or []
        container["volumeMounts"] = [m for m in mounts if m["name"] not in tokens]
        for field in ("terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy"):
            container.pop(field)
    return pod


def comparable(pod):
    pod = copy.deepcopy(pod)
    spec = pod["spec"]
    names = [v["name"] for v in spec["volumes"] if v["name"].startswith("kube-api-access-")]
    spec["volumes"].sort(key=lambda volume: volume["name"])
    text = json.dumps(pod, sort_keys=True)
    for name in names:
        text = text.replace(name, "kube-api-access")
    return json.loads(text)


@pytest.mark.parametrize(
    "scope",
    [
        {"objectSelector": {"matchLabels": {"memopod.io/cache": "true"}}},
        {"namespaceSelector": {"matchLabels": {"memopod.io/cache": "true"}}},
        {
            "rules": [
                {"operations": ["UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
            ]
        },
        {
            "rules": [
                {"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"]}
            ]
        },
        {
            "rules": [
                {
                    "operations": ["*"],
                    "apiGroups": ["*"],
                    "apiVersions": ["*"],
                    "resources": ["*"],
                    "scope": "Cluster",
                }
            ]
        },
    ],
)
async def test_a_webhook_is_asked_only_about_what_it_selects(webhook, register, create_pod, scope):
    await register(**scope)
    await create_pod()
    assert webhook.reviews == []


async def test_selected_pods_and_namespaces_are_asked_about(webhook, register, create_pod, client):
    await register(
        objectSelector={"matchLabels": {"memopod.io/cache": "true"}},
        namespaceSelector={
            "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": [NS]}]
        },
    )
    await create_pod("a", labels={"memopod.io/cache": "true"})
    await create_pod("b", labels={"memopod.io/cache": "true"}, namespace="default")
    await client.create(CONFIG_MAPS, {"metadata": {"name": "c"}}, namespace=NS)
    assert [review["request"]["name"] for review in webhook.reviews] == ["a"]


async def too_late(review):
    await asyncio.sleep(60)


FAILURES = {
    "no answer in time": too_late,
    "an error": lambda review: web.Response(status=500),
    "no JSON": lambda review: web.Response(text="?"),
    "no review": lambda review: web.json_response({}),
    "another uid": lambda review: {"uid": "another", "allowed": True},
    "another version": lambda review: web.json_response(
        {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v9", "response": allow(review)}
    ),
    "no patch type": lambda review: {**allow(review, HOLD), "patchType": "Merge"},
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
async def test_a_webhook_that_fails_is_ignored_where_it_says_so(webhook, register, create_pod, failure):
    webhook.answer = failure
    await register()
    assert "schedulingGates" not in (await create_pod())["spec"]
    assert len(webhook.reviews) == 1


async def test_a_webhook_that_fails_refuses_the_pod_where_it_says_so(webhook, register, create_pod):
    webhook.answer = FAILURES["an error"]
    await register(failurePolicy="Fail")
    with pytest.raises(ApiError) as refusal:
        await create_pod()
    assert (refusal.value.status, refusal.value.reason) == (500, "InternalError")


@pytest.mark.parametrize(
    "config",
    [
        {"clientConfig": {"url": "https://127.0.0.1:1/mutate"}},
        {"clientConfig": {"url": "https://127.0.0.1:1/mutate", "caBundle": "bm9uc2Vuc2U="}},
        {"clientConfig": {"service": {"name": "cache-server", "namespace": "memopod"}}},
        {"matchConditions": [{"name": "c", "expression": "true"}]},
        {"admissionReviewVersions": ["v7"]},
    ],
)
async def test_a_webhook_that_cannot_be_called_is_ignored_too(register, create_pod, config):
    await register(**config)
    assert (await create_pod())["status"]["phase"] == "Pending"


async def test_a_webhook_with_another_authority_is_not_trusted(webhook, register, create_pod):
    await register(clientConfig={"url": webhook.url})
    await create_pod()
    assert webhook.reviews == []


async def test_a_patch_that_does_not_fit_refuses_the_pod_whatever_the_policy(webhook, register, create_pod):
    patch = [{"op": "add", "path": "/metadata/annotations/k", "value": "v"}]
    webhook.answer = lambda review: allow(review, patch)
    await register()
    with pytest.raises(Invalid):
        await create_pod()


async def test_a_denied_pod_is_forbidden_with_the_reason_given(webhook, register, create_pod):
    webhook.answer = lambda review: {
        "uid": review["request"]["uid"],
        "allowed": False,
        "status": {"message": "not today"},
    }
    await register()
    with pytest.raises(Forbidden, match="not today"):
        await create_pod()


async def test_warnings_reach_the_client(webhook, register, http, make_pod):
    webhook.answer = lambda review: allow(review, warnings=["mind the gap"])
    await register()
    answer = await http("POST", PODS.path(NS), body=make_pod())
    assert answer.headers["Warning"] == '299 - "mind the gap"'


async def test_webhooks_are_called_in_the_order_of_their_names(webhook, register, create_pod):
    def append(review):
        mark = review["request"]["object"]["metadata"].get("annotations", {}).get("n", "")
        value = {"n": mark + str(len(webhook.reviews))}
        return allow(review, [{"op": "add", "path": "/metadata/annotations", "value": value}])

    webhook.answer = append
    await register("b")
    await register("a")
    assert (await create_pod())["metadata"]["annotations"] == {"n": "12"}


async def test_a_dry_run_asks_only_webhooks_without_side_effects(webhook, register, http, make_pod):
    await register("a", sideEffects="Some")
    await register("b")
    await http("POST", PODS.path(NS) + "?dryRun=All", body=make_pod())
    assert [review["request"]["dryRun"] for review in webhook.reviews] == [True]
