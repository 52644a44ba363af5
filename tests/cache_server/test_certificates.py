import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from cache_server.admission import Verdict
from cache_server.certificates import reload_on_change, require_clients, server_context
from cache_server.webhook import build_webhook


class Files:
    """A certificate and its key in two files."""

    def __init__(self, folder):
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self.arguments = str(self.cert), str(self.key)

    def write(self, serial, *, only=None, password=None, valid=timedelta(hours=1)):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cache-server")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + valid)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        encryption = (
            serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        )
        contents = {
            self.cert: certificate.public_bytes(pem),
            self.key: key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption),
        }
        for file, content in contents.items():
            if only in (None, file):
                file.write_bytes(content)
        return contents


@pytest.fixture
def files(tmp_path):
    made = Files(tmp_path)
    made.write(1)
    return made


@asynccontextmanager
async def serving(context):
    async def hello(_request):
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def reloading(context, files):
    reloaded = asyncio.Queue()
    task = asyncio.create_task(
        reload_on_change(
            context, *files.arguments, interval=0.02, on_reload=lambda: reloaded.put_nowait(None)
        ),
        name="certificates",
    )
    try:
        await asyncio.wait_for(reloaded.get(), 10)
        yield reloaded
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def reported(logs):
    async with asyncio.timeout(10):
        while not any("not reloaded" in line["event"] for line in logs):  # noqa: ASYNC110  a list has no event
            await asyncio.sleep(0.01)


async def served_serial(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return x509.load_der_x509_certificate(der).serial_number


async def test_a_replaced_certificate_serves_new_connections_and_open_ones_stay(files):
    context = server_context(*files.arguments)
    connections = 0

    async def count(*_):
        nonlocal connections
        connections += 1

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(count)
    connector = aiohttp.TCPConnector(ssl=False, limit=1)
    async with (
        serving(context) as port,
        reloading(context, files) as reloaded,
        aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as session,
    ):

        async def ask():
            async with session.get(f"https://127.0.0.1:{port}/") as response:
                return await response.text()

        assert await ask() == "hello"
        assert await served_serial(port) == 1
        files.write(2)
        async with asyncio.timeout(10):
            while await served_serial(port) != 2:
                await reloaded.get()
        assert await ask() == "hello"
        assert connections == 1


async def test_the_metric_says_when_the_certificate_that_is_served_ends(files):
    def told():
        return REGISTRY.get_sample_value("memopod_certificate_expiration_timestamp_seconds")

    context = server_context(*files.arguments)
    before = told()
    async with reloading(context, files):
        files.write(2, valid=timedelta(days=2))
        served = x509.load_pem_x509_certificate(files.cert.read_bytes()).not_valid_after_utc.timestamp()
        assert served > before
        async with asyncio.timeout(30):
            while told() != served:  # noqa: ASYNC110  a metric has no event
                await asyncio.sleep(0.01)


async def test_half_a_replacement_changes_nothing_and_is_reported_once(files):
    context = server_context(*files.arguments)
    with capture_logs() as logs:
        async with serving(context) as port, reloading(context, files) as reloaded:
            contents = files.write(2, only=files.cert)
            await reported(logs)
            assert await served_serial(port) == 1
            files.key.write_bytes(contents[files.key])
            async with asyncio.timeout(10):
                await reloaded.get()
            assert await served_serial(port) == 2
    assert sum("not reloaded" in line["event"] for line in logs) == 1


async def test_files_that_vanish_for_a_while_are_loaded_when_they_come_back(files):
    context = server_context(*files.arguments)
    with capture_logs() as logs:
        async with serving(context) as port, reloading(context, files) as reloaded:
            files.key.unlink()
            await reported(logs)
            files.write(3)
            async with asyncio.timeout(10):
                while await served_serial(port) != 3:
                    await reloaded.get()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken(files, version):
    async with serving(server_context(*files.arguments)) as port:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        assert writer.get_extra_info("ssl_object").version() == version.name.replace("v1_", "v1.")
        writer.close()
        await writer.wait_closed()


async def test_old_versions_of_tls_are_refused(files):
    assert server_context(*files.arguments).minimum_version == ssl.TLSVersion.TLSv1_2


@asynccontextmanager
async def guarded(files, names=()):
    """A webhook that takes calls with a certificate only, and a caller: its certificate is its authority."""
    context = server_context(*files.arguments)
    require_clients(context, str(files.cert))

    async def judge(_request):
        return Verdict(held=False, reason="miss")

    runner = web.AppRunner(build_webhook(judge, names))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()

    async def call(certificate):
        client = ssl.create_default_context(cafile=str(files.cert))
        client.check_hostname = False
        if certificate:
            client.load_cert_chain(*files.arguments)
        url = f"https://127.0.0.1:{runner.addresses[0][1]}/mutate"
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client)) as session,
            session.post(url, json={"request": {"uid": "1"}}) as answer,
        ):
            return answer.status

    try:
        yield call
    finally:
        await runner.cleanup()


async def test_only_clients_of_the_authority_may_call(files):
    async with guarded(files) as call:
        assert await call(certificate=True) == 200
        with pytest.raises(aiohttp.ClientError):
            await call(certificate=False)


@pytest.mark.parametrize(("name", "status"), [("cache-server", 200), ("kube-apiserver", 403)])
async def test_only_clients_of_that_name_may_call(files, name, status):
    async with guarded(files, [name]) as call:
        assert await call(certificate=True) == status


def test_authorities_that_are_not_pem_are_refused(files, tmp_path):
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(ValueError, match=r"expected PEM in .*ca\.crt"):
        require_clients(server_context(*files.arguments), str(tmp_path / "ca.crt"))


def test_a_missing_file_is_named(files):
    files.key.unlink()
    with pytest.raises(FileNotFoundError, match=r"tls\.key"):
        server_context(*files.arguments)


def test_a_key_of_another_certificate_is_refused(files):
    files.write(2, only=files.key)
    with pytest.raises(ValueError, match=r"tls\.key does not belong to the certificate in .*tls\.crt"):
        server_context(*files.arguments)


@pytest.mark.parametrize("broken", ["cert", "key"])
def test_a_file_that_is_not_pem_is_refused(files, broken):
    getattr(files, broken).write_text("nothing")
    with pytest.raises(ValueError, match=r"expected PEM in .*tls\.crt"):
        server_context(*files.arguments)


def test_an_encrypted_key_is_refused_instead_of_asking_for_a_password(files):
    files.write(2, password=b"hunter2")
    with pytest.raises(ValueError, match="without a password"):
        server_context(*files.arguments)
