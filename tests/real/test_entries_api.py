"""The API of the entries, with tokens and Roles of a real API server."""

import ssl
from pathlib import Path

import aiohttp
import pytest
import yaml

from memopod.kube import SERVICE_ACCOUNTS
from memopod.sandbox.control_plane import apply
from tests.real.cluster import installed_as, until

DEPLOYED = Path(__file__).parents[2] / "deploy" / "base" / "entries-api.yaml"


async def account(cluster, name, *roles):
    """A token of a new account that has these ClusterRoles in the namespace of pipelines."""
    namespace = cluster.pipelines
    documents = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}},
        *(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": f"{name}-{role}", "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            }
            for role in roles
        ),
    ]  # fmt: skip
    await apply(cluster.admin, documents)
    request = {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600},
    }  # fmt: skip
    answer = await cluster.admin.create(
        SERVICE_ACCOUNTS, request, namespace=namespace, name=name, subresource="token"
    )
    return answer["status"]["token"]


@pytest.fixture
async def ask(cluster):
    """`status, document = await ask(method, path, token, body)` of a cache server under its own account."""
    documents = list(yaml.safe_load_all(DEPLOYED.read_text()))
    binding, *_ = installed_as(documents, cluster.system, cluster.name)
    # Kubernetes' own role has one name everywhere.
    binding["roleRef"]["name"] = "system:auth-delegator"
    await apply(cluster.admin, documents)
    server = await cluster.cache_server("--api-port", "0", "--api-host", "127.0.0.1", register=False)
    (serving,) = server.lines("serving")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def ask(method, path, token, body=None):
            url = f"https://127.0.0.1:{serving['api_port']}{path}"
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with session.request(method, url, headers=headers, json=body) as answer:
                return answer.status, await answer.json()

        yield ask


async def test_a_user_sees_the_namespaces_that_kubernetes_lets_them_view(cluster, ask):
    # Kubernetes adds these roles to its own view and edit, by a controller that does not run here.
    viewer = await account(cluster, "viewer", f"memopod-entries-view-{cluster.name}")
    editor = await account(cluster, "editor", f"memopod-entries-edit-{cluster.name}")
    nobody = await account(cluster, "nobody", "view")
    mine, other = f"namespace={cluster.pipelines}", f"namespace={cluster.system}"

    async def granted():
        return (await ask("GET", f"/v1/entries?{mine}", editor))[0] == 200

    await until(granted, "the API server knows the new binding")
    for path in ("/v1/entries", "/v1/stats"):
        for token, own in ((viewer, 200), (editor, 200), (nobody, 403)):
            assert (await ask("GET", f"{path}?{mine}", token))[0] == own
            assert (await ask("GET", f"{path}?{other}", token))[0] == 403
            assert (await ask("GET", path, token))[0] == 403
    body = {"namespace": cluster.pipelines}
    for token, allowed in ((viewer, 403), (editor, 200), (nobody, 403)):
        assert (await ask("POST", "/v1/invalidate", token, body))[0] == allowed
        assert (await ask("POST", "/v1/invalidate", token, {"namespace": cluster.system}))[0] == 403
        assert (await ask("POST", "/v1/gc", token, {}))[0] == 403
    for wrong in (None, "no.such.token", viewer[:-4], viewer + "x"):
        assert (await ask("GET", f"/v1/entries?{mine}", wrong))[0] == 401
