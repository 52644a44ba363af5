"""One store for all, and calls to it through a guard."""

import asyncio
import contextlib

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.kube import Unavailable
from memopod.mlmd import StoreClient
from metadata_guard.answers import SERVICE
from metadata_guard.guard import Guard, Refused
from metadata_guard.reviews import Caller, Unauthenticated
from metadata_guard.store import Store
from tests.envoy.conftest import StoreProcess
from tests.envoy.fillings import fill_v2
from tests.metadata_guard.filling import TEAMS, add_strays, intrude, make_together, record_runs


class Known:
    """In place of the API server: a token is the namespace of a service account."""

    async def caller(self, token):
        if token == "away":
            raise Unavailable("no answer")
        if token == "false":
            raise Unauthenticated("the token is not one that the cluster accepts here")
        return Caller(f"system:serviceaccount:{token}:default", groups=(f"system:serviceaccounts:{token}",))

    async def may_read(self, caller, namespace):
        return bool(namespace) and namespace == caller.namespace


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """(the store's address, the ids of each namespace's v2 run)."""

    async def fill(address):
        await record_runs(address)
        await intrude(address)
        await make_together(address)
        await add_strays(address)
        return {team: await fill_v2(address, run=f"run-{team}", namespace=team) for team in TEAMS}

    store = StoreProcess(tmp_path_factory.mktemp("guarded")).ready()
    try:
        yield store.address, asyncio.run(fill(store.address))
    finally:
        store.stop()


@pytest.fixture
def ids(filled):
    return filled[1]


@pytest.fixture
async def ask(filled):
    """`await ask(namespace, RPC, field=...)`."""
    async with Store.channel(filled[0]) as channel:
        guard = Guard(Known(), Store(channel), inherit=["system.PipelineRun"])
        strict = Guard(Known(), Store(channel))

        async def call(token, rpc, *, inherit=True, **fields):
            request = getattr(service, f"{rpc}Request")(**fields)
            chosen = guard if inherit else strict
            answer = await chosen.call(rpc, request.SerializeToString(), f"Bearer {token}", 20)
            return getattr(service, f"{rpc}Response").FromString(answer)

        yield call


@pytest.fixture
async def whole(filled):
    async with StoreClient(filled[0]) as client:

        async def call(rpc, **fields):
            return await client.call(rpc, getattr(service, f"{rpc}Request")(**fields))

        yield call


async def code(call):
    with pytest.raises(Refused) as caught:
        await call
    return caught.value.code, str(caught.value)


def namespaces(nodes):
    return {node.custom_properties["namespace"].string_value for node in nodes}


@contextlib.asynccontextmanager
async def stores(*handlers):
    """Bare gRPC servers in place of replicas of a store, and a channel to all of them: (channel, healths)."""
    servers, addresses, healths = [], [], []
    for each in handlers:
        server, status = grpc.aio.server(), health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        made = {name: grpc.unary_unary_rpc_method_handler(handle) for name, handle in each.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, made),))
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
        healths.append(status)
    try:
        async with Store.channel(f"ipv4:{','.join(addresses)}") as channel:
            yield channel, healths
    finally:
        for server in servers:
            await server.stop(None)
