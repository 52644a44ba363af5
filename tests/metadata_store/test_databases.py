"""The store on MariaDB and PostgreSQL: what the core makes of their failures, and what clients see."""

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from ml_metadata import errors
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.sandbox.certificates import prepare_state

OK, ABORTED = grpc.StatusCode.OK, grpc.StatusCode.ABORTED
INVALID, UNAVAILABLE = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def store(start_store, served_database):
    return start_store("--workers=2", url=served_database.url)


@pytest.fixture(scope="module")
def types(store):
    client = store.client()
    return {
        "run": client.put_context_type(mlmd.ContextType(name="run", properties={"size": mlmd.INT})),
        "step": client.put_execution_type(mlmd.ExecutionType(name="step")),
        "data": client.put_artifact_type(mlmd.ArtifactType(name="data")),
    }


def a_lineage(types, name, *, artifacts=1):
    request = service.PutLineageSubgraphRequest(
        executions=[mlmd.Execution(type_id=types["step"], name=name)],
        contexts=[mlmd.Context(type_id=types["run"], name="lineage")],
        options=service.PutLineageSubgraphRequest.Options(reuse_context_if_already_exist=True),
    )
    for number in range(artifacts):
        request.artifacts.add(type_id=types["data"], name=f"{name}-{number}", uri=f"s3://b/{name}")
        edge = request.event_edges.add(execution_index=0, artifact_index=number)
        edge.event.type = mlmd.Event.OUTPUT
    return request


def test_the_official_client_works_unchanged(store, types):
    client = store.client()
    context = mlmd.Context(type_id=types["run"], name="official")
    context.properties["size"].int_value = 7
    context.custom_properties["empty"].string_value = ""
    (context_id,) = client.put_contexts([context])
    found = client.get_context_by_type_and_name("run", "official")
    assert (found.id, found.type, found.properties["size"].int_value) == (context_id, "run", 7)
    assert found.custom_properties["empty"].HasField("string_value")
    with pytest.raises(errors.AlreadyExistsError, match="already exists"):
        client.put_contexts([mlmd.Context(type_id=types["run"], name="official")])


@pytest.mark.parametrize(
    "text",
    [
        r"a\b", r'{"text": "line\n\"quoted\""}', "it's", 'say "x"', "`tick`", "50%_",
        "naïve ☃", "\\", "'\\''",
        r"\'; DROP TABLE Artifact; --", "\uf05c", "\uf05c0\\1", ", 1, 1); DELETE FROM Artifact; -- \\",
    ],
)  # fmt: skip
def test_every_text_comes_back_as_it_was(store, types, text):
    artifact = mlmd.Artifact(type_id=types["data"], name=f"text {text}", uri=text)
    artifact.custom_properties["plain"].string_value = text
    artifact.custom_properties["nested"].struct_value["text"] = text
    artifact.custom_properties[text].int_value = 1
    put = store.call("PutArtifacts", service.PutArtifactsRequest(artifacts=[artifact]))
    assert put.code() == OK, put.details()
    by_name = service.GetArtifactByTypeAndNameRequest(type_name="data", artifact_name=artifact.name)
    found = store.call("GetArtifactByTypeAndName", by_name).result().artifact
    assert (found.name, found.uri) == (artifact.name, text)
    assert found.custom_properties == artifact.custom_properties
    by_uri = store.call("GetArtifactsByURI", service.GetArtifactsByURIRequest(uris=[text])).result().artifacts
    assert found.id in [each.id for each in by_uri]


def test_a_filter_cannot_reach_beyond_its_literal(store, types):
    client = store.client()
    client.put_contexts([mlmd.Context(type_id=types["run"], name="precious")])
    for query in (
        """name = "x')); DELETE FROM Context; --" """, """name = '''x')); DELETE FROM Context; --'''""",
        r"""name = 'x\')); DELETE FROM Context; --' """, """name = 'x"x'""",
    ):  # fmt: skip
        request = service.GetContextsRequest(options=mlmd.ListOperationOptions(filter_query=query))
        assert store.call("GetContexts", request).code() in {OK, INVALID}
        lineage = mlmd.LineageSubgraphQueryOptions(max_num_hops=1)
        lineage.starting_artifacts.filter_query = query
        request = service.GetLineageSubgraphRequest(lineage_subgraph_query_options=lineage)
        code = store.call("GetLineageSubgraph", request).code()
        assert code in {grpc.StatusCode.NOT_FOUND, INVALID}
    request = mlmd.ListOperationOptions(
        filter_query="""name = 'precious' AND type = "run" AND `id` > 0 AND id - 1 >= 0"""
    )
    found = store.call("GetContexts", service.GetContextsRequest(options=request)).result().contexts
    assert [context.name for context in found] == ["precious"]


def test_callers_that_put_one_type_at_once_are_given_one(start_store, served_database, database_on):
    url = database_on(served_database.server, served_database.kind).url
    store = start_store("--workers=4", url=url)  # each has its own connection

    def put(number):
        kind = mlmd.ContextType(name=f"type-{number // 4}")
        return store.call("PutContextType", service.PutContextTypeRequest(context_type=kind)).result().type_id

    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(put, range(80)))
    assert [len(set(ids[number : number + 4])) for number in range(0, 80, 4)] == [1] * 20
    assert len(store.client().get_context_types()) == 20


def test_what_is_no_text_is_refused_and_ends_no_worker(store, types):
    workers = store.workers()
    for rpc, request in (
        ("PutArtifacts", service.PutArtifactsRequest(artifacts=[mlmd.Artifact(type_id=types["data"])])),
        ("GetArtifactsByURI", service.GetArtifactsByURIRequest()),
    ):
        uri = b"\x1a\x04bad\xff" if rpc == "PutArtifacts" else b"\x12\x04bad\xff"
        data = request.SerializeToString()
        body = b"\x0a" + bytes([len(data) - 2 + len(uri)]) + data[2:] + uri if data else uri
        send = store.channel.unary_unary(
            f"/ml_metadata.MetadataStoreService/{rpc}", request_serializer=None, response_deserializer=None
        )
        with pytest.raises(grpc.RpcError) as caught:
            send(body, timeout=30)
        assert (caught.value.code(), caught.value.details()) == (INVALID, "a text is not UTF-8")
    assert store.workers() == workers


def test_numbers_that_are_none_and_filters_beyond_any_plan_are_invalid_arguments(store, types):
    for number in (float("nan"), float("inf")):
        artifact = mlmd.Artifact(type_id=types["data"])
        artifact.custom_properties["n"].double_value = number
        call = store.call("PutArtifacts", service.PutArtifactsRequest(artifacts=[artifact]))
        assert call.code() == INVALID, call.details()
    query = " OR ".join(f"contexts_{number}.name = 'a'" for number in range(40))
    options = mlmd.ListOperationOptions(filter_query=query)
    call = store.call("GetArtifacts", service.GetArtifactsRequest(options=options))
    assert (call.code(), "got 40" in call.details()) == (INVALID, True)


def test_a_name_is_stored_whole_or_not_at_all(store, types, served_database):
    """MySQL takes the core's bytes for characters; without strict mode it would cut them."""
    for text in ("é" * 127, "é" * 128, "☃" * 85, "☃" * 255):
        artifact = mlmd.Artifact(type_id=types["data"], name=f"{text}")
        artifact.custom_properties[text].int_value = 1
        call = store.call("PutArtifacts", service.PutArtifactsRequest(artifacts=[artifact]))
        fits = served_database.kind == "postgresql" or len(text.encode()) <= 255
        assert call.code() == (OK if fits else INVALID), call.details()
        if fits:
            ids = service.GetArtifactsByIDRequest(artifact_ids=call.result().artifact_ids)
            (found,) = store.call("GetArtifactsByID", ids).result().artifacts
            assert (found.name, list(found.custom_properties)) == (text, [text])


def test_what_the_database_has_no_room_for_is_refused_and_not_cut(store, types):
    large = mlmd.Context(type_id=types["run"], name="large")
    large.properties["size"].int_value = 2**31
    long = mlmd.Context(type_id=types["run"], name="x" * 256)
    for context, told in ((large, "32 bits"), (long, "at most 255")):
        call = store.call("PutContexts", service.PutContextsRequest(contexts=[context]))
        assert (call.code(), told in call.details()) == (INVALID, True)
    large.properties["size"].int_value = -(2**31)
    assert store.call("PutContexts", service.PutContextsRequest(contexts=[large])).code() == OK


def hung_up(port):
    """How many connections the server at the port has closed, while their client has not noticed."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "08" for row in table)


def test_connections_that_were_cut_while_idle_cost_no_call(store, types, served_database, until):
    for attempt in range(3):
        served_database.disconnect_all()
        until(lambda: hung_up(served_database.server.port) >= 2)
        for number in range(4):  # each worker, reading and writing
            name = f"after-cut-{attempt}-{number}"
            put = store.call("PutExecutions", service.PutExecutionsRequest(
                executions=[mlmd.Execution(type_id=types["step"], name=name)]
            ))  # fmt: skip
            assert put.code() == OK, put.details()
            request = service.GetExecutionByTypeAndNameRequest(type_name="step", execution_name=name)
            assert store.call("GetExecutionByTypeAndName", request).result().execution.name == name


def test_connections_cut_in_the_middle_leave_whole_lineages_only(store, types, served_database):
    codes = {}
    done = threading.Event()

    def write(number):
        for count in range(12):
            name = f"cut-{number}-{count}"
            codes[name] = store.call("PutLineageSubgraph", a_lineage(types, name, artifacts=20)).code()
            listing = service.GetExecutionsByTypeRequest(type_name="step")
            assert store.call("GetExecutionsByType", listing).code() in {OK, UNAVAILABLE}

    def cut():
        while not done.wait(0.2):
            served_database.disconnect_all()

    with ThreadPoolExecutor(3) as threads:
        cutting = threads.submit(cut)
        try:
            list(threads.map(write, range(2)))
        finally:
            done.set()
        cutting.result()
    assert set(codes.values()) <= {OK, ABORTED, UNAVAILABLE}
    assert OK in codes.values()
    executions = store.call(
        "GetExecutionsByType", service.GetExecutionsByTypeRequest(type_name="step")
    ).result()
    stored = {e.name: e.id for e in executions.executions if e.name.startswith("cut-")}
    assert {name for name, code in codes.items() if code == OK} <= set(stored)
    events = service.GetEventsByExecutionIDsRequest(execution_ids=list(stored.values()))
    found = store.call("GetEventsByExecutionIDs", events).result().events
    assert len(found) == 20 * len(stored)


def test_writers_that_deadlock_are_let_through(store, types, served_database):
    ids = store.client().put_contexts(
        [mlmd.Context(type_id=types["run"], name=f"contended-{number}") for number in range(20)]
    )

    def write(number):
        order = ids if number % 2 else ids[::-1]
        codes = []
        for count in range(15):
            contexts = [
                mlmd.Context(id=i, type_id=types["run"], name=f"contended-{ids.index(i)}") for i in order
            ]
            for context in contexts:
                context.properties["size"].int_value = number * 1000 + count
            call = store.call("PutContexts", service.PutContextsRequest(contexts=contexts))
            codes.append((call.code(), call.details()))
        return codes

    with ThreadPoolExecutor(4) as threads:
        codes = [code for each in threads.map(write, range(4)) for code in each]
    assert [answer for answer in codes if answer[0] not in (OK, ABORTED)] == []
    assert [code for code, _ in codes].count(OK) >= 30


def test_an_account_that_is_refused_is_one_clear_line(served_database, start_store, run_store):
    wrong = served_database.url.replace(served_database.url.split(":")[2].partition("@")[0], "hush-hush")
    result = run_store("--metadata_store_connection_retries=1", "--database", wrong)
    assert result.returncode == 1
    line = result.stderr.strip().splitlines()[-1]
    assert "cannot open the database" in line
    assert "Access denied" in line or "password authentication failed" in line
    assert "hush-hush" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_restarts_is_found_again_and_nothing_is_lost(start_store, served_database, until):
    store = start_store(
        "--workers=2", url=served_database.url.replace(served_database.name, f"r{served_database.name}")
    )
    step = store.client().put_execution_type(mlmd.ExecutionType(name="step"))
    server = served_database.server
    done = threading.Event()
    told = {}

    def write():
        number = 0
        while not done.wait(0.01):
            number += 1
            execution = mlmd.Execution(type_id=step, name=f"restart-{number}")
            call = store.call("PutExecutions", service.PutExecutionsRequest(executions=[execution]))
            told[execution.name] = call.code()

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        try:
            until(lambda: len(told) > 20)
            # A killed MariaDB would lose what it committed: the tests' one does not wait for its disk.
            server.process.send_signal(
                signal.SIGINT if served_database.kind == "postgresql" else signal.SIGTERM
            )
            server.process.wait(30)
            until(lambda: store.http("/readyz")[0] == 503)
            server.start()
            until(lambda: store.http("/readyz")[0] == 200)
            count = len(told)
            until(lambda: list(told.values())[count:].count(OK) > 20)
        finally:
            done.set()
        writing.result()
    assert set(told.values()) <= {OK, ABORTED, UNAVAILABLE}
    executions = store.call(
        "GetExecutionsByType", service.GetExecutionsByTypeRequest(type_name="step")
    ).result()
    kept = {name for name, code in told.items() if code == OK}
    assert kept <= {execution.name for execution in executions.executions}


class OnlyCachingSha2(threading.Thread):
    """The part of MySQL that stands between it and the core: it wants another way to log in."""

    def __init__(self, version):
        super().__init__(name="MySQL's door", daemon=True)
        self.version = version
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self._greet(connection)

    def _greet(self, connection):
        salt = b"12345678901234567890"
        low, high = (0x000FA205).to_bytes(4, "little")[:2], b"\x0f\x00"
        hello = (
            b"\x0a" + self.version + b"\0" + (1).to_bytes(4, "little") + salt[:8] + b"\0" + low
            + b"\x2d\x02\x00" + high + b"\x15" + bytes(10) + salt[8:] + b"\0caching_sha2_password\0"
        )  # fmt: skip
        self._send(connection, 0, hello)
        self._receive(connection)
        self._send(connection, 2, b"\xfecaching_sha2_password\0" + salt + b"\0")
        if not self._receive(connection):
            return
        self._send(connection, 4, b"\x01\x03")  # the quick way succeeded
        number = 5
        while True:
            self._send(connection, number, b"\0\0\0\x02\0\0\0")
            number = 1
            if not self._receive(connection):
                return

    def _send(self, connection, number, body):
        connection.sendall(len(body).to_bytes(3, "little") + bytes([number]) + body)

    def _receive(self, connection):
        try:
            return connection.recv(65536)
        except ConnectionError:
            return b""


@pytest.fixture
def told_at_the_door(run_store, monkeypatch, tmp_path):
    """What a store without libmariadb3 says of a MySQL of a version."""
    monkeypatch.setenv("MARIADB_PLUGIN_DIR", str(tmp_path))

    def told(version):
        door = OnlyCachingSha2(version)
        door.start()
        try:
            result = run_store(
                "--metadata_store_connection_retries=1", "--mysql_config_host=127.0.0.1",
                f"--mysql_config_port={door.port}", "--mysql_config_user=mlmd",
                "--mysql_config_password=hush-hush",
                "--mysql_config_database=metadb",
            )  # fmt: skip
        finally:
            door.listener.close()
            door.join(10)
        assert result.returncode == 1
        assert "hush-hush" not in result.stderr
        (line,) = [each for each in result.stderr.splitlines() if "cannot open" in each]
        assert "install libmariadb3" in line
        return line

    return told


def test_mysql_8_4_without_the_old_password_plugin_is_one_line_with_what_helps(told_at_the_door):
    line = told_at_the_door(b"8.4.3")
    assert "CREATE USER 'mlmd'@'%' IDENTIFIED WITH mysql_native_password" in line


def test_mysql_9_is_not_told_to_use_the_old_passwords_that_it_dropped(told_at_the_door):
    line = told_at_the_door(b"9.7.4-2")
    assert "MySQL 9 has no mysql_native_password any more" in line
    assert "CREATE USER" not in line


def test_what_the_core_makes_of_mysqls_certificate_is_said(
    run_store, start_store, mariadb, database_on, tmp_path
):
    prepare_state(tmp_path / "another", 1)
    another = tmp_path / "another" / "tls" / "ca.crt"
    right = mariadb.folder / "state" / "tls" / "ca.crt"
    url = database_on(mariadb, "mysql").url
    for authority, told in ((another, "certificate verify failed"), (right, "no certificate is checked")):
        asked = f"{url}?ssl_verify_server_cert=true&ssl_ca={authority}"
        result = run_store("--metadata_store_connection_retries=1", "--database", asked)
        (line,) = [each for each in result.stderr.splitlines() if "cannot open" in each]
        assert told in line
        assert "libmariadb3" not in line
    start_store("--workers=1", url=f"{url}?ssl_ca={another}")  # encrypted, and that is all
