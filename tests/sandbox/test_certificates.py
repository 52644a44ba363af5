import json
import ssl
import stat

import pytest
import yaml
from cryptography import x509
from cryptography.x509 import verification

from memopod.sandbox import certificates
from memopod.sandbox.certificates import USERS, prepare_state


@pytest.fixture
def contents(tmp_path):
    return lambda: {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_second_call_changes_nothing(tmp_path, contents):
    first = prepare_state(tmp_path, 6443)
    before = contents()
    assert prepare_state(tmp_path, 6443) == first
    assert contents() == before


def test_another_port_changes_the_kubeconfigs_only(tmp_path, contents):
    files = prepare_state(tmp_path, 6443)
    before = contents()
    prepare_state(tmp_path, 7443)
    changed = {path for path, content in contents().items() if before[path] != content}
    assert changed == {files.kubeconfig, *files.kubeconfigs.values()}
    config = yaml.safe_load(files.kubeconfig.read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:7443"


def test_only_the_owner_reads_keys_tokens_and_kubeconfigs(tmp_path, contents):
    prepare_state(tmp_path, 6443)
    readable = {path.name for path in contents() if stat.S_IMODE(path.stat().st_mode) != 0o600}
    assert readable == {"ca.crt", "apiserver.crt", "cache-server.crt"}


def test_every_component_has_a_token_of_its_own(tmp_path):
    files = prepare_state(tmp_path, 6443)
    tokens = json.loads(files.tokens.read_text())
    for name, (username, groups) in USERS.items():
        path = files.kubeconfig if name == "admin" else files.kubeconfigs[name]
        token = yaml.safe_load(path.read_text())["users"][0]["user"]["token"]
        assert tokens[token] == {"username": username, "groups": list(groups)}
    assert len(tokens) == len(USERS)


def test_serving_certificates_hold_under_strict_verification(tmp_path):
    files = prepare_state(tmp_path, 6443)
    store = verification.Store([x509.load_pem_x509_certificate(files.ca.read_bytes())])
    for pair in (files.apiserver, files.cache_server):
        leaf = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        for subject in (x509.DNSName("localhost"),):
            verification.PolicyBuilder().store(store).build_server_verifier(subject).verify(leaf, [])
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(pair.certificate, pair.key)


def test_certificates_about_to_expire_and_their_leaves_are_renewed(tmp_path, monkeypatch):
    files = prepare_state(tmp_path, 6443)
    before = {path: path.read_bytes() for path in (files.ca, files.apiserver.certificate)}
    monkeypatch.setattr(certificates, "_RENEW_BEFORE", certificates._LIFETIME)
    prepare_state(tmp_path, 6443)
    assert all(path.read_bytes() != content for path, content in before.items())


def test_a_leaf_of_another_authority_is_issued_again(tmp_path):
    files = prepare_state(tmp_path, 6443)
    before = files.apiserver.certificate.read_bytes()
    files.ca.unlink()
    prepare_state(tmp_path, 6443)
    assert files.apiserver.certificate.read_bytes() != before


def test_certificates_name_the_hosts_that_were_ever_asked_for(tmp_path):
    files = prepare_state(tmp_path, 6443, host="cluster", hosts=("cache-server",))
    for pair in (files.apiserver, files.cache_server):
        certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {"localhost", "cluster", "cache-server"} == set(names.get_values_for_type(x509.DNSName))
    config = yaml.safe_load(files.kubeconfig.read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://cluster:6443"
    before = files.cache_server.certificate.read_bytes()
    prepare_state(tmp_path, 6443, host="cluster")
    assert files.cache_server.certificate.read_bytes() == before
    prepare_state(tmp_path, 6443, host="another")
    assert files.cache_server.certificate.read_bytes() != before
