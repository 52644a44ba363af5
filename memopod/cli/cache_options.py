"""Where a command finds the entries: the options that say so, in one place for all commands."""

import inspect
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cache_server.entries.databases import parse_url
from memopod.service import from_environment

DATABASE_VARIABLE = "MEMOPOD_CACHE_DATABASE"
"""Environment variable with the URL of the cache server's database."""
SERVER_VARIABLE, TOKEN_VARIABLE, CA_VARIABLE = (
    "MEMOPOD_CACHE_SERVER",
    "MEMOPOD_CACHE_TOKEN_FILE",
    "MEMOPOD_CACHE_CA_FILE",
)
DEFAULT_STATE = Path(".memopod/sandbox")
"""State folder of `memopod sandbox up` unless told otherwise."""

R = TypeVar("R")

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help=f"The database: sqlite:///PATH, mysql:// or postgresql://. [env: {DATABASE_VARIABLE}]",
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="State folder of a sandbox: read its entries.")
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help=f"A cache server's API: https://... [env: {SERVER_VARIABLE}]"
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help=f"File with the token for it. [env: {TOKEN_VARIABLE}]"),
]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca-file", metavar="FILE", help=f"Authorities to trust for it. [env: {CA_VARIABLE}]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, with every field.")]


@dataclass(frozen=True, slots=True)
class Source:
    """Which database is read; `flags` name it again on a command line."""

    url: str
    flags: str = ""


@dataclass(frozen=True, slots=True)
class ServerSource:
    """Which API is asked, with which token and authorities."""

    url: str
    token_file: Path
    ca_file: Path | None
    flags: str = ""


def find_source(database: str | None, state: Path | None) -> Source:
    """Which database to read, from the options, the environment and the folder one is in.

    Ends the command for options that contradict each other.
    """
    if database and state:
        raise typer.BadParameter("give --database or --state, not both")
    if database:
        return Source(database, f" --database {shlex.quote(_shown(database))}")
    if state:
        return Source(_url(state), f" --state {shlex.quote(str(state))}")
    if url := from_environment(DATABASE_VARIABLE):
        return Source(url)
    return Source(_url(DEFAULT_STATE))


def find_any(
    database: str | None,
    state: Path | None,
    server: str | None,
    token_file: Path | None,
    ca_file: Path | None,
) -> Source | ServerSource:
    """As `find_source`; an API comes before the environment's database, a flag before the environment."""
    if server and (database or state):
        raise typer.BadParameter("give --server, --database or --state, not two of them")
    chosen = server or (None if database or state else os.environ.get(SERVER_VARIABLE))
    if not chosen:
        return find_source(database, state)
    token = token_file or _path(TOKEN_VARIABLE)
    authorities = ca_file or _path(CA_VARIABLE)
    if not chosen.startswith("https://"):
        raise typer.BadParameter("--server: expected https://HOST:PORT: a token is sent there")
    if token is None:
        raise typer.BadParameter(f"--server needs --token-file FILE (or {TOKEN_VARIABLE})")
    given = (("--server", server), ("--token-file", token_file), ("--ca-file", ca_file))
    flags = "".join(f" {name} {shlex.quote(str(value))}" for name, value in given if value)
    return ServerSource(chosen.rstrip("/"), token, authorities, flags)


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _shown(url: str) -> str:
    """The URL as it may be shown: with *** for a password. What is no URL is reported when it is used."""
    try:
        return parse_url(url).render_as_string()
    except ValueError:
        return "URL"


def _url(state: Path) -> str:
    return f"sqlite:///{state / 'cache.db'}"


def reads_entries(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that say where the entries are; it is called with their `source`."""
    return _with_options(command, find_any, _ANYWHERE)


def reads_database(command: Callable[..., R]) -> Callable[..., R]:
    """As `reads_entries`, for a command that needs the database itself."""
    return _with_options(command, find_source, _DATABASE_ONLY)


_DATABASE_ONLY = {"database": DatabaseOption, "state": StateOption}
_ANYWHERE = {**_DATABASE_ONLY, "server": ServerOption, "token_file": TokenOption, "ca_file": CaOption}


def _with_options(
    command: Callable[..., R], find: Callable[..., Any], options: dict[str, Any]
) -> Callable[..., R]:
    own = inspect.signature(command)

    @wraps(command)
    def wrapped(**given: Any) -> R:
        where = {name: given.pop(name) for name in options if name not in own.parameters}
        # A command that needs one of them for something else too has it among its own.
        shared = {name: given[name] for name in options if name in own.parameters}
        return command(source=find(**where, **shared), **given)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
        if name not in own.parameters
    ]
    kept = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.parameters.items()
        if name != "source"
    ]
    # Beside the last option, which is --json of most of them.
    wrapped.__signature__ = own.replace(parameters=[*kept[:-1], *added, *kept[-1:]])  # type: ignore[attr-defined]
    return wrapped
