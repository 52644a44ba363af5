"""TLS on both sides."""

import asyncio
import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SERVICE = "/ml_metadata.MetadataStoreService"
NAME = "metadata-grpc-service.kubeflow.svc"


@dataclass
class Pair:
    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])
        own = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(_pem(own.sign(self._key, hashes.SHA256())))

    def _builder(self, subject, key):
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )

    def issue(self, *names):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        given = [x509.DNSName(name) for name in names]
        given.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = self._builder(subject, key).add_extension(x509.SubjectAlternativeName(given), False)
        made = Pair(self.folder / f"{names[0]}.pem", self.folder / f"{names[0]}.key")
        made.certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        plain = serialization.NoEncryption()
        encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        made.key.write_bytes(key.private_bytes(encoding, kind, plain))
        return made


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
async def tls_store(authority):
    """The port of a store that speaks TLS and asks its clients for certificates."""
    pair = authority.issue(NAME)
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.certificate.read_bytes())], authority.file.read_bytes(), True
    )

    async def answer(request, context):
        return b"\x00"

    server = grpc.aio.server()
    handler = {"GetContexts": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE[1:], handler),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield port
    await server.stop(None)


def to_store(authority, name=NAME):
    ours = authority.issue("envoy")
    return [
        "--store-tls", f"--store-ca={authority.file}", f"--store-name={name}",
        f"--store-certificate={ours.certificate}", f"--store-key={ours.key}",
    ]  # fmt: skip


async def ask(channel):
    return await channel.unary_unary(f"{SERVICE}/GetContexts")(b"", timeout=20)


async def test_both_sides_show_certificates_and_every_client_gets_through(start_envoy, tls_store, authority):
    served, client = authority.issue("envoy.example"), authority.issue("client")
    flags = [
        *to_store(authority), f"--tls-certificate={served.certificate}", f"--tls-key={served.key}",
        f"--tls-client-ca={authority.file}",
    ]  # fmt: skip
    envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{tls_store}", flags=flags)
    known = grpc.ssl_channel_credentials(
        authority.file.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes()
    )
    for address in (envoy.address, envoy.full_address):
        async with grpc.aio.secure_channel(address, known) as channel:
            assert await ask(channel) == b"\x00"
    unknown = grpc.ssl_channel_credentials(authority.file.read_bytes())
    async with grpc.aio.secure_channel(envoy.full_address, unknown) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    context = ssl.create_default_context(cafile=str(authority.file))
    context.load_cert_chain(client.certificate, client.key)
    headers = {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"https://{envoy.address}{SERVICE}/GetContexts", data=b"\0\0\0\0\0", headers=headers, ssl=context
        ) as answer,
    ):
        assert (await answer.read()).startswith(b"\x00\x00\x00\x00\x01\x00\x80")


async def test_a_store_with_another_name_is_not_trusted(start_envoy, tls_store, authority):
    flags = to_store(authority, "another.kubeflow.svc")
    envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{tls_store}", flags=flags)
    async with grpc.aio.insecure_channel(envoy.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_store_of_another_authority_is_not_trusted(start_envoy, tls_store, authority, tmp_path):
    (tmp_path / "other").mkdir()
    flags = [flag for flag in to_store(authority) if not flag.startswith("--store-ca")]
    flags.append(f"--store-ca={Authority(tmp_path / 'other').file}")
    envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{tls_store}", flags=flags)
    async with grpc.aio.insecure_channel(envoy.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
