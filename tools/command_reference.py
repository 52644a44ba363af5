"""Writes docs/reference/cli.md from the command line itself: what `--help` says, on one page."""

import enum
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from memopod.cli import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# Command line

What `--help` says of each command. This page is written by `make reference` from the commands themselves.

The services ([settings](settings.md)) read flags of their own:
"""


def reference() -> str:
    """The whole page."""
    commands = list(walk(typer.main.get_command(app), "memopod"))
    services = [(path, command) for path, command in commands if not command.add_help_option]
    others = [(path, command) for path, command in commands if command.add_help_option]
    listed = [f"| `{path}` | {first_sentence(command)} |" for path, command in services]
    table = ["| | |", "|---|---|", *listed, ""]
    return "\n".join([HEAD, *table, *(section(path, command) for path, command in others)])


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each command that can be called, with its whole name."""
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    context = command.context_class(command)
    for name in command.list_commands(context):
        yield from walk(command.get_command(context, name), f"{path} {name}")


def section(path: str, command: Any) -> str:
    """One command: what it does, how it is called, its arguments and options."""
    text, examples = split_examples(f"{inspect.cleandoc(command.help or '')}\n\n{command.epilog or ''}")
    rows = [row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    parts = [f"## {path}", "", text, ""]
    if rows:
        parts += ["| | |", "|---|---|", *rows, ""]
    if examples:
        parts += ["```console", *(f"$ {line}" for line in examples), "```", ""]
    return "\n".join(parts)


def first_sentence(command: Any) -> str:
    """What a command does, in a line."""
    return inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ")


def split_examples(text: str) -> tuple[str, list[str]]:
    """A help text without its examples, and those."""
    body, _, after = re.sub(r"\f|\b\\b", "", text).partition("Example")
    return body.strip(), re.findall(r"^\W*(?:s?: *)?(memopod .*)$", after, re.MULTILINE)


def row(parameter: Any) -> str:
    """One argument or option: how it is written, and its meaning with its default."""
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [parameter.metavar or parameter.name.upper()]
    elif not parameter.is_flag:
        names[-1] += f" {value(parameter)}"
    meaning = " ".join((parameter.help or "").split())
    if shown := default(parameter):
        meaning = f"{meaning} Default: `{shown}`."
    return f"| {', '.join(f'`{escape(name)}`' for name in names)} | {escape(meaning)} |"


def value(parameter: Any) -> str:
    """What stands behind an option: its metavar, its choices, or its type."""
    if parameter.metavar:
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    kind = (*typing.get_args(kind), kind)[0]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(choice.value for choice in kind)
    return str({str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "FILE"}[kind])


def default(parameter: Any) -> str:
    """A default that says something; "" for none."""
    given = parameter.default
    if parameter.required or given is None or isinstance(given, bool) or callable(given):
        return ""
    return "" if given in ("", (), []) else str(getattr(given, "value", given))


def escape(text: str) -> str:
    """Text for the cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
