"""The services as sub-commands: each reads its own flags (`memopod cache-server --help`)."""

import importlib

import typer


def cache_server(context: typer.Context) -> None:
    """Serve the admission webhook, and decide for the Pods that it holds."""
    _run("cache_server.app", context)


def cache_janitor(context: typer.Context) -> None:
    """Let go of Pods that no cache server is left to look after."""
    _run("cache_server.janitor", context)


def metadata_writer(context: typer.Context) -> None:
    """Record what every step did into the metadata store."""
    _run("metadata_writer.app", context)


def metadata_store(context: typer.Context) -> None:
    """Serve the metadata store (ML Metadata's gRPC service)."""
    _run("metadata_store.app", context)


def metadata_guard(context: typer.Context) -> None:
    """Answer reads of the metadata store within the namespaces of their callers."""
    _run("metadata_guard.app", context)


def _run(module: str, context: typer.Context) -> None:
    raise typer.Exit(importlib.import_module(module).main(context.args))
