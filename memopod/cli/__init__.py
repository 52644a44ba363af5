"""The command line: one thin module per sub-command, each imported only when it is called.

`main` is the console script. What a command does lives in the other rooms; here are options, tables,
and the sentences that tell what to do next.
"""

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from memopod import __version__

_COMMANDS = {
    # name: (module, attribute: a typer.Typer with sub-commands, or a function)
    "demo": ("memopod.cli.demo", "demo"),
    "sandbox": ("memopod.cli.sandbox", "app"),
    "run": ("memopod.cli.run", "run"),
    "lineage": ("memopod.cli.lineage", "app"),
    "cache": ("memopod.cli.cache", "app"),
    "why": ("memopod.cli.why", "why"),
    "preview": ("memopod.cli.preview", "preview"),
    "cache-server": ("memopod.cli.services", "cache_server"),
    "cache-janitor": ("memopod.cli.services", "cache_janitor"),
    "metadata-writer": ("memopod.cli.services", "metadata_writer"),
    "writer": ("memopod.cli.writer", "app"),
    "metadata-store": ("memopod.cli.services", "metadata_store"),
    "metadata-guard": ("memopod.cli.services", "metadata_guard"),
    "store": ("memopod.cli.store", "app"),
    "envoy": ("memopod.cli.envoy", "app"),
    "install": ("memopod.cli.install", "app"),
    "uninstall": ("memopod.cli.uninstall", "uninstall"),
}
_SERVICES = ("cache-server", "cache-janitor", "metadata-writer", "metadata-store", "metadata-guard")


class _LazyGroup(TyperGroup):
    """Imports a command's module when the command is called: `memopod --version` stays quick."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 (click's signature)
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        target = getattr(import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            target = _single(target, service=cmd_name in _SERVICES)
        command = typer.main.get_command(target)
        command.name = cmd_name
        return command


def _single(function: Any, *, service: bool) -> typer.Typer:
    """A Typer of one command. A service reads its own flags, `--help` included."""
    single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    single.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True} if service else None,
        add_help_option=not service,
    )(function)
    return single


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"memopod {__version__}")
        raise typer.Exit


_EPILOG = """Examples:

  memopod demo

  memopod sandbox up

  memopod run pipeline.yaml -p message=hello

  memopod lineage runs
"""

app = typer.Typer(
    cls=_LazyGroup, no_args_is_help=True, rich_markup_mode="rich", epilog=_EPILOG,
    pretty_exceptions_show_locals=False,
)  # fmt: skip


@app.callback()
def _root(
    _version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_show_version, is_eager=True
    ),
) -> None:
    """A memory for Kubernetes pipelines: steps that already ran are reused, and all are recorded."""
    import structlog  # here, so that `memopod --version` stays quick

    # Logs go to standard error: what a command answers stands alone. A service sets up its own.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def main() -> None:
    """The console script `memopod`."""
    app(command_line(sys.argv[1:]))


def command_line(arguments: list[str]) -> list[str]:
    """The arguments, beginning with a command.

    Kubeflow's manifest names none: the flags of its cache server go to the entry point of the image.
    """
    are_kubeflows = any(argument.lstrip("-").startswith("db_") for argument in arguments)
    if are_kubeflows and arguments[0].startswith("-"):
        return ["cache-server", *arguments]
    return arguments
