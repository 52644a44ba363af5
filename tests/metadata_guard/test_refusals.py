"""What is not answered at all, and what is said then."""

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from metadata_guard.answers import LIMITED, SERVICE
from metadata_guard.guard import Guard
from metadata_guard.store import Store
from tests.metadata_guard.conftest import Known, code, stores


async def test_a_filter_is_refused_since_its_matches_show(ask):
    options = mlmd.ListOperationOptions(max_result_size=1, filter_query="name = 'run/run-team-b'")
    status, message = await code(ask("team-a", "GetExecutions", options=options))
    assert (status, "filter_query" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)


@pytest.mark.parametrize("rpc", [m.name for m in SERVICE.methods if m.name not in LIMITED])
async def test_what_cannot_be_limited_is_refused(ask, rpc):
    status, message = await code(ask("team-a", rpc))
    assert status == grpc.StatusCode.PERMISSION_DENIED
    assert message == f"{rpc} cannot be limited to a caller's namespaces"


def test_that_is_every_write_and_the_reads_of_whole_graphs():
    assert {m.name for m in SERVICE.methods if m.name.startswith("Get")} - set(LIMITED) == {
        "GetLineageGraph", "GetLineageSubgraph",
        "GetParentContextsByContexts", "GetChildrenContextsByContexts",
    }  # fmt: skip
    assert not [name for name in LIMITED if not name.startswith("Get")]


@pytest.mark.parametrize("authorization", [None, "", "Bearer ", "Basic dXNlcg==", "Bearer false"])
async def test_without_a_token_that_is_known_nothing_is_answered(filled, authorization):
    async with Store.channel(filled[0]) as channel:
        guard = Guard(Known(), Store(channel))
        for rpc in ("GetContextTypes", "PutContexts"):
            status, _ = await code(guard.call(rpc, b"", authorization, 20))
            assert status == grpc.StatusCode.UNAUTHENTICATED


async def test_while_the_api_server_is_away_nothing_is_answered(ask):
    status, _ = await code(ask("away", "GetContextTypes"))
    assert status == grpc.StatusCode.UNAVAILABLE


async def test_a_request_that_is_none_is_refused(filled):
    async with Store.channel(filled[0]) as channel:
        status, _ = await code(
            Guard(Known(), Store(channel)).call("GetContexts", b"\xff", "Bearer team-a", 20)
        )
    assert status == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("trouble", [ValueError("secret"), KeyError("secret"), AssertionError("secret")])
async def test_whatever_fails_ends_as_a_status_that_tells_nothing(filled, trouble):
    class Broken(Known):
        async def may_read(self, caller, namespace):
            raise trouble

    async with Store.channel(filled[0]) as channel:
        status, message = await code(
            Guard(Broken(), Store(channel)).call("GetContexts", b"", "Bearer team-a", 20)
        )
    assert (status, message) == (grpc.StatusCode.INTERNAL, "the guard failed at GetContexts")


async def test_an_answer_of_the_store_that_is_none_is_not_passed_on():
    async def garbage(request, context):
        return b"\xff\xffsecret"

    async with stores({"GetContexts": garbage}) as (channel, _):
        status, message = await code(
            Guard(Known(), Store(channel)).call("GetContexts", b"", "Bearer team-a", 20)
        )
    assert (status, "secret" in message) == (grpc.StatusCode.INTERNAL, False)
