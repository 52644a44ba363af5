"""What never reaches the core, on each database."""

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_store.guard import Refused, guard_for
from metadata_store.rpcs import RPCS
from metadata_store.texts import utf8

KINDS = pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgresql"])


def artifact(**fields):
    return service.PutArtifactsRequest(artifacts=[mlmd.Artifact(type_id=10, **fields)])


def with_property(name, value):
    request = artifact()
    request.artifacts[0].custom_properties[name].CopyFrom(value)
    return request


def an_event(key):
    event = mlmd.Event(artifact_id=1, execution_id=1, type=mlmd.Event.INPUT)
    event.path.steps.add().key = key
    return service.PutEventsRequest(events=[event])


def refusal(kind, rpc, request):
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with pytest.raises(Refused) as caught:
        guard_for(kind).request(rpc, data)
    return str(caught.value)


@KINDS
@pytest.mark.parametrize(
    ("rpc", "request_", "field"),
    [
        ("PutArtifacts", artifact(name="a\0b"), "Artifact.name"),
        ("PutArtifacts", artifact(uri="\0"), "Artifact.uri"),
        ("PutArtifacts", with_property("a\0", mlmd.Value(int_value=0)), "Artifact.custom_properties"),
        ("PutArtifacts", with_property("a", mlmd.Value(string_value="b\0")), "Value.string_value"),
        ("PutEvents", an_event("k\0"), "Step.key"),
        ("GetArtifactsByURI", service.GetArtifactsByURIRequest(uris=["x", "a\0b"]), "uris"),
        ("GetContextType", service.GetContextTypeRequest(type_name="a\0b"), "type_name"),
        (
            "GetContexts",
            service.GetContextsRequest(options=mlmd.ListOperationOptions(filter_query="name = 'a\0b'")),
            "filter_query",
        ),
    ],
)
def test_a_text_with_a_nul_is_refused_by_its_field(kind, rpc, request_, field):
    text = refusal(kind, rpc, request_)
    assert f"{field}: expected no NUL character" in text


@KINDS
def test_zeros_that_are_no_text_pass(kind):
    nested = mlmd.Value()
    nested.struct_value["a"] = "b\0c"  # stored in base64
    edge = service.PutLineageSubgraphRequest.EventEdge(execution_index=0, artifact_index=0)
    for rpc, request in (
        ("PutArtifacts", with_property("a", mlmd.Value(double_value=1.5))),
        ("PutArtifacts", with_property("a", mlmd.Value(string_value=""))),
        ("PutArtifacts", with_property("a", mlmd.Value(bool_value=False))),
        ("PutArtifacts", with_property("a", nested)),
        ("PutLineageSubgraph", service.PutLineageSubgraphRequest(event_edges=[edge])),
    ):
        data = request.SerializeToString()
        assert b"\0" in data
        assert guard_for(kind).request(rpc, data) == data


@KINDS
@pytest.mark.parametrize("text", [b"bad\xff", b"\xc3", b"\xed\xa0\x80"])
def test_a_text_that_is_not_utf_8_is_refused(kind, text):
    key = b"\x0a" + bytes([len(text)]) + text
    artifacts = {
        "name": b"\x3a" + bytes([len(text)]) + text,
        "key of a property": b"\x2a" + bytes([len(key)]) + key,
    }
    for body in artifacts.values():
        assert refusal(kind, "PutArtifacts", b"\x0a" + bytes([len(body)]) + body) == "a text is not UTF-8"
    assert refusal(kind, "GetContextType", key) == "a text is not UTF-8"


def test_every_request_has_its_description_as_proto3():
    assert [utf8(rpc, b"") for rpc in RPCS] == [b""] * len(RPCS)


@KINDS
def test_a_filter_joins_twelve_names_at_most(kind):
    def request(count, text="x"):
        query = " AND ".join(f"custom_properties.p{n}.string_value = '{text}'" for n in range(count))
        options = mlmd.ListOperationOptions(filter_query=query)
        return service.GetArtifactsRequest(options=options).SerializeToString()

    guard_for(kind).request("GetArtifacts", request(12, "contexts_of_one.name"))
    assert "expected at most 12" in refusal(kind, "GetArtifacts", request(13))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (artifact(uri="u" * 65536), "Artifact.uri: expected at most 65535 bytes"),
        (with_property("a", mlmd.Value(string_value="v" * 2**24)), "Value.string_value"),
        (with_property("a", mlmd.Value(double_value=-2e100)), "double_value: expected less than 1e65"),
        (with_property("a", mlmd.Value(int_value=2**31)), "int_value: expected 32 bits"),
        (with_property("p" * 256, mlmd.Value(int_value=1)), "Artifact.custom_properties"),
        (artifact(name="é" * 128), "Artifact.name: expected at most 255 bytes"),
    ],
)
def test_what_a_mysql_without_strict_mode_would_cut_is_refused(request_, told):
    assert told in refusal("mysql", "PutArtifacts", request_)
    with_struct = mlmd.Value()
    with_struct.struct_value["a"] = "x" * 13_000_000
    assert "Value.struct_value" in refusal("mysql", "PutArtifacts", with_property("a", with_struct))


def test_a_type_is_checked_as_its_nodes_are():
    long = mlmd.ArtifactType(name="t", properties={"p" * 256: mlmd.INT})
    for kind in ("mysql", "postgresql"):
        request = service.PutArtifactTypeRequest(artifact_type=long)
        assert "ArtifactType.properties" in refusal(kind, "PutArtifactType", request)
        request.artifact_type.CopyFrom(mlmd.ArtifactType(name="t", version="v" * 256))
        assert "ArtifactType.version" in refusal(kind, "PutArtifactType", request)
