"""The cache server as its own authority, under its own account, before a real API server."""

import base64
from pathlib import Path

import yaml

from memopod.kube import MUTATING_WEBHOOKS, PODS, SECRETS
from memopod.sandbox.ports import free_ports
from memopod.steps import names
from tests.real.argo import Step
from tests.real.cluster import until

COMPONENT = Path(__file__).parents[2] / "deploy" / "components" / "own-certificates" / "rbac.yaml"


def with_own_certificates(documents, configuration):
    """The permissions of deploy/, and of its component, for a configuration of another name."""
    text = COMPONENT.read_text().replace(
        "resourceNames: [memopod-cache]", f"resourceNames: [{configuration}]"
    )
    return [*documents, *yaml.safe_load_all(text)]


async def test_the_api_server_trusts_a_certificate_that_nobody_else_made(cluster, admin, play):
    configuration = f"memopod-{cluster.name}"
    await cluster.permit(lambda documents: with_own_certificates(documents, configuration))
    port = free_ports(1)[0]
    await cluster.register_webhook(port)
    # Until somebody fills it in, the bundle is another authority's.
    server = await cluster.start(
        "cache_server", "--certificates", "own", "--certificate-names", "127.0.0.1",
        "--webhook-configuration", configuration, "--listen-host", "127.0.0.1", "--listen-port", port,
        "--database", f"sqlite:///{cluster.folder / 'cache.db'}", "--lease-namespace", cluster.system,
        "--watch-namespace", cluster.pipelines, account="cache-server", port=port,
    )  # fmt: skip
    secret = await admin.get(SECRETS, "memopod-cache-certificates", namespace=cluster.system)

    async def in_step():
        found = await admin.get(MUTATING_WEBHOOKS, configuration)
        return {w["clientConfig"]["caBundle"] for w in found["webhooks"]} == {secret["data"]["ca.crt"]}

    await until(in_step, "the leader has written caBundle")
    assert len(base64.b64decode(secret["data"]["seal.key"])) == 32
    argo = await play(kubelet=False)
    await until(lambda: marked(cluster, argo), "a Pod is marked by the webhook")
    assert await server.stop() == 0


async def marked(cluster, argo):
    """Whether the webhook sees new Pods: the API server follows a changed bundle within a moment."""
    await argo.submit(Step(sample="parameters.make"))
    pods = (await cluster.admin.list(PODS, namespace=cluster.pipelines))["items"]
    return any(names.KEY in (pod["metadata"].get("annotations") or {}) for pod in pods)
