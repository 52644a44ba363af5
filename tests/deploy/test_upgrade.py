"""Newer manifests are applied over older ones: what Kubernetes lets nobody change in place stays as it is.

Whoever changes one of these makes `kubectl apply` fail for every installation (a field is immutable), or
leaves its data behind, on a volume of another name.
"""

import pytest

from tests.deploy.render import COMBINATIONS, of, render, workloads

NAME = "app.kubernetes.io/name"
IN_KUBEFLOW = {"metadata-store": "metadata-grpc-deployment", "metadata-envoy": "metadata-envoy-deployment"}
COMPONENTS = ("cache-server", "janitor", "metadata-writer", "metadata-store", "metadata-envoy")
SERVERS = ("memopod-mysql", "memopod-postgres", "memopod-redis")
CLAIMS = {"memopod-cache", "memopod-metadata"}
ROLES = {
    "cache-server": "cache-server",
    "cache-server-certificates": "cache-server-certificates",
    "memopod-cache-server": "memopod-cache-server",
    "memopod-cache-server-asks": "system:auth-delegator",
    "memopod-cache-server-certificates": "memopod-cache-server-certificates",
    "memopod-janitor": "memopod-janitor",
    "memopod-metadata-guard": "memopod-metadata-guard",
    "memopod-metadata-writer": "memopod-metadata-writer",
    "metadata-writer": "metadata-writer",
}
every = pytest.mark.parametrize("parts", COMBINATIONS, ids="+".join)


@every
def test_names_and_selectors_of_workloads_are_those_of_installations_that_there_are(parts):
    names = IN_KUBEFLOW if any("kubeflow" in part for part in parts) else {}
    known = {names.get(name, name): {NAME: name} for name in (*COMPONENTS, *SERVERS)}
    for workload in workloads(render(*parts)):
        assert workload["spec"]["selector"] == {"matchLabels": known[workload["metadata"]["name"]]}


@every
def test_volumes_services_and_bindings_can_be_applied_over_those_that_there_are(parts):
    documents = render(*parts)
    for claim in of(documents, "PersistentVolumeClaim"):
        assert claim["metadata"]["name"] in CLAIMS
        assert claim["spec"].keys() == {"accessModes", "resources"}
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    for server in of(documents, "StatefulSet"):
        assert server["spec"]["serviceName"] == server["metadata"]["name"]
        (claim,) = server["spec"]["volumeClaimTemplates"]
        assert claim["metadata"]["name"] == "data"
        assert claim["spec"] == {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}},
        }  # fmt: skip
    without_address = [s["metadata"]["name"] for s in of(documents, "Service") if "clusterIP" in s["spec"]]
    assert without_address == ["metadata-grpc-replicas"]
    for binding in of(documents, "RoleBinding", "ClusterRoleBinding"):
        assert binding["roleRef"]["name"] == ROLES[binding["metadata"]["name"]]
