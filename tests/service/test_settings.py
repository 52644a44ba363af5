from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memopod.service import parse, setting


@dataclass(frozen=True)
class Settings:
    listen_port: int = setting(8080, "Port.", aliases=("--webhook_port",), env=("WEBHOOK_PORT",))
    database: str = setting("", "Database.")
    hold_timeout: float = setting(30.0, "Seconds; 50% of nothing.")
    verbose: bool = setting(False, "Say more.")
    creators: tuple[str, ...] = setting(("a", "b"), "Trusted creators.")
    limit: int | None = setting(None, "A limit, none by default.")

    def __post_init__(self):
        if self.listen_port < 0:
            raise ValueError("listen_port: expected a port")


def read(*argv, **environ):
    return parse(Settings, argv, prog="service", prefix="MEMOPOD", description="A service.", environ=environ)


def test_without_flags_and_environment_the_defaults_hold():
    assert read() == Settings()


TEXTS = st.text(st.characters(codec="ascii", exclude_characters=",", categories=["L", "N", "P"]), min_size=1)


@given(
    port=st.integers(0, 65535),
    seconds=st.floats(0, 1e6),
    verbose=st.booleans(),
    creators=st.lists(TEXTS, min_size=1).map(tuple),
    database=TEXTS,
)
def test_flags_and_environment_are_read_alike(port, seconds, verbose, creators, database):
    values = {
        "listen_port": str(port),
        "hold_timeout": repr(seconds),
        "verbose": str(verbose).lower(),
        "creators": ",".join(creators),
        "database": database,
    }
    wanted = Settings(
        listen_port=port, hold_timeout=seconds, verbose=verbose, creators=creators, database=database
    )
    assert read(*(f"--{name.replace('_', '-')}={value}" for name, value in values.items())) == wanted
    assert read(*(f"--{name}={value}" for name, value in values.items())) == wanted
    assert read(**{f"MEMOPOD_{name.upper()}": value for name, value in values.items()}) == wanted


def test_a_flag_wins_over_the_environment():
    assert read("--listen-port", "1", MEMOPOD_LISTEN_PORT="2").listen_port == 1


def test_the_names_of_upstream_are_aliases():
    assert read("--webhook_port=1").listen_port == 1
    assert read(WEBHOOK_PORT="1").listen_port == 1
    assert read(WEBHOOK_PORT="1", MEMOPOD_LISTEN_PORT="2").listen_port == 2


def test_an_empty_variable_is_as_none():
    assert read(MEMOPOD_LISTEN_PORT="").listen_port == 8080


@pytest.mark.parametrize("text", ["1", "t", "true", "YES", "on"])
def test_words_for_true(text):
    assert read(f"--verbose={text}").verbose is True


@pytest.mark.parametrize("text", ["0", "f", "False", "no", "OFF"])
def test_words_for_false(text):
    assert read(f"--verbose={text}").verbose is False


def test_a_flag_without_a_value_is_true():
    assert read("--verbose").verbose is True


def test_a_repeated_flag_adds_to_a_tuple():
    assert read("--creators", "x, y", "--creators", "z").creators == ("x", "y", "z")


def test_an_optional_number_is_a_number():
    assert read("--limit", "5").limit == 5


@pytest.mark.parametrize(
    ("argv", "environ", "told"),
    [
        (["--listen-port", "many"], {}, "invalid int value: 'many'"),
        (["--verbose=perhaps"], {}, "--verbose"),
        (["--unknown"], {}, "unrecognized arguments: --unknown"),
        (["--listen", "1"], {}, "unrecognized arguments"),
        ([], {"MEMOPOD_LISTEN_PORT": "many"}, "environment variable MEMOPOD_LISTEN_PORT"),
        ([], {"MEMOPOD_VERBOSE": "perhaps"}, "expected true or false, got 'perhaps'"),
        (["--listen-port", "-1"], {}, "listen_port: expected a port"),
    ],
)
def test_a_bad_setting_ends_the_process_with_status_2_and_a_message(capsys, argv, environ, told):
    with pytest.raises(SystemExit) as ended:
        read(*argv, **environ)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_help_lists_flags_with_their_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for text in ("--listen-port", "--webhook_port", "(default: 8080)", "(default: a,b)", "50% of nothing"):
        assert text in shown


def test_a_value_can_be_in_a_file_that_the_environment_names(tmp_path):
    secret = tmp_path / "database"
    secret.write_text("mysql://memopod:hunter2@db/cache\n")
    assert read(MEMOPOD_DATABASE_FILE=str(secret)).database == "mysql://memopod:hunter2@db/cache"
    named = {"MEMOPOD_DATABASE_FILE": str(secret), "MEMOPOD_DATABASE": "sqlite:///x"}
    assert read(**named).database == "sqlite:///x"


def test_a_file_of_the_environment_that_is_not_there_ends_the_process(capsys, tmp_path):
    with pytest.raises(SystemExit):
        read(MEMOPOD_DATABASE_FILE=str(tmp_path / "absent"))
    assert "MEMOPOD_DATABASE" in capsys.readouterr().err
