"""Light reads are answered as the core answers them, or left to it."""

import asyncio
import sqlite3

import pytest
from google.protobuf.struct_pb2 import Struct
from ml_metadata.metadata_store.pywrap.metadata_store_extension import metadata_store as binding
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_store.connection import for_core, from_url, prepare_sqlite
from metadata_store.light import LIGHT, ROWS, parameters
from metadata_store.near import MysqlNear, SqliteNear
from metadata_store.rpcs import response_of

KINDS = ("Artifact", "Execution", "Context")
PLAIN = {
    "nothing else": {},
    "numbers": {"zero": 0, "one": 1, "least": -(2**31)},
    "texts": {"empty": "", "text": 'it\'s \\ "quoted" `so` % {}', "lines": "a\n\tb"},
    "truth": {"yes": True, "no": False},
    "MiXed": {"n": 5, "t": "x", "b": True},
    "blank at the end ": {},
    "x" * 250: {"y" * 250: "z" * 5000},
}
STRUCTURE = Struct()
STRUCTURE["a"] = 1
ONLY_THE_CORE = {
    "double": {"d": 0.1 + 0.2},
    "beyond ASCII": {"t": "naïve"},
    "null": {"t": "__MLMD_NULL__"},
    "structure": {"s": mlmd.Value(struct_value=STRUCTURE)},
    "many": {f"p{number}": number for number in range(ROWS + 1)},
    "naïve": {},
    "it's": {},
    "back\\slash": {},
}


def value(content):
    if isinstance(content, mlmd.Value):
        return content
    kind = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}[type(content)]
    return mlmd.Value(**{kind: content})


def put(core, rpc, **fields):
    body, error, code = getattr(binding, rpc)(
        core, getattr(service, f"{rpc}Request")(**fields).SerializeToString()
    )
    assert code == 0, error
    return response_of(rpc).FromString(body)


def fill(core):
    """Types and nodes of every kind that there is."""
    declared = {"size": mlmd.INT, "note": mlmd.STRING, "ratio": mlmd.DOUBLE, "flag": mlmd.BOOLEAN}
    for kind in KINDS:
        lower, type_of, node_of = kind.lower(), getattr(mlmd, f"{kind}Type"), getattr(mlmd, kind)
        types = [
            type_of(name="plain"), type_of(name="declared", properties=declared),
            type_of(name="described", description="d"), type_of(name="plain", version="v1"),
            type_of(name="known elsewhere", external_id=f"{kind}-x"),
        ]  # fmt: skip
        if kind != "Context":
            base = {"Artifact": mlmd.ArtifactType.DATASET, "Execution": mlmd.ExecutionType.TRAIN}[kind]
            types.append(type_of(name="derived", base_type=base))
        ids = [put(core, f"Put{kind}Type", **{f"{lower}_type": each}).type_id for each in types]
        nodes = []
        for name, properties in (PLAIN | ONLY_THE_CORE).items():
            node = node_of(type_id=ids[0], name=name)
            for key, content in properties.items():
                node.custom_properties[key].CopyFrom(value(content))
            nodes.append(node)
        whole = node_of(type_id=ids[1], name="whole", external_id=f"{kind}-1")
        whole.properties["size"].int_value, whole.properties["flag"].bool_value = 3, True
        whole.properties["note"].string_value = whole.custom_properties["note"].string_value = "n"
        nodes += [whole, node_of(type_id=ids[3], name="versioned")]
        if kind == "Artifact":
            whole.uri, whole.state = "s3://bucket/a", mlmd.Artifact.LIVE
        if kind == "Execution":
            whole.last_known_state = mlmd.Execution.COMPLETE
        put(core, f"Put{kind}s", **{f"{lower}s": nodes})


def requests():
    for kind in KINDS:
        for name in (
            "plain",
            "declared",
            "described",
            "known elsewhere",
            "derived",
            "none",
            "PLAIN",
            "plain ",
        ):
            yield f"Get{kind}Type", {"type_name": name}
            yield f"Get{kind}Type", {"type_name": name, "type_version": "v1"}
            yield f"Get{kind}ByTypeAndName", {"type_name": name, f"{kind.lower()}_name": "whole"}
        for name in (*PLAIN, *ONLY_THE_CORE, "none", "mixed", "versioned", "numbers ", ""):
            fields = {"type_name": "plain", f"{kind.lower()}_name": name}
            yield f"Get{kind}ByTypeAndName", fields
            yield f"Get{kind}ByTypeAndName", fields | {"type_version": "v1"}
        yield f"Get{kind}ByTypeAndName", {"type_name": "plain"}
        yield f"Get{kind}ByTypeAndName", {f"{kind.lower()}_name": "whole"}
        yield f"Get{kind}Type", {}


def core_on(url):
    config = from_url(url)
    prepare_sqlite(config)
    return binding.CreateMetadataStore(for_core(config).SerializeToString(), b"")


def compare(core_answers, near):
    """Ask all again; returns what was answered, by RPC and fields."""

    async def ask():
        answered = {}
        for (rpc, fields), (body, _, code) in core_answers:
            request = getattr(service, f"{rpc}Request")(**fields).SerializeToString()
            for _ in range(2):  # the second time it may be known
                answer = await near.answer(rpc, request)
                if answer is not None:
                    assert code == 0, (rpc, fields)
                    expected, found = (
                        response_of(rpc).FromString(body),
                        response_of(rpc).FromString(answer.response),
                    )
                    assert found == expected, (rpc, fields)
                    answered[rpc, tuple(fields.values())] = answer
        near.close()
        return answered

    return asyncio.run(ask())


@pytest.fixture(params=["sqlite", "mysql"])
def answers(request, tmp_path, database_on):
    """What the core says to all requests, a change to the tables beside it, and what is answered here."""

    def ask(change=()):
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path}/light.db"
        else:
            database = database_on(request.getfixturevalue("mariadb"), "mysql")
            url = database.url
        core = core_on(url)
        fill(core)
        for statement in change:
            if request.param == "mysql":
                database.query(statement)
            else:
                connection = sqlite3.connect(tmp_path / "light.db", isolation_level=None)
                connection.execute(statement)
                connection.close()
        if change and request.param == "sqlite":
            core = core_on(url)
        said = [
            (
                (rpc, fields),
                getattr(binding, rpc)(core, getattr(service, f"{rpc}Request")(**fields).SerializeToString()),
            )
            for rpc, fields in requests()
        ]
        del core
        near = (
            SqliteNear(f"{tmp_path}/light.db")
            if request.param == "sqlite"
            else MysqlNear(from_url(url).mysql)
        )
        return compare(said, near)

    return ask


def test_every_answer_is_the_cores_and_what_is_plain_is_answered(answers):
    answered = answers()
    for kind in KINDS:
        for name in ("plain", "declared"):
            assert (f"Get{kind}Type", (name,)) in answered
        for name in ("described", "known elsewhere", "derived", "none"):
            assert (f"Get{kind}Type", (name,)) not in answered
        for name in (*PLAIN, "none"):
            assert (f"Get{kind}ByTypeAndName", ("plain", name)) in answered, name
        for name in ONLY_THE_CORE:
            assert (f"Get{kind}ByTypeAndName", ("plain", name)) not in answered, name
        assert (f"Get{kind}ByTypeAndName", ("declared", "whole")) in answered
        assert (f"Get{kind}ByTypeAndName", ("none", "whole")) in answered


def test_of_two_types_with_one_name_the_first_is_meant(answers):
    columns = "(type_id, name, create_time_since_epoch, last_update_time_since_epoch)"
    answered = answers(
        [
            "INSERT INTO `Type` (name, type_kind) VALUES ('plain', 2)",
            f"INSERT INTO `Context` {columns} SELECT MAX(id), 'numbers', 7, 7 FROM `Type`",
            f"INSERT INTO `Context` {columns} SELECT MAX(id), 'versioned', 7, 7 FROM `Type`",
        ]
    )
    assert ("GetContextByTypeAndName", ("plain", "numbers")) in answered
    empty = answered["GetContextByTypeAndName", ("plain", "versioned")]
    assert empty.response == b""


def test_a_state_or_a_truth_that_the_core_does_not_know_is_left_to_it(answers):
    answered = answers(
        [
            "UPDATE `Execution` SET last_known_state = 77 WHERE name = 'whole'",
            "UPDATE `ArtifactProperty` SET bool_value = NULL WHERE name = 'yes'",
        ]
    )
    assert ("GetExecutionByTypeAndName", ("declared", "whole")) not in answered
    assert ("GetArtifactByTypeAndName", ("plain", "truth")) not in answered


@pytest.mark.parametrize(
    "request_bytes",
    [b"\xff", b"\x0a\x01\xff", service.GetContextTypeRequest(type_name="a" * 5000).SerializeToString()],
    ids=["no message", "not UTF-8", "long"],
)
def test_a_request_that_is_not_plain_is_left_to_the_core(request_bytes):
    assert parameters("GetContextType", request_bytes) is None


def test_only_reads_of_a_single_row_are_light():
    assert set(LIGHT) == {f"Get{kind}{what}" for kind in KINDS for what in ("Type", "ByTypeAndName")}
