"""Settings: a frozen dataclass whose fields are the flags, the environment and the reference in one.

A field `listen_port` is set by `--listen-port` or `--listen_port` (upstream's services use
underscores), by its aliases, or by the environment variable `<PREFIX>_LISTEN_PORT`; a flag wins.
`<PREFIX>_LISTEN_PORT_FILE` names a file with the value instead: secrets are mounted as files.
"""

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def setting(default: Any, text: str, *, aliases: Sequence[str] = (), env: Sequence[str] = ()) -> Any:
    """A field of a settings dataclass.

    `text` says what it means, in which unit, and why the default is what it is. `aliases` are
    further flags (`--db_host`), `env` further environment variables, both for upstream's names.
    """
    return dataclasses.field(
        default=default, metadata={"help": text, "aliases": tuple(aliases), "env": tuple(env)}
    )


def parse(
    cls: type[T],
    argv: Sequence[str] | None,
    *,
    prog: str,
    prefix: str,
    description: str,
    epilog: str = "",
    environ: Mapping[str, str] = os.environ,
) -> T:
    """Read the settings of a service from its command line and environment.

    Supported field types: str, int, float, bool, `tuple[str, ...]` (comma separated, or the flag
    repeated) and each of them `| None`.
    Ends the process with status 2 and a message on stderr for an unknown flag or a bad value.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(cls)
    fields = fields_of(cls)
    for field in fields:
        dashed = "--" + field.name.replace("_", "-")
        flags = dict.fromkeys([dashed, "--" + field.name, *field.metadata.get("aliases", ())])
        _add(parser, list(flags), field, hints[field.name])
    given = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    for field in fields:
        if given[field.name] is not None:
            values[field.name] = given[field.name]
            continue
        for variable in (f"{prefix}_{field.name.upper()}", *field.metadata.get("env", ())):
            try:
                text = from_environment(variable, environ)
                if text:
                    values[field.name] = _convert(text, hints[field.name])
                    break
            except (ValueError, OSError) as error:
                parser.error(f"environment variable {variable}: {error}")
    try:
        return cls(**values)
    except ValueError as error:
        parser.error(str(error))


def fields_of(cls: type) -> "list[dataclasses.Field[Any]]":
    """The settings of a dataclass as people should read them: its own before those that it inherits."""
    return sorted(dataclasses.fields(cls), key=lambda field: field.name not in cls.__annotations__)


def from_environment(variable: str, environ: Mapping[str, str] = os.environ) -> str:
    """The value of a variable, else the text of the file that `<variable>_FILE` names, else nothing.

    Raises OSError for a file that cannot be read.
    """
    if environ.get(variable):
        return environ[variable]
    path = environ.get(f"{variable}_FILE")
    return Path(path).read_text("utf-8").strip() if path else ""


def _add(
    parser: argparse.ArgumentParser, flags: list[str], field: "dataclasses.Field[Any]", hint: Any
) -> None:
    text = field.metadata.get("help", "").replace("%", "%%")
    shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    if shown not in (None, ""):
        text = f"{text} (default: {shown})"
    kind = _kind(hint)
    if kind is bool:
        parser.add_argument(
            *flags,
            dest=field.name,
            default=None,
            nargs="?",
            const=True,
            metavar="BOOL",
            help=text,
            type=lambda value: _convert(value, bool),
        )
    elif kind is tuple:
        parser.add_argument(*flags, dest=field.name, default=None, action=_Extend, metavar="A,B", help=text)
    else:
        parser.add_argument(
            *flags,
            dest=field.name,
            default=None,
            metavar=kind.__name__.upper(),
            help=text,
            type=kind,
        )


class _Extend(argparse.Action):
    """Collects `--flag a,b --flag c` into `(a, b, c)`."""

    def __call__(
        self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None
    ) -> None:
        earlier = getattr(namespace, self.dest) or ()
        setattr(namespace, self.dest, (*earlier, *_convert(values, tuple)))


def _kind(hint: Any) -> type:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    kind: type = typing.get_origin(hint) or hint
    return kind


def _convert(text: str, hint: Any) -> Any:
    kind = _kind(hint)
    if kind is bool:
        lowered = text.strip().lower()
        if lowered in {"1", "t", "true", "yes", "on"}:
            return True
        if lowered in {"0", "f", "false", "no", "off"}:
            return False
        raise ValueError(f"expected true or false, got {text!r}")
    if kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return kind(text)
