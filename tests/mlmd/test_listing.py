import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient, list_all


@pytest.fixture
async def client(store_address):
    async with StoreClient(store_address) as client:
        yield client


async def test_a_whole_list_is_read_page_by_page_with_its_filter_and_order(client):
    put = service.PutContextTypeRequest(context_type=mlmd.ContextType(name="listed"))
    type_id = (await client.call("PutContextType", put)).type_id
    contexts = [mlmd.Context(type_id=type_id, name=f"listed-{number:03}") for number in range(250)]
    await client.call("PutContexts", service.PutContextsRequest(contexts=contexts))
    request = service.GetContextsRequest()
    request.options.filter_query = "name LIKE 'listed-%' AND name != 'listed-000'"
    request.options.order_by_field.field = mlmd.ListOperationOptions.OrderByField.ID
    request.options.order_by_field.is_asc = True
    asked = request.SerializeToString()
    names = [context.name async for context in list_all(client, "GetContexts", request)]
    assert names == [f"listed-{number:03}" for number in range(1, 250)]
    assert request.SerializeToString() == asked


async def test_an_empty_list_is_empty(client):
    request = service.GetExecutionsByContextRequest(context_id=999_999)
    assert [node async for node in list_all(client, "GetExecutionsByContext", request)] == []


async def test_an_rpc_without_pages_is_refused(client):
    with pytest.raises(ValueError, match="takes no list options"):
        async for _ in list_all(client, "GetContextsByID", service.GetContextsByIDRequest()):
            pass
