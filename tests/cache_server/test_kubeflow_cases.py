"""The cases of the tests of Kubeflow's cache server, under the names they have in its contract.

Where memopod answers otherwise, it says so beside the case: no error ever refuses a Pod, and an entry
that may not be reused never stands in the way of a new one.
"""

import base64
import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp.test_utils import TestClient, TestServer

from cache_server.admission import Policy
from cache_server.decision import Reuse
from cache_server.entries import Entry
from cache_server.entries.imported import KEY_VERSION_IMPORTED, imported_components, imported_key
from cache_server.placeholder import PlaceholderRules, placeholders
from cache_server.webhook import build_webhook
from memopod.steps import Outputs, names, read_step
from memopod.steps.kubeflow import fingerprint
from memopod.steps.staleness import StalenessRules

CREATOR = "system:serviceaccount:kubeflow:argo"
FIRST = "07f2c42567af4f141a52887e0a113c9aefdfdfd5e6b06b9908f7fdb0b43739af"
WITH_OUTPUTS = "4b868c5d0b64e4d93e529eadaa04f0451eb5ae5c652dd79c08bdc47a6a1fe67a"
TEMPLATE = {"name": "Does not matter", "container": {"command": ["echo", "Hello"], "image": "python:3.11"}}
INDENTED = {"metadata": {"annotations": {"a": "b"}}, "foo": "bar", **TEMPLATE}
PODS = {"group": "", "version": "v1", "resource": "pods"}
POLICY = Policy(secret=b"s" * 32, trusted_creators=frozenset({CREATOR}), hold_seconds=30.0)
IMAGE = "ghcr.io/containerd/busybox"


def make_pod(template=TEMPLATE, indent=None, labels=None, annotations=None, command=("python",)):
    """The Pod of Kubeflow's tests, with what every Pod of a Workflow has besides: owner and node."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "wf-1",
            "labels": {
                "workflows.argoproj.io/completed": "true", names.KFP_OPT_IN_LABEL: "true", **(labels or {}),
            },
            "annotations": {
                names.ARGO_NODE_NAME: "test_node", names.ARGO_NODE_ID: "wf-1", **(annotations or {}),
            },
            "ownerReferences": [
                {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "wf", "uid": "u"}
            ],
        },
        "spec": {
            "containers": [
                {
                    "name": "main", "image": "test_image", "command": list(command),
                    "env": [{"name": names.ENV_TEMPLATE, "value": json.dumps(template, indent=indent)}],
                }
            ],
            "nodeSelector": {"disktype": "ssd"},
        },
    }  # fmt: skip


def row(fingerprint, template=TEMPLATE, **changes):
    """An entry as it is imported: of a run that nobody knows any more."""
    now = datetime.now(UTC)
    entry = Entry(
        id=uuid.uuid4().hex, namespace="kubeflow", key=imported_key(fingerprint),
        key_version=KEY_VERSION_IMPORTED, components=imported_components(template), template_name="",
        workflow="", workflow_uid="", node_id="", pod_name="", pod_uid=uuid.uuid4().hex, image_id="",
        outputs=Outputs(parameters={}), execution_id=None, started_at=now, finished_at=now, recorded_at=now,
    )  # fmt: skip
    return replace(entry, **changes)


class Kubeflow:
    """A webhook in placeholder mode, asked as an API server asks Kubeflow's."""

    def __init__(self, parts, client_of):
        self.parts = parts
        self._client_of = client_of

    async def answer(self, pod, resource=PODS, image=IMAGE, restrictions=True):
        rules = PlaceholderRules(image=image, keeps_node_restrictions=restrictions, timeout=30.0)
        judge = placeholders(POLICY, self.parts.decider, lambda: True, rules)
        review = {
            "apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview",
            "request": {
                "uid": "123", "resource": resource, "namespace": "kubeflow", "operation": "CREATE",
                "userInfo": {"username": CREATOR}, "object": pod,
            },
        }  # fmt: skip
        async with self._client_of(judge) as client:
            answer = await client.post("/mutate", json=review)
            assert answer.status == 200
            response = (await answer.json())["response"]
        assert response["uid"] == "123"
        assert response["allowed"] is True
        return response

    async def patch(self, pod, **arguments):
        response = await self.answer(pod, **arguments)
        return json.loads(base64.b64decode(response["patch"])) if "patch" in response else None

    async def hit(self, **arguments):
        await self.parts.entries.put(row(FIRST))
        return await self.patch(make_pod(), **arguments)


@pytest.fixture
def kubeflow(parts):
    return Kubeflow(parts, lambda judge: TestClient(TestServer(build_webhook(judge))))


def ops(patch):
    return [op["op"] for op in patch]


async def error_pod_resource(kubeflow):
    assert await kubeflow.patch(make_pod(), resource={"group": "wrong", "version": "wrong"}) is None


async def decode_error(kubeflow):
    # Kubeflow's server refuses the Pod: "could not deserialize pod object".
    response = await kubeflow.answer("\u0005\u0005")
    assert "patch" not in response
    assert response["auditAnnotations"]["reason"] == "pod-unreadable"


async def cache_disabled_pod(kubeflow):
    assert await kubeflow.patch(make_pod(labels={names.KFP_OPT_IN_LABEL: "false"})) is None


async def tfx_pod(kubeflow):
    entry_point = "/tfx-src/tfx/orchestration/kubeflow/container_entrypoint.py"
    assert await kubeflow.patch(make_pod(command=["python", entry_point])) is None


async def tfx_pod_2(kubeflow):
    for sdk in ("tfx", "tfx-template"):
        assert await kubeflow.patch(make_pod(labels={names.KFP_SDK_TYPE: sdk})) is None


async def kfp_v2_pod(kubeflow):
    assert await kubeflow.patch(make_pod(annotations={names.KFP_V2_COMPONENT: "true"})) is None


async def mutate_pod_if_cached(kubeflow):
    pod = make_pod()
    patch = await kubeflow.patch(pod)
    assert [(op["op"], op["path"]) for op in patch] == [
        ("add", "/metadata/annotations"), ("add", "/metadata/labels"),
    ]  # fmt: skip
    assert patch[0]["value"].items() >= {**pod["metadata"]["annotations"], names.KFP_CACHE_KEY: FIRST}.items()
    assert patch[1]["value"].items() >= {**pod["metadata"]["labels"], names.KFP_CACHE_ID: ""}.items()


async def cache_entry_exist(kubeflow):
    # A row whose output is "testOutput", which is no JSON, is imported as one without outputs.
    patch = await kubeflow.hit()
    assert ops(patch) == ["replace", "add", "add"]
    assert [op["path"] for op in patch] == ["/spec/containers", "/metadata/annotations", "/metadata/labels"]
    labels = patch[2]["value"]
    assert labels[names.KFP_CACHE_ID].isdigit()
    assert labels[names.KFP_REUSED] == labels[names.KFP_WRITTEN] == "true"
    assert labels[names.KFP_EXECUTION_ID] == ""
    assert patch[1]["value"][names.KFP_CACHE_KEY] == FIRST


async def default_image(kubeflow):
    (container,) = (await kubeflow.hit())[0]["value"]
    assert container["image"] == "ghcr.io/containerd/busybox"
    assert container["command"] == ["echo", '"This step output is taken from cache."']
    assert container["resources"] == {"requests": {"cpu": "10m", "memory": "16Mi"}}


async def set_image(kubeflow):
    assert (await kubeflow.hit(image="testimage"))[0]["value"][0]["image"] == "testimage"


async def cache_node_restriction(kubeflow):
    patch = await kubeflow.hit(restrictions=False)
    assert patch[1] == {"op": "remove", "path": "/spec/nodeSelector"}


async def template_cleanup(kubeflow):
    # In Kubeflow's test `outputs` is the text "anything", which is no template of Argo's.
    outputs = {"parameters": [{"name": "o", "valueFrom": {"path": "/o"}}]}
    cleaned = {"container": TEMPLATE["container"], "outputs": outputs}
    stored = Outputs(parameters={"o": "testOutput"})
    stored_as = {**INDENTED, "outputs": outputs, "metadata": {"annotations": {"a": "c"}}}
    entry = row(fingerprint(json.dumps(cleaned)), stored_as, outputs=stored)
    await kubeflow.parts.entries.put(entry)
    patch = await kubeflow.patch(make_pod({**INDENTED, "outputs": outputs}, indent=2))
    assert ops(patch) == ["replace", "add", "add"]
    assert json.loads(patch[1]["value"][names.ARGO_OUTPUTS])["parameters"][0]["value"] == "testOutput"
    assert fingerprint(json.dumps({**INDENTED, "outputs": "anything"}, indent=2)) == WITH_OUTPUTS


MUTATION = {
    "ErrorPodResource": error_pod_resource,
    "DecodeError": decode_error,
    "CacheDisabledPod": cache_disabled_pod,
    "TFXPod": tfx_pod,
    "TFXPod2": tfx_pod_2,
    "KfpV2Pod": kfp_v2_pod,
    "MutatePodIfCached": mutate_pod_if_cached,
    "CacheEntryExist": cache_entry_exist,
    "DefaultImage": default_image,
    "SetImage": set_image,
    "CacheNodeRestriction": cache_node_restriction,
    "TeamplateCleanup": template_cleanup,
}


@pytest.mark.parametrize("case", MUTATION.values(), ids=MUTATION)
async def test_mutation(kubeflow, case):
    await case(kubeflow)


ADMISSION = {
    "kube namespaces": ("POST", "application/json", {"request": {"namespace": "kube-system"}}, 200, ""),
    "good POST": ("POST", "application/json", {"request": {"uid": "1"}}, 200, ""),
    "bad method": ("GET", "application/json", None, 405, "Invalid method"),
    "bad content type": ("POST", "text/plain", {}, 400, "Unsupported content type"),
    "bad body": ("POST", "application/json", "invalid", 400, "Could not deserialize request"),
    "nil request": (
        "POST", "application/json", {"kind": "pods", "apiVersion": "v1"}, 400,
        "Malformed admission review request: request body is nil",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADMISSION.values(), ids=ADMISSION)
async def test_admission(kubeflow, case):
    method, content_type, body, status, text = case
    rules = PlaceholderRules(image=IMAGE, keeps_node_restrictions=True, timeout=30.0)
    judge = placeholders(POLICY, kubeflow.parts.decider, lambda: True, rules)
    async with TestClient(TestServer(build_webhook(judge))) as client:
        answer = await client.request(
            method, "/mutate", data=json.dumps(body).encode(), headers={"Content-Type": content_type}
        )
        assert answer.status == status
        if status == 200:
            assert (await answer.json())["response"]["allowed"] is True
        else:
            assert text in await answer.text()


async def decide(kubeflow, **annotations):
    step = read_step(make_pod(annotations=annotations), namespace="kubeflow")
    return await kubeflow.parts.decider.look_up(step, timeout=30.0, fingerprint=FIRST)


async def create(kubeflow):
    assert await kubeflow.parts.entries.put(row(FIRST)) is True


async def duplicate_refused(kubeflow):
    first = row(FIRST)
    await kubeflow.parts.entries.put(first)
    assert await kubeflow.parts.entries.put(replace(row(FIRST), finished_at=first.finished_at)) is False
    # Kubeflow's server refuses a newer success too, and so keeps an expired row for ever.
    later = first.finished_at + timedelta(seconds=1)
    assert await kubeflow.parts.entries.put(replace(row(FIRST), finished_at=later)) is True


async def get(kubeflow):
    entry = row(FIRST)
    await kubeflow.parts.entries.put(entry)
    assert await kubeflow.parts.entries.find("kubeflow", imported_key(FIRST)) == entry


async def wrong_key(kubeflow):
    await kubeflow.parts.entries.put(row(WITH_OUTPUTS))
    assert (await decide(kubeflow)).reason == "miss"


async def first_of_two_kept(kubeflow):
    first = row(FIRST)
    second = replace(row(FIRST), started_at=first.started_at, finished_at=first.finished_at)
    await kubeflow.parts.entries.put(first)
    await kubeflow.parts.entries.put(second)
    assert (await decide(kubeflow)).entry == first


async def row_staleness_0(kubeflow):
    await kubeflow.parts.entries.put(row(FIRST, max_staleness_seconds=0))
    assert (await decide(kubeflow)).reason == "stale"


async def pod_staleness_0(kubeflow):
    await kubeflow.parts.entries.put(row(FIRST))
    assert isinstance(await decide(kubeflow), Reuse)
    assert (await decide(kubeflow, **{names.KFP_MAX_STALENESS: "P0D"})).reason == "disabled"


async def maximum_0_purge(kubeflow):
    kubeflow.parts.rules["staleness"] = StalenessRules(maximum=0)
    kubeflow.parts.again()
    await kubeflow.parts.entries.put(row(FIRST))
    assert (await decide(kubeflow)).reason == "disabled"
    # Nothing is deleted at admission: that is a job in the background.
    assert await kubeflow.parts.entries.find("kubeflow", imported_key(FIRST)) is not None


STORE = {
    "create": create,
    "duplicate refused": duplicate_refused,
    "get": get,
    "wrong key": wrong_key,
    "first of two kept": first_of_two_kept,
    "row staleness 0": row_staleness_0,
    "pod staleness 0": pod_staleness_0,
    "MAXIMUM 0 purge": maximum_0_purge,
}


@pytest.mark.parametrize("case", STORE.values(), ids=STORE)
async def test_store(kubeflow, case):
    await case(kubeflow)


def container_with(**fields):
    return {**TEMPLATE, "container": {**TEMPLATE["container"], **fields}}


UNSEEN = {
    "envFrom": container_with(envFrom=[{"configMapRef": {"name": "settings", "optional": True}}]),
    "workingDir": container_with(workingDir="/other"),
    "securityContext": container_with(securityContext={"runAsUser": 7}),
    "podSpecPatch": {**TEMPLATE, "podSpecPatch": '{"hostNetwork": true}'},
    "serviceAccountName": {**TEMPLATE, "serviceAccountName": "other"},
    "a field that is new": {**TEMPLATE, "foo": "bar"},
}


@pytest.mark.parametrize("template", UNSEEN.values(), ids=UNSEEN)
async def test_what_kubeflows_fingerprint_leaves_out_is_compared_with_the_rows_template(kubeflow, template):
    assert fingerprint(json.dumps(template)) == FIRST
    await kubeflow.parts.entries.put(row(FIRST))
    assert ops(await kubeflow.patch(make_pod(template))) == ["add", "add"]
    await kubeflow.parts.entries.put(
        row(FIRST, template, finished_at=datetime.now(UTC) + timedelta(seconds=1))
    )
    assert ops(await kubeflow.patch(make_pod(template))) == ["replace", "add", "add"]


def reads_a_label(pod):
    reference = {"fieldRef": {"fieldPath": "metadata.labels['zone']"}}
    pod["spec"]["containers"][0]["env"].append({"name": "ZONE", "valueFrom": reference})


def reads_a_config_map(pod):
    reference = {"configMapKeyRef": {"name": "settings", "key": "a", "optional": True}}
    pod["spec"]["containers"][0]["env"].append({"name": "A", "valueFrom": reference})


def has_a_salt(pod):
    pod["metadata"]["annotations"][names.SALT] = "again"


@pytest.mark.parametrize("change", [reads_a_label, reads_a_config_map, has_a_salt])
async def test_a_step_that_rests_on_what_no_row_tells_is_not_an_imported_one(kubeflow, change):
    await kubeflow.parts.entries.put(row(FIRST))
    pod = make_pod()
    assert ops(await kubeflow.patch(pod)) == ["replace", "add", "add"]
    change(pod)
    assert ops(await kubeflow.patch(pod)) == ["add", "add"]
