"""The guard behind Envoy, with tokens that a real API server gives out and reviews."""

import asyncio
from pathlib import Path

import grpc
import pytest
import yaml
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.kube import SERVICE_ACCOUNTS, Client
from memopod.sandbox.control_plane import add_namespace, apply
from memopod.sandbox.ports import free_ports
from metadata_guard.reviews import Reviews, Unauthenticated
from tests.envoy.conftest import EnvoyProcess, StoreProcess
from tests.envoy.fillings import fill_v2
from tests.real.cluster import installed_as, until

RBAC = Path(__file__).parents[2] / "deploy" / "metadata-guard" / "rbac.yaml"
SERVICE = "/ml_metadata.MetadataStoreService"


@pytest.fixture
async def guarded(cluster, admin):
    """The cluster, with the guard's account, two teams' namespaces, and somebody who may look into both."""
    documents = list(yaml.safe_load_all(RBAC.read_text()))
    await apply(admin, installed_as(documents, cluster.system, f"guard-{cluster.name}"))
    for team in teams(cluster):
        await add_namespace(admin, team)
    both = f"both-{cluster.name}"
    await apply(admin, [
        account(teams(cluster)[0], "reader"), account(teams(cluster)[1], "reader"),
        account(cluster.pipelines, "auditor"),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": both},
            "rules": [{"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": ["get"]}],
        },
        *({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": both, "namespace": team},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": both},
            "subjects": [{"kind": "ServiceAccount", "name": "auditor", "namespace": cluster.pipelines}],
        } for team in teams(cluster)),
    ])  # fmt: skip
    return cluster


def teams(cluster):
    return f"team-a-{cluster.name}", f"team-b-{cluster.name}"


def account(namespace, name):
    return {
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace},
    }  # fmt: skip


async def token(cluster, namespace, name, audiences=None):
    request = {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": audiences, "expirationSeconds": 3600},
    }  # fmt: skip
    answer = await cluster.admin.create(
        SERVICE_ACCOUNTS, request, namespace=namespace, name=name, subresource="token"
    )
    return answer["status"]["token"]


async def runs(address, metadata):
    """The names of the v2 runs that a caller sees at this address."""
    async with grpc.aio.insecure_channel(address) as channel:
        request = service.GetContextsByTypeRequest(type_name="system.PipelineRun").SerializeToString()
        call = channel.unary_unary(f"{SERVICE}/GetContextsByType")
        answer = await call(request, metadata=metadata, timeout=30)
    return {context.name for context in service.GetContextsByTypeResponse.FromString(answer).contexts}


async def test_through_envoy_each_team_reads_its_own_and_an_auditor_both(guarded, tmp_path):
    first, second = teams(guarded)
    store = await asyncio.to_thread(StoreProcess(tmp_path).ready)
    (port,) = free_ports(1)
    guard = await guarded.start(
        "metadata_guard", "--store", store.address, "--grpc-port", port, account="metadata-guard"
    )
    envoy = await asyncio.to_thread(
        EnvoyProcess, tmp_path, store.address, flags=[f"--guard=127.0.0.1:{port}"]
    )
    try:
        for team in (first, second):
            await fill_v2(envoy.full_address, run=f"run-{team}", namespace=team)
        expected = {
            (first, "reader"): {f"run-{first}"},
            (second, "reader"): {f"run-{second}"},
            (guarded.pipelines, "auditor"): {f"run-{first}", f"run-{second}"},
            (guarded.system, "janitor"): set(),
        }
        for (namespace, name), seen in expected.items():
            bearer = [("authorization", f"Bearer {await token(guarded, namespace, name)}")]
            assert await runs(envoy.address, bearer) == seen, name
        for metadata in ([], [("authorization", "Bearer nobody's")]):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await runs(envoy.address, metadata)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert await guard.metric("memopod_guard_calls_total", code="UNAUTHENTICATED") == 2
        assert "Bearer" not in guard.log.read_text()
        assert await guard.stop() == 0
    finally:
        envoy.stop()
        store.stop()


async def test_a_token_for_somebody_else_is_not_accepted(guarded):
    (team, _) = teams(guarded)
    path = await guarded.kubeconfig("metadata-guard")
    async with Client.from_kubeconfig(str(path)) as client:
        ours = Reviews(client, audiences=["memopod-metadata"], seconds=60)
        meant = await token(guarded, team, "reader", ["memopod-metadata"])
        caller = await ours.caller(meant)
        assert caller.namespace == team
        assert await ours.may_read(caller, team)
        assert not await ours.may_read(caller, teams(guarded)[1])
        assert not await ours.may_read(caller, "")
        with pytest.raises(Unauthenticated):
            await ours.caller(await token(guarded, team, "reader"))
        with pytest.raises(Unauthenticated):
            await Reviews(client, audiences=[], seconds=60).caller(meant)


async def test_a_review_that_is_taken_back_holds_no_longer_than_it_is_kept(guarded, admin):
    team = teams(guarded)[0]
    path = await guarded.kubeconfig("metadata-guard")
    bearer = await token(guarded, team, "reader")
    async with Client.from_kubeconfig(str(path)) as client:
        reviews = Reviews(client, audiences=[], seconds=0)
        assert (await reviews.caller(bearer)).namespace == team
        await admin.delete(SERVICE_ACCOUNTS, "reader", namespace=team)

        async def refused():
            try:
                await reviews.caller(bearer)
            except Unauthenticated:
                return True
            return False

        await until(refused, "the token of an account that is gone is refused")
