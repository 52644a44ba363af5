"""Each entry point of the image, started as a cluster starts it, and talked to."""

import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from ml_metadata.errors import UnauthenticatedError
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2, metadata_store_service_pb2

from metadata_store.login import PLUGINS

REPOSITORY = Path(__file__).resolve().parents[2]
UID = 1000
MOST_BYTES = 500e6


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, free_port, until):
    """The folder of a sandbox's API server, all of it readable by the image's user."""
    state = tmp_path_factory.mktemp("cluster")
    state.parent.chmod(0o755)
    state.parent.parent.chmod(0o755)
    port = free_port()
    command = [sys.executable, "-m", "memopod.sandbox.apiserver", "--state", str(state)]
    process = subprocess.Popen([*command, "--listen-port", str(port)])
    try:
        until(lambda: answers(f"https://127.0.0.1:{port}/readyz"), process=process)
        (state / "seal.key").write_bytes(os.urandom(32))
        for path in (state, *state.rglob("*")):
            os.chown(path, UID, 0)
        yield state
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def folder(tmp_path):
    """A volume that the image's user may write."""
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(0o755)
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, UID, 0)
    return volume


def answers(url):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def test_the_image_says_what_it_is_and_what_is_in_it(docker, image):
    (described,) = json.loads(docker("inspect", image).stdout)
    assert described["Config"]["User"] == "1000:0"
    assert described["Config"]["Labels"]["org.opencontainers.image.version"] == "test"
    layers = docker("history", "--human=false", "--format={{.Size}}", image).stdout.split()
    own = sum(map(int, layers[:-1]))
    # docs/image.md says how large it is; the base is not ours.
    assert own < MOST_BYTES, f"{own / 1e6:.0f} MB upon the base: {layers}"
    listing = docker("run", "--rm", "--network=none", "--entrypoint=cat", image, "/opt/memopod/sbom.cdx.json")
    components = {part["name"]: part["version"] for part in json.loads(listing.stdout)["components"]}
    assert {"ml-metadata", "sqlalchemy", "memopod"} <= {name.lower() for name in components}
    version = docker("run", "--rm", "--network=none", "--read-only", image, "--version").stdout
    assert re.fullmatch(rf"memopod {re.escape(components['memopod'])}\n", version)


def test_a_new_volume_of_the_compose_file_belongs_to_the_images_user(docker, image):
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    volumes = [v for s in services.values() if s.get("user") for v in s.get("volumes", ())]
    written = sorted({volume.split(":")[1] for volume in volumes if not volume.endswith(":ro")})
    assert written
    told = docker("run", "--rm", "--network=none", "--entrypoint=stat", image, "--format=%u:%g", *written)
    assert set(told.stdout.split()) == {"1000:0"}


def test_the_stores_plug_in_for_mysql_8_4_and_9_is_there(docker, image):
    plugin = f"{PLUGINS}/caching_sha2_password.so"
    docker("run", "--rm", "--network=none", "--entrypoint=test", image, "-f", plugin)


def test_store_envoy_and_guard_answer(docker, run, cluster, folder, free_port, until, stopped_in_order):
    port, health, door, admin, guard_health = (free_port() for _ in range(5))
    store = run(
        *("metadata-store", f"--grpc_port={port}", "--database", "sqlite:////data/metadata.db"),
        *("--health-port", str(health)),
        volumes=[f"{folder}:/data"],
    )
    until(lambda: answers(f"http://127.0.0.1:{health}/readyz"))
    client = MetadataStore(metadata_store_pb2.MetadataStoreClientConfig(host="127.0.0.1", port=port))
    client.put_context_type(metadata_store_pb2.ContextType(name="made-in-an-image"))
    envoy = run(
        *("envoy", "run", "--listen-address", "127.0.0.1", "--listen-port", str(door)),
        *("--status-port", str(admin), "--full-port", "0", "--store", f"127.0.0.1:{port}"),
    )
    until(lambda: answers(f"http://127.0.0.1:{admin}/ready"), log=Logs(docker, envoy))
    pb = metadata_store_service_pb2
    answer = grpc_web(door, "GetContextTypes", pb.GetContextTypesRequest(), pb.GetContextTypesResponse)
    assert [kind.name for kind in answer.context_types] == ["made-in-an-image"]
    told = docker("exec", envoy, "memopod", "lineage", "runs", "--address", f"127.0.0.1:{door}", "--json")
    assert json.loads(told.stdout)["runs"] == []
    guarded = free_port()
    guard = run(
        *("metadata-guard", "--kubeconfig", "/cluster/kube/cache-server.kubeconfig"),
        *("--store", f"127.0.0.1:{port}", "--grpc-port", str(guarded), "--health-port", str(guard_health)),
        volumes=[f"{cluster}:/cluster:ro"],
    )
    until(lambda: answers(f"http://127.0.0.1:{guard_health}/readyz"), log=Logs(docker, guard))
    nobody = MetadataStore(metadata_store_pb2.MetadataStoreClientConfig(host="127.0.0.1", port=guarded))
    with pytest.raises(UnauthenticatedError):
        nobody.get_context_types()
    stopped_in_order(guard)
    stopped_in_order(envoy)
    stopped_in_order(store)


def test_cache_server_janitor_and_writer_come_up(
    docker, run, cluster, folder, free_port, until, stopped_in_order
):
    port, store_health = free_port(), free_port()
    run(
        *("metadata-store", f"--grpc_port={port}", "--database", "sqlite:////data/metadata.db"),
        *("--health-port", str(store_health)),
        volumes=[f"{folder}:/data"],
    )
    webhook = free_port()
    commands = {
        "cache-server": (
            *("--listen-host", "127.0.0.1", "--listen-port", str(webhook)),
            *("--tls-cert-file", "/cluster/tls/cache-server.crt"),
            *("--tls-key-file", "/cluster/tls/cache-server.key"),
            *("--database", "sqlite:////data/cache.db", "--seal-key-file", "/cluster/seal.key"),
            *("--trusted-creators", "system:serviceaccount:argo:argo"),
        ),
        "cache-janitor": (),
        "metadata-writer": ("--store", f"127.0.0.1:{port}"),
    }
    for command, arguments in commands.items():
        health = free_port()
        account = command.replace("cache-janitor", "janitor")
        container = run(
            *(command, "--kubeconfig", f"/cluster/kube/{account}.kubeconfig"),
            *("--health-host", "127.0.0.1", "--health-port", str(health), *arguments),
            volumes=[f"{cluster}:/cluster:ro", f"{folder}:/data"],
        )
        until(lambda health=health: answers(f"http://127.0.0.1:{health}/readyz"), log=Logs(docker, container))
        if command == "cache-server":
            assert admits(webhook, cluster / "tls" / "ca.crt")
        stopped_in_order(container)


class Logs:
    """What a container has written, read as a file's text is."""

    def __init__(self, docker, container):
        self.docker, self.container = docker, container

    def read_text(self, **_):
        told = self.docker("logs", self.container, check=False)
        return told.stdout + told.stderr


def admits(port, ca):
    pod = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "main", "image": "busybox:1"}]}}
    request = {
        "uid": "1", "namespace": "pipelines", "object": pod, "operation": "CREATE",
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "userInfo": {"username": "somebody"},
    }  # fmt: skip
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    asked = urllib.request.Request(
        f"https://127.0.0.1:{port}/mutate", json.dumps(review).encode(), {"Content-Type": "application/json"}
    )
    context = ssl.create_default_context(cafile=str(ca))
    with urllib.request.urlopen(asked, timeout=10, context=context) as answer:
        return json.load(answer)["response"]["allowed"]


def grpc_web(port, rpc, request, response):
    body = request.SerializeToString()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/ml_metadata.MetadataStoreService/{rpc}",
        b"\0" + len(body).to_bytes(4) + body,
        {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1"},
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        frame = answer.read()
    assert frame[0] == 0, frame
    return response.FromString(frame[5 : 5 + int.from_bytes(frame[1:5])])
