import pytest

from memopod.kube import LEASES, NAMESPACES, PODS


def test_paths_are_those_of_the_api():
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path("n") == "/api/v1/namespaces/n/pods"
    assert PODS.path("n", "a", "status") == "/api/v1/namespaces/n/pods/a/status"
    assert LEASES.path("n", "a") == "/apis/coordination.k8s.io/v1/namespaces/n/leases/a"
    assert NAMESPACES.path(None, "n") == "/api/v1/namespaces/n"
    assert LEASES.api_version == "coordination.k8s.io/v1"


def test_names_cannot_leave_their_place_in_a_path():
    assert PODS.path("n", "../secrets/s") == "/api/v1/namespaces/n/pods/..%2Fsecrets%2Fs"


def test_a_named_object_needs_its_namespace():
    with pytest.raises(ValueError, match="namespace"):
        PODS.path(None, "a")
