import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from metadata_store.connection import from_url, opened_again, prepare_sqlite, server_config
from metadata_store.settings import Settings


def test_a_sqlite_url_is_a_file_with_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = from_url("sqlite:///relative%20name.db")
    assert config.sqlite.filename_uri == str(tmp_path / "relative name.db")
    assert config.sqlite.connection_mode == mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    assert from_url(f"sqlite:///{tmp_path}/m.db").sqlite.filename_uri == f"{tmp_path}/m.db"
    assert opened_again(config).sqlite.connection_mode == mlmd.SqliteMetadataSourceConfig.READWRITE


def test_a_mysql_url_maps_onto_the_cores_fields():
    config = from_url("mysql+asyncmy://me:p%40ss@db:3307/metadb?ssl_ca=/ca.pem&ssl_verify_server_cert=true")
    mysql = config.mysql
    assert (mysql.host, mysql.port, mysql.user, mysql.password) == ("db", 3307, "me", "p@ss")
    assert (mysql.database, mysql.ssl_options.ca) == ("metadb", "/ca.pem")
    assert mysql.ssl_options.verify_server_cert is True


def test_a_postgresql_url_maps_onto_the_cores_fields():
    config = from_url("postgresql://me:secret@db/metadb?sslmode=require&skip_db_creation=true").postgresql
    assert (config.host, config.port, config.user, config.password) == ("db", "5432", "me", "secret")
    assert (config.dbname, config.ssloption.sslmode, config.skip_db_creation) == ("metadb", "require", True)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("oracle://me:hush@db/x", "expected sqlite, mysql or postgresql, got 'oracle'"),
        ("/just/a/path", "expected sqlite, mysql or postgresql, got ''"),
        ("mysql://me:hush@db", "got no name"),
        ("mysql://me:hush@db/x?colour=red", "got 'colour'"),
        ("postgresql://me:hush@db/x?colour=red", "got 'colour'"),
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url, expected):
    with pytest.raises(ValueError, match="--database") as caught:
        from_url(url)
    assert expected in str(caught.value)
    assert "hush" not in str(caught.value)


def test_upstreams_mysql_flags_map_onto_the_cores_fields():
    config = server_config(
        Settings(
            mysql_config_host="db", mysql_config_port=3306, mysql_config_database="metadb",
            mysql_config_user="root", mysql_config_password="secret", enable_database_upgrade=True,
        )
    )  # fmt: skip
    mysql = config.connection_config.mysql
    assert (mysql.host, mysql.port, mysql.database) == ("db", 3306, "metadb")
    assert (mysql.user, mysql.password) == ("root", "secret")
    assert config.migration_options.enable_upgrade_migration is True


def test_upstreams_postgresql_flags_map_onto_the_cores_fields():
    config = server_config(
        Settings(
            metadata_source_config_type="postgresql", postgres_config_host="db", postgres_config_port="5433",
            postgres_config_dbname="metadb", postgres_config_user="root", postgres_config_sslmode="disable",
        )
    )  # fmt: skip
    postgresql = config.connection_config.postgresql
    assert (postgresql.host, postgresql.port, postgresql.dbname) == ("db", "5433", "metadb")
    assert postgresql.ssloption.sslmode == "disable"


def test_upstreams_configuration_file_is_read(tmp_path):
    path = tmp_path / "config.proto"
    path.write_text(
        'connection_config { mysql { host: "db" database: "m" } } ssl_config { client_verify: true }'
    )
    config = server_config(Settings(metadata_store_server_config_file=str(path)))
    assert config.connection_config.mysql.host == "db"
    assert config.ssl_config.client_verify is True


def test_a_configuration_file_that_is_none_is_refused_by_its_place_alone(tmp_path):
    path = tmp_path / "config.proto"
    path.write_text('connection_config {\n  mysql { password: "hush" colour: "red" } }')
    with pytest.raises(ValueError, match="line 2, column") as caught:
        server_config(Settings(metadata_store_server_config_file=str(path)))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(), "no database given"),
        (Settings(metadata_source_config_type="oracle"), "got 'oracle'"),
        (Settings(mysql_config_host="db"), "--mysql_config_database: expected a value"),
        (Settings(metadata_source_config_type="postgresql"), "--postgres_config_dbname: expected a value"),
    ],
)
def test_settings_without_a_database_are_refused(settings, expected):
    with pytest.raises(ValueError, match=expected):
        server_config(settings)


def test_a_sqlite_file_is_made_ready_for_readers_beside_a_writer(tmp_path):
    config = from_url(f"sqlite:///{tmp_path}/m.db")
    assert prepare_sqlite(config) == f"{tmp_path}/m.db"
    assert prepare_sqlite(from_url("mysql://db/x")) is None


def test_a_sqlite_file_that_cannot_be_opened_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="cannot open the database"):
        prepare_sqlite(from_url(f"sqlite:///{tmp_path}/missing/m.db"))
    (tmp_path / "text.db").write_text("this is no database, and long enough to be taken for a header" * 20)
    with pytest.raises(OSError, match="not a database"):
        prepare_sqlite(from_url(f"sqlite:///{tmp_path}/text.db"))
