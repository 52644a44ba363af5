import asyncio
from contextlib import closing
from urllib.parse import quote

import asyncmy
import asyncpg
import pytest
import structlog

from cache_server.configuration import resolve
from cache_server.entries.creation import ensure_database
from cache_server.settings import Settings
from memopod.service import parse

MANIFEST = [
    "--db_driver=mysql", "--db_host=mysql", "--db_port=3306", "--db_name=cachedb", "--db_user=root",
    "--db_password=", "--namespace_to_watch=kubeflow", "--listen_port=8443",
]  # fmt: skip
"""Arguments of Kubeflow's deployment, with its variables expanded (its defaults)."""


def read(*arguments, **environ):
    settings = parse(
        Settings, arguments, prog="memopod cache-server", prefix="MEMOPOD_CACHE", description="",
        environ=environ,
    )  # fmt: skip
    return resolve(settings)


def test_kubeflows_arguments_mean_its_way_of_working():
    settings = read(*MANIFEST)
    assert settings.database == "mysql://root@mysql:3306/cachedb"
    assert (settings.strategy, settings.leader_election) == ("placeholder", False)
    assert (settings.watch_namespace, settings.listen_port) == ("kubeflow", 8443)
    assert settings.tls_cert_file == "/etc/webhook/certs/cert.pem"


@pytest.mark.parametrize(
    ("arguments", "namespace"),
    [
        (["--db_host=db"], "kubeflow"),
        (["--db_host=db", "--namespace_to_watch="], ""),
        (["--db_host=db", "--namespace_to_watch=team"], "team"),
        (["--db_host=db", "--watch-namespace=team"], "team"),
        (["--database=sqlite:///x", "-namespace_to_watch", "team"], "team"),
        (["--database=sqlite:///x"], ""),
    ],
)
def test_the_namespace_is_kubeflow_where_kubeflows_server_would_take_it(arguments, namespace):
    assert read(*arguments).watch_namespace == namespace


def test_a_server_that_is_told_how_to_work_watches_all_namespaces_beside_kubeflows_database():
    given = {"--strategy": "gate", "--leader-election": "true", "--db_host": "db"}
    flags = [f"{flag}={value}" for flag, value in given.items()]
    assert read(*flags).watch_namespace == ""
    assert read(*flags, "--namespace_to_watch=team").watch_namespace == "team"


def test_kubeflows_environment_is_read():
    settings = read(
        *MANIFEST, CACHE_IMAGE="busybox:1", CACHE_NODE_RESTRICTIONS="true",
        DEFAULT_CACHE_STALENESS="P30D", MAXIMUM_CACHE_STALENESS="P60D",
    )  # fmt: skip
    assert (settings.cache_image, settings.cache_node_restrictions) == ("busybox:1", True)
    assert (settings.default_staleness, settings.maximum_staleness) == ("P30D", "P60D")


def test_set_but_empty_is_not_set():
    settings = read(*MANIFEST, CACHE_IMAGE="", CACHE_NODE_RESTRICTIONS="", DEFAULT_CACHE_STALENESS="")
    assert (settings.cache_image, settings.cache_node_restrictions) == ("ghcr.io/containerd/busybox", False)


def test_a_password_of_any_characters_reaches_the_url():
    assert read("--db_password=p@ss/w:rd").database == "mysql://root:p%40ss%2Fw%3Ard@mysql:3306/cachedb"


@pytest.mark.parametrize("driver", ["pgx", "postgres"])
def test_kubeflows_overlay_for_postgresql_works_too(driver):
    assert read(f"--db_driver={driver}", "--db_host=db").database == "postgresql://root@db:5432/cachedb"


def test_one_dash_is_as_good_as_two():
    settings = read("-db_host=db", "-listen_port", "9443", "-tls_cert_filename=tls.crt")
    assert settings.database == "mysql://root@db:3306/cachedb"
    assert (settings.listen_port, settings.tls_cert_file) == (9443, "/etc/webhook/certs/tls.crt")


def test_each_flag_without_meaning_is_told_once():
    flags = {
        "--db_group_concat_max_len": "4194304", "--db_extra_params": '{"timeout": "5s"}',
        "--kube_client_qps": "5", "--kube_client_burst": "10", "--logtostderr": "true",
        "--alsologtostderr": "true", "--stderrthreshold": "INFO",
        "--log_dir": "/tmp", "--v": "2", "--vmodule": "x=1", "--log_backtrace_at": ":0",
        "--log_link": "/tmp", "--logbuflevel": "0",
    }  # fmt: skip
    with structlog.testing.capture_logs() as logs:
        read(*MANIFEST, *(f"{flag}={value}" for flag, value in flags.items()))
    assert sorted(line["flag"] for line in logs) == sorted(flags)
    assert {line["log_level"] for line in logs} == {"warning"}


@pytest.mark.parametrize(
    ("parameters", "query", "told"),
    [
        ("", "", []),
        ("{}", "", []),
        ('{"tls": "false"}', "", []),
        ('{"tls": "true"}', "?tls=true", []),
        ('{"tls": "skip-verify"}', "?tls=skip-verify", []),
        ('{"tls": "true", "timeout": "5s"}', "?tls=true", ["--db_extra_params"]),
        # Plain, and told so: no driver here takes TLS only if it is offered.
        ('{"tls": "preferred"}', "", ["--db_extra_params"]),
    ],
)
def test_a_connection_that_was_encrypted_stays_so(parameters, query, told):
    with structlog.testing.capture_logs() as logs:
        settings = read("--db_host=db", f"--db_extra_params={parameters}")
    assert settings.database == f"mysql://root@db:3306/cachedb{query}"
    assert [line["flag"] for line in logs] == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--db_driver=oracle"], "--db_driver: expected one of mysql"),
        (["--db_port=x"], "--db_port: expected a number"),
        (["--db_host=db", "--db_extra_params=["], "--db_extra_params: expected a JSON object"),
        (["--db_host=db", '--db_extra_params={"tls": "mine"}'], "--db_extra_params: expected tls to be true"),
        (["--database=sqlite:///x", "--leader-election=false"], "--leader-election: expected true"),
    ],
)
def test_a_bad_value_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        read(*arguments)


def test_without_kubeflows_flags_pods_are_held_and_a_leader_is_elected():
    settings = read("--database=sqlite:///x")
    assert (settings.strategy, settings.leader_election) == ("gate", True)


async def mysql_databases(server):
    connection = await asyncmy.connect(
        host="127.0.0.1", port=server.port, user=server.user, password=server.password
    )
    with closing(connection):
        async with connection.cursor() as cursor:
            await cursor.execute(
                "SELECT schema_name, default_character_set_name FROM information_schema.schemata"
            )
            return dict(await cursor.fetchall())


async def postgresql_databases(server):
    connection = await asyncpg.connect(
        host="127.0.0.1", port=server.port, user=server.user, password=server.password, database="postgres"
    )
    try:
        query = "SELECT datname, pg_encoding_to_char(encoding) FROM pg_database"
        return dict(await connection.fetch(query))
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("kind", "databases", "charset"),
    [("mariadb", mysql_databases, "utf8mb4"), ("postgresql", postgresql_databases, "UTF8")],
)
async def test_a_database_that_is_not_there_is_made_once(request, kind, databases, charset):
    server = request.getfixturevalue(kind)
    scheme = "mysql" if kind == "mariadb" else kind
    name = 'Cache `%:"1'
    url = f"{scheme}://{server.user}:{quote(server.password, safe='')}@127.0.0.1:{server.port}/{quote(name)}"
    await asyncio.gather(*(ensure_database(url) for _ in range(4)))
    await ensure_database(url)
    assert (await databases(server))[name] == charset


async def test_a_server_that_is_not_there_is_named_without_the_password():
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1/cachedb: cannot be opened or made") as raised:
        await ensure_database("mysql://root:hunter2@127.0.0.1:1/cachedb")
    assert "hunter2" not in str(raised.value)
