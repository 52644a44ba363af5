"""Kubeflow's manifest with another image: its arguments and its account, which may do less than memopod's."""

import uuid

from memopod.kube import PODS
from memopod.sandbox.certificates import prepare_state
from memopod.sandbox.control_plane import apply
from memopod.sandbox.ports import free_ports
from memopod.steps import names
from tests.real.argo import Step
from tests.real.cluster import until

ACCOUNT = "kubeflow-pipelines-cache"
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "update", "patch"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
    {
        "apiGroups": ["argoproj.io"], "resources": ["workflows"],
        "verbs": ["get", "list", "watch", "update", "patch"],
    },
]  # fmt: skip
"""Of its Role, in the namespace of the workflows."""


async def as_kubeflow(cluster, admin, mariadb):
    rbac = "rbac.authorization.k8s.io"
    here = {"name": ACCOUNT, "namespace": cluster.pipelines}
    await apply(admin, [
        {
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": ACCOUNT, "namespace": cluster.system},
        },
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": here, "rules": RULES},
        {
            "apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": here,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": cluster.system}],
        },
    ])  # fmt: skip
    tls = prepare_state(cluster.plane, cluster.port).cache_server
    (port,) = free_ports(1)
    await cluster.register_webhook(port)
    return await cluster.start(
        "cache_server", "--db_driver=mysql", "--db_host=127.0.0.1", f"--db_port={mariadb.port}",
        f"--db_name=cache{uuid.uuid4().hex[:8]}", f"--db_user={mariadb.user}",
        f"--db_password={mariadb.password}", f"--namespace_to_watch={cluster.pipelines}",
        f"--listen_port={port}", f"--tls_cert_filename={tls.certificate}", f"--tls_key_filename={tls.key}",
        account=ACCOUNT, port=port,
    )  # fmt: skip


async def submitted(cluster, argo, step):
    """The new Pod of one more run of a step."""
    before = {pod["metadata"]["uid"] for pod in await cluster.pods()}
    await argo.submit(step)

    async def created():
        new = [pod for pod in await cluster.pods() if pod["metadata"]["uid"] not in before]
        return new[0] if new else None

    return await until(created, "its Pod is there")


async def test_with_argo_3_5_a_repeated_step_is_swapped(cluster, admin, play, mariadb):
    await as_kubeflow(cluster, admin, mariadb)
    argo, _ = await play(version="3.5.15")
    step = Step(sample="parameters.make", annotations={names.SALT: uuid.uuid4().hex})
    first = await argo.submit(step)
    await first.until(lambda: first.over, "it ran", limit=60)

    async def swapped():
        pod = await submitted(cluster, argo, step)
        return pod["metadata"]["labels"].get(names.KFP_REUSED) == "true"

    await until(swapped, "a later run is swapped", limit=60)


async def test_with_argo_4_1_a_step_with_outputs_runs_since_its_result_may_not_be_written(
    cluster, admin, play, mariadb
):
    server = await as_kubeflow(cluster, admin, mariadb)
    argo, _ = await play(version="4.1.2")
    step = Step(sample="parameters.make", annotations={names.SALT: uuid.uuid4().hex})
    first = await argo.submit(step)
    await first.until(lambda: first.over, "it ran", limit=60)

    async def reason():
        pod = await submitted(cluster, argo, step)
        return pod["metadata"]["annotations"].get(names.REASON) == "no-controller"

    await until(reason, "an entry is found and not reused", limit=60)
    assert [line["level"] for line in server.lines() if "not reused" in line.get("event", "")] == ["warning"]
    assert all(
        names.KFP_REUSED not in pod["metadata"]["labels"]
        for pod in (await admin.list(PODS, namespace=cluster.pipelines))["items"]
    )
