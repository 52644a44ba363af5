import pytest

from memopod.kube import NAMESPACES, PODS, WORKFLOWS
from memopod.sandbox.apiserver.catalog import SERVED, discovery, find
from memopod.sandbox.apiserver.statuses import StatusError


@pytest.mark.parametrize(
    ("path", "resource", "rest"),
    [
        ("/api/v1/pods", PODS, (None, None, None)),
        ("/api/v1/namespaces/n/pods", PODS, ("n", None, None)),
        ("/api/v1/namespaces/n/pods/a", PODS, ("n", "a", None)),
        ("/api/v1/namespaces/n/pods/a/status", PODS, ("n", "a", "status")),
        ("/api/v1/namespaces", NAMESPACES, (None, None, None)),
        ("/api/v1/namespaces/n", NAMESPACES, (None, "n", None)),
        ("/api/v1/namespaces/pods", NAMESPACES, (None, "pods", None)),
        ("/apis/argoproj.io/v1alpha1/namespaces/n/workflows/w", WORKFLOWS, ("n", "w", None)),
    ],
)
def test_paths_lead_to_what_they_name(path, resource, rest):
    target = find(path)
    assert target.served.resource == resource
    assert (target.namespace, target.name, target.subresource) == rest


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/v1",
        "/api/v1/nodes",
        "/api/v1/pods/a",
        "/api/v1/namespaces/n/pods/a/exec",
        "/api/v1/namespaces/n/configmaps/a/status",
        "/api/v1/namespaces/n/pods/a/status/more",
        "/api/v1/namespaces//pods",
        "/apis/apps/v1/deployments",
        "/apis/argoproj.io/v1alpha1/namespaces/n/workflows/w/status",
    ],
)
def test_other_paths_are_not_found(path):
    with pytest.raises(StatusError) as refusal:
        find(path)
    assert refusal.value.code == 404


def test_discovery_lists_every_kind_that_is_served():
    listed = set()
    for group in ["/api/v1"] + [
        f"/apis/{g['preferredVersion']['groupVersion']}" for g in discovery("/apis")["groups"]
    ]:
        listed |= {entry["kind"] for entry in discovery(group)["resources"]}
    assert listed == {served.resource.kind for served in SERVED}
    assert discovery("/api")["versions"] == ["v1"]
    assert discovery("/nothing") is None


@pytest.mark.parametrize("served", SERVED, ids=lambda served: served.singular)
def test_a_resources_own_path_leads_back_to_it(served):
    resource = served.resource
    namespace = "n" if resource.namespaced else None
    assert find(resource.path(namespace, "a")).served is served
    assert find(resource.path(namespace)).served is served
