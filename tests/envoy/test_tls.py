"""TLS on both sides."""

import asyncio
import contextlib
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

from tests.envoy.conftest import until

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
        """A new certificate of these names, in files that are exchanged at once if they were there before."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        given = [x509.DNSName(name) for name in names]
        given.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = self._builder(subject, key).add_extension(x509.SubjectAlternativeName(given), False)
        made = Pair(self.folder / f"{names[0]}.pem", self.folder / f"{names[0]}.key")
        plain = serialization.NoEncryption()
        encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        replace(made.key, key.private_bytes(encoding, kind, plain))
        replace(made.certificate, _pem(builder.sign(self._key, hashes.SHA256())))
        return made


def replace(file, content):
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.rename(file)


class Mounted:
    """A pair of files as Kubernetes mounts a Secret, and renews it."""

    def __init__(self, folder, pair):
        self.folder, self.number = folder, 0
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        for file in (self.certificate, self.key):
            file.symlink_to(Path("..data", file.name))
        self.renew(pair)

    def renew(self, pair):
        self.number += 1
        version = self.folder / f"..{self.number}"
        version.mkdir()
        (version / "tls.crt").write_bytes(pair.certificate.read_bytes())
        (version / "tls.key").write_bytes(pair.key.read_bytes())
        link = self.folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self.folder / "..data")


def shown(port):
    """The certificate that a port shows."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@contextlib.asynccontextmanager
async def store_of(authority, answer, port=0):
    """The port of a store that speaks TLS and asks its clients for certificates."""
    pair = authority.issue(NAME)
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.certificate.read_bytes())], authority.file.read_bytes(), True
    )
    server = grpc.aio.server()
    handler = {"GetContexts": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE[1:], handler),))
    port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@pytest.fixture
async def tls_store(authority):
    async def answer(request, context):
        return b"\x00"

    async with store_of(authority, answer) as port:
        yield port


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


async def test_a_renewed_certificate_is_shown_without_a_restart(
    start_envoy, metadata_store, authority, tmp_path
):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    secret = Mounted(mounted, authority.issue("envoy.example"))
    flags = [f"--tls-certificate={secret.certificate}", f"--tls-key={secret.key}"]
    envoy = await asyncio.to_thread(start_envoy, metadata_store, flags=flags, launched=True)
    for _ in range(2):
        before = secret.certificate.read_text()
        trusted = grpc.ssl_channel_credentials(authority.file.read_bytes())
        for port in (envoy.port, envoy.full_port):
            await asyncio.to_thread(until, lambda port=port, now=before: shown(port) == now)
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", trusted) as channel:
                await channel.unary_unary(f"{SERVICE}/GetContextTypes")(b"", timeout=20)
        secret.renew(authority.issue("envoy.example"))
        assert secret.certificate.read_text() != before


async def test_what_is_shown_to_the_stores_and_whom_of_them_to_trust_are_renewed_too(
    start_envoy, authority, tmp_path
):
    (tmp_path / "other").mkdir()
    later = Authority(tmp_path / "other")
    seen = []

    async def answer(request, context):
        seen.extend(context.auth_context()["x509_pem_cert"])
        return b"\x00"

    flags = to_store(authority)
    trusted = authority.file.read_bytes()
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(store_of(authority, answer))
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}", flags=flags, launched=True)

        async def asked(pair):
            """Whether the store is reached, and shown this certificate."""
            seen.clear()
            async with grpc.aio.insecure_channel(envoy.address) as channel:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await ask(channel)
            return seen == [pair.certificate.read_bytes()]

        async with asyncio.timeout(60):
            ours = Pair(tmp_path / "envoy.pem", tmp_path / "envoy.key")
            while not await asked(ours):
                pass
            await stack.aclose()
            # The store's authority, and with it everybody's certificate, is another from here on.
            await stack.enter_async_context(store_of(later, answer, port))
            assert not await asked(ours)
            renewed = later.issue("envoy")
            replace(ours.key, renewed.key.read_bytes())
            replace(ours.certificate, renewed.certificate.read_bytes())
            replace(authority.file, later.file.read_bytes())
            while not await asked(renewed):
                pass
    assert authority.file.read_bytes() != trusted


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
