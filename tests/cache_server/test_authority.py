from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store

from cache_server.authority import FILES, Lifetimes, Material, found, renewed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("cache-server.memopod.svc", "cache-server", "127.0.0.1", "::1")
LIFETIMES = Lifetimes(authority=timedelta(days=300), certificate=timedelta(days=6))


@pytest.fixture(scope="module")
def material():
    return found(NAMES, LIFETIMES, NOW)


def renew(material, *, after, trusted=True, names=NAMES):
    return renewed(material, names, LIFETIMES, NOW + after, trusted=trusted)


def check(material, bundle, at=NOW):
    """As an API server does that trusts `bundle`. Raises VerificationError."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(at).build_server_verifier(x509.DNSName(NAMES[0]))
    verifier.verify(material.leaf, [])


def test_the_certificate_is_of_its_authority_for_all_names(material):
    check(material, material.authorities)
    names = material.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == list(NAMES[:2])
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == list(NAMES[2:])


def test_what_is_written_is_read_again(material):
    assert Material.read(material.data()) == material


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(material, file):
    with pytest.raises(ValueError, match=f"got no {file}"):
        Material.read({**material.data(), file: b""})


@pytest.mark.parametrize(
    ("file", "message"), [("ca.key", "ca.key does not"), ("tls.key", "tls.key does not")]
)
def test_a_key_of_another_certificate_is_refused(material, file, message):
    other = found(NAMES, LIFETIMES, NOW).data()[file]
    with pytest.raises(ValueError, match=message):
        Material.read({**material.data(), file: other})


def test_nothing_is_due_before_two_thirds(material):
    assert renew(material, after=timedelta(days=3, hours=23)) is material


def test_the_certificate_is_renewed_at_two_thirds_of_its_life(material):
    later = renew(material, after=timedelta(days=4))
    assert later.authorities == material.authorities
    assert later.leaf.serial_number != material.leaf.serial_number
    check(later, material.authorities, NOW + timedelta(days=5))


def test_other_names_are_signed_at_once(material):
    changed = renew(material, after=timedelta(), names=("other.svc",))
    names = changed.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["other.svc"]


def test_a_new_authority_signs_only_when_everybody_trusts_it(material):
    at = timedelta(days=200)
    both = renew(material, after=at)
    assert len(x509.load_pem_x509_certificates(both.authorities)) == 2
    assert (both.certificate, both.key) == (material.certificate, material.key)
    assert renew(both, after=at, trusted=False) is both
    signed = renew(both, after=at, trusted=True)
    assert signed.leaf.issuer == both.signer.subject
    check(signed, both.authorities, NOW + at)
    assert renew(signed, after=at) is signed


def test_at_no_step_of_a_rotation_is_the_certificate_unknown_to_who_trusts_the_last_bundle(material):
    """Every 12 hours for two years: what is served is verified with the bundle that was spread before."""
    current, spread = material, material.authorities
    for step in range(2 * 730):
        after = timedelta(hours=12 * step)
        renewed_ = renew(current, after=after, trusted=spread == current.authorities)
        check(renewed_, spread, NOW + after)
        current, spread = renewed_, renewed_.authorities
    assert len(x509.load_pem_x509_certificates(current.authorities)) <= 2


def test_an_authority_that_somebody_replaced_signs_anew(material):
    other = found(NAMES, LIFETIMES, NOW)
    mixed = replace(material, authorities=other.authorities, authority_key=other.authority_key)
    assert renew(mixed, after=timedelta(), trusted=False) is mixed
    check(renew(mixed, after=timedelta(), trusted=True), other.authorities)


def test_an_authority_that_expired_is_no_longer_trusted(material):
    at = timedelta(days=200)
    both = renew(renew(material, after=at), after=at)
    later = renew(both, after=timedelta(days=301))
    assert x509.load_pem_x509_certificates(later.authorities) == [both.signer]


def test_an_encrypted_key_is_refused_as_bad_input(material):
    key = serialization.load_pem_private_key(material.authority_key, None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="of its own making"):
        Material.read({**material.data(), "ca.key": encrypted})
