"""The webhook's own certificate authority: what it signs, and when something of it is due.

Pure, but for the making of keys. The order of a change keeps every API server content: a new authority is
added to the old one first (both are trusted), and signs a new certificate only when all webhook
configurations trust it. (The model is cert-manager's own webhook certificate.)
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from memopod.service.issuing import (
    begun,
    certificate_pem,
    for_authority,
    for_server,
    general_names,
    key_pem,
    load_key,
    named,
)

_CLOCK_SKEW = timedelta(hours=1)
_SEAL_BYTES = 32
FILES = ("ca.crt", "ca.key", "tls.crt", "tls.key", "seal.key")
"""Keys of the Secret. `ca.crt` holds all authorities that are trusted, the one that signs first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long what is signed is valid. Renewed at two thirds of that."""

    authority: timedelta = timedelta(days=365)
    certificate: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the Secret holds, all PEM but for `seal_key`."""

    authorities: bytes
    authority_key: bytes
    certificate: bytes
    key: bytes
    seal_key: bytes

    @classmethod
    def read(cls, data: dict[str, bytes]) -> "Material":
        """From the Secret's data. Raises ValueError for what is missing or does not fit together."""
        missing = [name for name in FILES if not data.get(name)]
        if missing:
            raise ValueError(f"expected {', '.join(FILES)}, got no {' and no '.join(missing)}")
        found = cls(**dict(zip(_FIELDS, (data[name] for name in FILES), strict=True)))
        try:
            found._check()
        except (TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
            # An encrypted key, one of an unknown kind, a certificate that somebody else has made.
            raise ValueError(f"expected keys and certificates of its own making: {error}") from error
        return found

    def _check(self) -> None:
        if _public(self.signer.public_key()) != _public(load_key(self.authority_key).public_key()):
            raise ValueError("ca.key does not belong to the first certificate in ca.crt")
        if _public(self.leaf.public_key()) != _public(load_key(self.key).public_key()):
            raise ValueError("tls.key does not belong to tls.crt")
        self.signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)

    def data(self) -> dict[str, bytes]:
        """For the Secret."""
        return dict(zip(FILES, (getattr(self, field) for field in _FIELDS), strict=True))

    @property
    def signer(self) -> x509.Certificate:
        """The authority that signs."""
        return x509.load_pem_x509_certificates(self.authorities)[0]

    @property
    def leaf(self) -> x509.Certificate:
        """The webhook's certificate."""
        return x509.load_pem_x509_certificate(self.certificate)


_FIELDS = ("authorities", "authority_key", "certificate", "key", "seal_key")


def found(names: Sequence[str], lifetimes: Lifetimes, now: datetime) -> Material:
    """A new authority and a certificate of it for these DNS names and addresses."""
    authority, authority_key = _new_authority(lifetimes, now)
    certificate, key = _sign(x509.load_pem_x509_certificate(authority), authority_key, names, lifetimes, now)
    return Material(
        authorities=authority, authority_key=authority_key, certificate=certificate, key=key,
        seal_key=secrets.token_bytes(_SEAL_BYTES),
    )  # fmt: skip


def renewed(
    material: Material, names: Sequence[str], lifetimes: Lifetimes, now: datetime, *, trusted: bool
) -> Material:
    """The material with what is due, one step at a time; the same object if nothing is.

    `trusted`: whether all webhook configurations hold exactly `material.authorities`.
    """
    authorities = x509.load_pem_x509_certificates(material.authorities)
    valid = [authority for authority in authorities if authority.not_valid_after_utc > now]
    if _is_due(authorities[0], now):
        added, key = _new_authority(lifetimes, now)
        return replace(material, authorities=added + b"".join(map(certificate_pem, valid)), authority_key=key)
    if len(valid) < len(authorities):
        return replace(material, authorities=b"".join(map(certificate_pem, valid)))
    if trusted and not _fits(material, names, now):
        certificate, key = _sign(material.signer, material.authority_key, names, lifetimes, now)
        return replace(material, certificate=certificate, key=key)
    return material


def _is_due(certificate: x509.Certificate, now: datetime) -> bool:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begin + (end - begin) * 2 / 3


def _fits(material: Material, names: Sequence[str], now: datetime) -> bool:
    """Whether the certificate is signed by the authority, for these names, and not due yet."""
    leaf = material.leaf
    try:
        leaf.verify_directly_issued_by(material.signer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(alternatives) == general_names(names) and not _is_due(leaf, now)


def _new_authority(lifetimes: Lifetimes, now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = named(f"memopod webhook authority {now:%Y-%m-%d}")
    builder = for_authority(_builder(name, name, key.public_key(), now, lifetimes.authority))
    return certificate_pem(builder.sign(key, hashes.SHA256())), key_pem(key)


def _sign(
    signer: x509.Certificate, signer_key: bytes, names: Sequence[str], lifetimes: Lifetimes, now: datetime
) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(named(names[0][:64]), signer.subject, key.public_key(), now, lifetimes.certificate)
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )
    builder = for_server(builder, names).add_extension(issued_by, critical=False)
    return certificate_pem(builder.sign(load_key(signer_key), hashes.SHA256())), key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return begun(subject, issuer, key, now - min(_CLOCK_SKEW, lifetime / 10), now + lifetime)


def _public(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("expected an elliptic curve key, got another kind")  # noqa: TRY004 (bad input)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
