import asyncio
import time

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import AlreadyExists, NotFound, Retry, StoreClient, StoreError, StoreUnavailable


@pytest.fixture
async def client(store_address):
    async with StoreClient(store_address) as client:
        yield client


class FailingStore:
    """A gRPC server that answers the given codes in turn, then an empty success."""

    def __init__(self, *codes, port=0):
        self.port = port
        self.codes = list(codes)
        self.calls = 0

    async def __aenter__(self):
        self.server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "ml_metadata.MetadataStoreService", {"GetContextTypes": handler}
                ),
            )
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port(f'127.0.0.1:{self.port}')}"
        await self.server.start()
        return self

    async def __aexit__(self, *_):
        await self.server.stop(None)

    async def _answer(self, request, context):
        self.calls += 1
        if self.codes:
            code = self.codes.pop(0)
            if code is None:
                await asyncio.Event().wait()
            await context.abort(code, "as told")
        return b""


REQUEST = service.GetContextTypesRequest()


async def test_any_rpc_is_called_by_name_and_answers_its_own_message(client):
    answer = await client.call(
        "PutContextType", service.PutContextTypeRequest(context_type=mlmd.ContextType(name="t"))
    )
    assert isinstance(answer, service.PutContextTypeResponse)
    found = await client.call("GetContextType", service.GetContextTypeRequest(type_name="t"))
    assert found.context_type.id == answer.type_id


async def test_errors_are_named_by_their_code(client):
    with pytest.raises(NotFound) as missing:
        await client.call("GetContextType", service.GetContextTypeRequest(type_name="missing"))
    assert (missing.value.code, "No type found" in missing.value.details) == (grpc.StatusCode.NOT_FOUND, True)
    named = mlmd.ContextType(name="named")
    put = await client.call("PutContextType", service.PutContextTypeRequest(context_type=named))
    request = service.PutContextsRequest(contexts=[mlmd.Context(type_id=put.type_id, name="secret-name")])
    await client.call("PutContexts", request)
    with pytest.raises(AlreadyExists) as twice:
        await client.call("PutContexts", request)
    assert "secret-name" in twice.value.details
    assert "secret-name" not in str(twice.value)
    options = mlmd.ListOperationOptions(max_result_size=0)
    with pytest.raises(StoreError) as refused:
        await client.call("GetContexts", service.GetContextsRequest(options=options))
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_rpc_or_anothers_request_is_refused_before_it_is_sent(client):
    with pytest.raises(ValueError, match="no RPC 'GetNothing'"):
        await client.call("GetNothing", REQUEST)
    with pytest.raises(TypeError, match="expected a GetContextTypeRequest"):
        await client.call("GetContextType", REQUEST)


async def test_a_client_that_is_not_open_says_so(store_address):
    with pytest.raises(RuntimeError, match="context manager"):
        await StoreClient(store_address).call("GetContextTypes", REQUEST)


async def test_nobody_there_is_unavailable_and_the_store_is_found_once_it_is():
    async with FailingStore() as store:
        address = store.address
    async with StoreClient(address, timeout=2) as client:
        with pytest.raises(StoreUnavailable):
            await client.call("GetContextTypes", REQUEST)
        async with FailingStore(port=int(address.rpartition(":")[2])):
            await client.call("GetContextTypes", REQUEST, retry=Retry(seconds=10))


async def test_every_call_has_a_deadline():
    async with FailingStore(None, None) as store, StoreClient(store.address, timeout=0.2) as client:
        for options in ({}, {"timeout": 0.1}):
            with pytest.raises(StoreUnavailable) as late:
                await client.call("GetContextTypes", REQUEST, **options)
            assert late.value.code == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_nothing_is_retried_unless_asked_for():
    async with FailingStore(grpc.StatusCode.ABORTED) as store, StoreClient(store.address) as client:
        with pytest.raises(StoreUnavailable, match="ABORTED: as told"):
            await client.call("GetContextTypes", REQUEST)
        assert store.calls == 1


async def test_a_retry_asks_again_after_unavailable_and_aborted():
    codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED]
    async with FailingStore(*codes) as store, StoreClient(store.address) as client:
        await client.call("GetContextTypes", REQUEST, retry=Retry(first_pause=0.01))
        assert store.calls == 3


async def test_a_retry_leaves_other_errors_alone():
    async with FailingStore(grpc.StatusCode.ALREADY_EXISTS) as store:
        async with StoreClient(store.address, retry=Retry(first_pause=0.01)) as client:
            with pytest.raises(AlreadyExists):
                await client.call("GetContextTypes", REQUEST)
        assert store.calls == 1


async def test_a_retry_ends_within_its_time():
    codes = [grpc.StatusCode.UNAVAILABLE] * 1000
    async with FailingStore(*codes) as store, StoreClient(store.address) as client:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await client.call("GetContextTypes", REQUEST, retry=Retry(seconds=0.5, first_pause=0.05))
        assert time.monotonic() - started < 2
        assert store.calls > 2
