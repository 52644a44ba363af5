"""What all certificates that memopod makes for itself have in common."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def named(common_name: str) -> x509.Name:
    """A subject of this common name (64 characters at most)."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, since: datetime, until: datetime
) -> x509.CertificateBuilder:
    """A certificate of `key`, valid between two times, that `for_authority` or `for_server` goes on with."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def for_authority(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    """It signs certificates of servers, and no other authority."""
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(
        _usage(authority=True), critical=True
    )


def for_server(builder: x509.CertificateBuilder, names: Sequence[str]) -> x509.CertificateBuilder:
    """It is a server's with these DNS names and addresses."""
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.SubjectAlternativeName(general_names(names)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )


def general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """DNS names and addresses as they stand in a certificate."""
    return [_general_name(name) for name in names]


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as PEM (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """A private key from its PEM. Raises ValueError for one of another kind."""
    loaded = serialization.load_pem_private_key(pem, None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ValueError("expected an elliptic curve key, got another kind")  # noqa: TRY004 (bad input)
    return loaded


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
