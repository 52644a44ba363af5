import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ml_metadata import errors
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

SERVING = health_pb2.HealthCheckResponse.SERVING
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "ml_metadata.MetadataStoreService"


def run(*flags, environ=None):
    return subprocess.run(
        [sys.executable, "-m", "metadata_store", *flags],
        capture_output=True, text=True, timeout=30, env={**os.environ, **(environ or {})},
    )  # fmt: skip


def until(condition, *, seconds=20.0):
    done = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if result := condition():
            return result
        done.wait(0.02)
    pytest.fail(f"not so within {seconds} s")


def contexts_request(type_id, *names):
    return service.PutContextsRequest(contexts=[mlmd.Context(type_id=type_id, name=name) for name in names])


def self_signed(name):
    """(key, certificate) in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_official_client_works_unchanged(store):
    client = store.client()
    data = client.put_artifact_type(mlmd.ArtifactType(name="official-data", properties={"size": mlmd.INT}))
    step = client.put_execution_type(mlmd.ExecutionType(name="official-step"))
    run_type = client.put_context_type(mlmd.ContextType(name="official-run"))
    artifact = mlmd.Artifact(type_id=data, uri="s3://bucket/key")
    artifact.properties["size"].int_value = 7
    execution_id, artifact_ids, context_ids = client.put_execution(
        mlmd.Execution(type_id=step, name="one"),
        [(artifact, mlmd.Event(type=mlmd.Event.OUTPUT))],
        [mlmd.Context(type_id=run_type, name="run-1")],
    )
    assert [a.id for a in client.get_artifacts_by_context(context_ids[0])] == artifact_ids
    assert [e.type for e in client.get_executions_by_context(context_ids[0])] == ["official-step"]
    assert client.get_events_by_execution_ids([execution_id])[0].artifact_id == artifact_ids[0]
    with pytest.raises(errors.NotFoundError, match="No type found"):
        client.get_artifact_type("missing")
    with pytest.raises(errors.AlreadyExistsError, match="already exists"):
        client.put_executions([mlmd.Execution(type_id=step, name="one")])


def test_eight_writers_at_once_see_no_error(store):
    setup = store.client()
    type_id = setup.put_context_type(mlmd.ContextType(name="concurrent"))

    def write(number):
        client = store.client()
        for count in range(25):
            client.put_contexts([mlmd.Context(type_id=type_id, name=f"{number}-{count}")])
            assert client.get_context_by_type_and_name("concurrent", f"{number}-{count}") is not None

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(write, range(8)))
    assert len(setup.get_contexts_by_type("concurrent")) == 200


def test_a_deadline_counts_while_a_call_waits(start_store):
    store = start_store("--workers=1")
    (worker,) = store.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        running = store.call("GetContextTypes", service.GetContextTypesRequest())
        waiting = store.call("GetContextTypes", service.GetContextTypesRequest(), timeout=0.3)
        assert waiting.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        os.kill(worker, signal.SIGCONT)
    assert running.code() == grpc.StatusCode.OK


def test_a_full_queue_refuses_further_calls(start_store):
    store = start_store("--workers=1", "--queue-depth=3")
    (worker,) = store.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        calls = [store.call("GetContextTypes", service.GetContextTypesRequest()) for _ in range(8)]
        refused = until(lambda: [call for call in calls if call.done()])
        assert {call.code() for call in refused} == {grpc.StatusCode.UNAVAILABLE}
        assert "try again" in refused[0].details()
    finally:
        os.kill(worker, signal.SIGCONT)
    codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.OK) >= 3
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


def test_heavy_calls_never_take_the_last_reader(start_store):
    store = start_store("--workers=3")  # a writer and two readers
    client = store.client()
    type_id = client.put_context_type(mlmd.ContextType(name="t"))
    for part in range(5):
        names = [f"{part}-{number}" for number in range(1000)]
        assert store.call("PutContexts", contexts_request(type_id, *names)).code() == grpc.StatusCode.OK
    heavy = [store.call("GetContexts", service.GetContextsRequest()) for _ in range(40)]
    light = service.GetContextsByIDRequest(context_ids=[1])  # one that workers answer on SQLite, too
    for _ in range(20):
        assert store.call("GetContextsByID", light).code() == grpc.StatusCode.OK
    assert not all(call.done() for call in heavy)  # those asked later were answered first
    assert {call.code() for call in heavy} == {grpc.StatusCode.OK}


def test_a_killed_worker_is_replaced_and_each_call_is_answered(start_store):
    store = start_store()
    client = store.client()
    type_id = client.put_context_type(mlmd.ContextType(name="t"))
    before = set(store.workers())
    put, answered = [], []

    def write(number):
        for count in range(60):
            name = f"{number}-{count}"
            call = store.call("PutContexts", contexts_request(type_id, name))
            answered.append(call.code())
            if call.code() == grpc.StatusCode.OK:
                put.append(name)
            reading = store.call("GetContextsByType", service.GetContextsByTypeRequest(type_name="t"))
            assert reading.code() == grpc.StatusCode.OK  # a read is asked again elsewhere

    with ThreadPoolExecutor(4) as writers:
        work = [writers.submit(write, number) for number in range(4)]
        until(lambda: len(put) > 20)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for future in work:
            future.result()
    assert len(answered) == 240
    assert set(answered) <= {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}
    assert answered.count(grpc.StatusCode.ABORTED) <= len(before)
    stored = {context.name for context in client.get_contexts_by_type("t")}
    assert set(put) <= stored
    after = until(lambda: len(pids := set(store.workers())) == len(before) and pids)
    assert not after & before
    assert "metadata_store_workers_replaced" in store.http("/metrics")[1]


def test_workers_die_with_a_killed_server_and_a_restart_has_all_data(start_store):
    store = start_store()
    client = store.client()
    type_id = client.put_context_type(mlmd.ContextType(name="t"))
    client.put_contexts([mlmd.Context(type_id=type_id, name=f"c{number}") for number in range(50)])
    workers = store.workers()
    store.kill()
    until(lambda: not any(alive(pid) for pid in workers))
    store.start()
    assert len(store.client().get_contexts_by_type("t")) == 50


def test_sigterm_ends_the_server_after_the_calls_under_way(start_store):
    store = start_store("--workers=1")
    (worker,) = store.workers()
    health = health_pb2_grpc.HealthStub(store.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert next(watch).status == SERVING
    os.kill(worker, signal.SIGSTOP)
    under_way = store.call("GetContextTypes", service.GetContextTypesRequest())
    health.Check(health_pb2.HealthCheckRequest(), timeout=5)  # on the same connection: the call has arrived
    store.process.send_signal(signal.SIGTERM)
    assert next(watch).status == NOT_SERVING
    until(lambda: store.http("/readyz")[0] == 503)
    os.kill(worker, signal.SIGCONT)
    assert under_way.code() == grpc.StatusCode.OK
    assert store.process.wait(20) == 0
    assert not alive(worker)


def test_health_follows_the_database(start_store):
    store = start_store()
    health = health_pb2_grpc.HealthStub(store.channel)
    for name in ("", SERVICE):
        assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    away = store.database.with_name("away.db")
    store.database.rename(away)
    call = store.call("GetContextTypes", service.GetContextTypesRequest())
    assert (call.code(), str(store.database) in call.details()) == (grpc.StatusCode.UNAVAILABLE, True)
    until(lambda: store.http("/readyz") == (503, "not ready: database\n"))
    for worker in store.workers():
        os.kill(worker, signal.SIGKILL)
    until(lambda: "cannot open the database" in store.log.read_text())
    assert not store.database.exists()  # a file that has vanished is not made anew, empty
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == NOT_SERVING
    away.rename(store.database)
    until(lambda: store.http("/readyz")[0] == 200)


def test_nobody_waits_while_no_worker_can_open_the_database(start_store):
    store = start_store("--workers=1")
    away = store.database.with_name("away.db")
    store.database.rename(away)
    store.database.write_text("no database")
    os.kill(store.workers()[0], signal.SIGKILL)
    until(lambda: "cannot open the database" in store.log.read_text())
    until(lambda: store.http("/readyz")[0] == 503)
    started = time.monotonic()
    call = store.call("GetContextTypes", service.GetContextTypesRequest())
    assert (call.code(), time.monotonic() - started < 5) == (UNAVAILABLE, True)
    store.database.unlink()
    away.rename(store.database)
    until(lambda: store.http("/readyz")[0] == 200)
    call = store.call("GetContextTypes", service.GetContextTypesRequest())
    assert call.code() == grpc.StatusCode.OK


def test_tls_from_upstreams_configuration_file(start_store, tmp_path):
    key, certificate = self_signed("localhost")
    config = tmp_path / "config.proto"
    server = mlmd.MetadataStoreServerConfig()
    server.ssl_config.server_key, server.ssl_config.server_cert = key, certificate
    config.write_text(str(server))
    store = start_store(f"--metadata_store_server_config_file={config}")
    client = mlmd.MetadataStoreClientConfig(host="localhost", port=store.port, client_timeout_sec=30)
    client.ssl_config.custom_ca = certificate
    assert MetadataStore(client).put_context_type(mlmd.ContextType(name="secured")) == 10
    assert store.call("GetContextTypes", service.GetContextTypesRequest()).code() == UNAVAILABLE


def test_mutual_tls_asks_clients_for_a_certificate(start_store, tmp_path):
    key, certificate = self_signed("localhost")
    own_key, own_certificate = self_signed("client")
    server = mlmd.MetadataStoreServerConfig()
    server.ssl_config.server_key, server.ssl_config.server_cert = key, certificate
    server.ssl_config.custom_ca, server.ssl_config.client_verify = own_certificate, True
    config = tmp_path / "config.proto"
    config.write_text(str(server))
    store = start_store(f"--metadata_store_server_config_file={config}")
    client = mlmd.MetadataStoreClientConfig(host="localhost", port=store.port, client_timeout_sec=30)
    client.ssl_config.custom_ca = certificate
    with pytest.raises(errors.UnavailableError):
        MetadataStore(client).get_context_types()
    client.ssl_config.client_key, client.ssl_config.server_cert = own_key, own_certificate
    assert MetadataStore(client).get_context_types() == []


def test_reflection_tells_the_services_and_their_messages(store):
    ask = reflection_pb2_grpc.ServerReflectionStub(store.channel).ServerReflectionInfo
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    services, file = ask(iter(requests), timeout=20)
    assert {SERVICE, "grpc.health.v1.Health"} <= {
        each.name for each in services.list_services_response.service
    }
    assert file.file_descriptor_response.file_descriptor_proto


def test_the_access_log_has_no_payloads(start_store):
    store = start_store("--access-log")
    type_id = store.client().put_context_type(mlmd.ContextType(name="a-secret-type"))
    assert store.call("PutContexts", contexts_request(type_id, "a-secret-name")).code() == grpc.StatusCode.OK
    assert store.call("PutContexts", contexts_request(type_id, "a-secret-name")).exception() is not None
    lines = until(lambda: [e for e in store.log.read_text().splitlines() if '"rpc": "PutContexts"' in e][1:])
    assert '"code": "ALREADY_EXISTS"' in lines[-1]
    assert "request_bytes" in lines[-1]
    assert "a-secret" not in store.log.read_text()


def test_an_older_schema_is_upgraded_only_when_told(start_store, tmp_path):
    url = f"sqlite:///{tmp_path}/old.db"
    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = f"{tmp_path}/old.db"
    config.sqlite.connection_mode = 3
    MetadataStore(config).put_context_type(mlmd.ContextType(name="kept"))
    downgraded = run("--grpc_port=0", "--database", url, "--downgrade_db_schema_version=8")
    assert (downgraded.returncode, "downgraded" in downgraded.stderr) == (0, True), downgraded.stderr
    refused = run("--grpc_port=0", "--database", url)
    assert refused.returncode == 1
    (line,) = [each for each in refused.stderr.splitlines() if "cannot open the database" in each]
    assert f"{tmp_path}/old.db" in line
    assert "version 8 is older" in line
    assert "--enable_database_upgrade=true" in line
    store = start_store("--enable_database_upgrade=true", url=url, folder=tmp_path)
    assert [each.name for each in store.client().get_context_types()] == ["kept"]


def test_a_hundred_megabytes_pass_and_more_does_not(store):
    client = store.client()
    type_id = client.put_artifact_type(mlmd.ArtifactType(name="hundred"))
    artifact = mlmd.Artifact(type_id=type_id, name="hundred")
    for part in range(5):
        artifact.custom_properties[f"text{part}"].string_value = "x" * (20 * 1024 * 1024 - 200)
    request = service.PutArtifactsRequest(artifacts=[artifact])
    assert 0 < 100 * 1024 * 1024 - request.ByteSize() < 2000
    put = store.call("PutArtifacts", request, timeout=90)
    assert put.code() == grpc.StatusCode.OK, put.details()
    found = store.call(
        "GetArtifactsByID", service.GetArtifactsByIDRequest(artifact_ids=put.result().artifact_ids)
    )
    assert found.result().artifacts[0].custom_properties == artifact.custom_properties
    artifact.custom_properties["text0"].string_value += "x" * 4000
    more = store.call("PutArtifacts", service.PutArtifactsRequest(artifacts=[artifact]), timeout=90)
    assert more.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_two_servers_on_one_file_lose_nothing(start_store):
    first = start_store()
    second = start_store(url=first.url, folder=first.folder)
    type_id = first.client().put_context_type(mlmd.ContextType(name="shared"))
    put = []

    def write(store, name):
        for number in range(12):
            call = store.call("PutContexts", contexts_request(type_id, f"{name}-{number}"))
            assert call.code() in {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}
            if call.code() == grpc.StatusCode.OK:
                put.append(f"{name}-{number}")

    with ThreadPoolExecutor(2) as writers:
        list(writers.map(write, (first, second), ("a", "b")))
    assert {context.name for context in second.client().get_contexts_by_type("shared")} == set(put)


def test_a_locked_database_is_aborted(start_store):
    store = start_store()
    type_id = store.client().put_context_type(mlmd.ContextType(name="t"))
    other = sqlite3.connect(store.database, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        call = store.call("PutContexts", contexts_request(type_id, "locked-out"))
        assert call.code() == grpc.StatusCode.ABORTED
        other.execute("ROLLBACK")
    finally:
        other.close()
    assert store.call("PutContexts", contexts_request(type_id, "let-in")).code() == grpc.StatusCode.OK


def test_a_database_that_another_program_made_is_used_in_place(start_store):
    store = start_store()
    store.stop()
    for leftover in store.folder.glob("metadata.db*"):
        leftover.unlink()
    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = str(store.database)
    config.sqlite.connection_mode = 3
    MetadataStore(config).put_context_type(mlmd.ContextType(name="made-elsewhere"))
    store.start()
    assert store.client().get_context_type("made-elsewhere").id == 10


def test_sixteen_kilobytes_of_metadata_pass(store):
    call = store.call(
        "GetContextTypes", service.GetContextTypesRequest(), metadata=[("x-large", "x" * (15 * 1024))]
    )
    assert call.code() == grpc.StatusCode.OK


def test_it_listens_on_ipv4_and_ipv6(store):
    families = [(socket.AF_INET, "127.0.0.1")]
    if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
        families.append((socket.AF_INET6, "::1"))
    for family, host in families:
        with socket.socket(family) as client:
            client.settimeout(5)
            client.connect((host, store.port))


def test_calls_are_counted_by_rpc_and_code(store, until):
    store.call("GetContextType", service.GetContextTypeRequest(type_name="uncounted")).exception()
    counted = 'metadata_store_calls_total{code="NOT_FOUND",rpc="GetContextType"}'
    until(lambda: counted in store.http("/metrics")[1])  # a call is counted when it has been answered
    metrics = store.http("/metrics")[1]
    assert 'metadata_store_call_seconds_count{rpc="GetContextType"}' in metrics


def test_no_database_is_refused_with_what_to_give():
    result = run("--grpc_port=0")
    assert result.returncode != 0
    assert "--database sqlite:///PATH" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_one_clear_line(store, tmp_path):
    result = run(f"--grpc_port={store.port}", "--database", f"sqlite:///{tmp_path}/m.db")
    assert result.returncode == 1
    assert f"{store.port}" in result.stderr
    assert "in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_database_that_cannot_be_opened_is_one_clear_line(tmp_path):
    path = tmp_path / "missing" / "m.db"
    result = run("--grpc_port=0", "--database", f"sqlite:///{path}")
    assert result.returncode == 1
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_database_server_that_is_not_there_is_one_clear_line_without_the_password():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"mysql://user:hush-hush@127.0.0.1:{listener.getsockname()[1]}/metadb"
        result = run("--grpc_port=0", "--metadata_store_connection_retries=1", "--database", url)
    assert result.returncode == 1
    assert "cannot open the database" in result.stderr
    assert "hush-hush" not in result.stderr
    assert "Traceback" not in result.stderr


def test_upstreams_flags_without_meaning_only_warn(start_store):
    store = start_store(
        "--logtostderr", "--v=1", "--minloglevel=0", "--metadata_store_connection_retries=3",
        "--enable_database_upgrade=true", "--downgrade_db_schema_version=-1",
        "--grpc_channel_arguments=grpc.max_metadata_size=16384,grpc.max_receive_message_length=104857600",
    )  # fmt: skip
    assert store.log.read_text().count("no meaning") == 3
    assert store.client().get_context_types() == []
