"""Writes docs/reference/settings.md from the settings' dataclasses, which are their only source."""

import dataclasses
from pathlib import Path

import cache_server.settings
import memopod.proxy
import metadata_guard.settings
import metadata_store.settings
import metadata_writer.settings
from memopod.service.settings import fields_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "settings.md"
SERVICES = (
    ("memopod cache-server", "MEMOPOD_CACHE", cache_server.settings.Settings),
    ("memopod cache-janitor", "MEMOPOD_JANITOR", cache_server.settings.JanitorSettings),
    ("memopod metadata-writer", "MEMOPOD_WRITER", metadata_writer.settings.Settings),
    ("memopod envoy", "MEMOPOD_ENVOY", memopod.proxy.Settings),
    ("memopod metadata-guard", "MEMOPOD_METADATA_GUARD", metadata_guard.settings.Settings),
    ("memopod metadata-store", "MEMOPOD_METADATA_STORE", metadata_store.settings.Settings),
)
HEAD = """# Settings

Each setting is a flag (`--listen-port 8443`, with dashes or underscores) and an environment variable
(`MEMOPOD_CACHE_LISTEN_PORT`); a flag wins. A variable that ends in `_FILE` names a file with the value,
for secrets (`MEMOPOD_CACHE_DATABASE_FILE`). Names of the services that memopod replaces are accepted too.
This page is written by `make reference` from the dataclasses that hold the settings.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(*service) for service in SERVICES)])


def section(command: str, prefix: str, settings: type) -> str:
    """One service's table."""
    rows = [row(prefix, field) for field in sorted(fields_of(settings), key=is_inherited)]
    return "\n".join(
        [f"## {command}", "", "| flag | environment | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def is_inherited(field: "dataclasses.Field[object]") -> bool:
    """Whether the setting is there for the command lines of the services that memopod replaces."""
    return "'s flag: " in field.metadata.get("help", "")


def row(prefix: str, field: "dataclasses.Field[object]") -> str:
    """One setting: its names, its default and its meaning."""
    flags = [f"--{field.name.replace('_', '-')}", *field.metadata.get("aliases", ())]
    variables = [f"{prefix}_{field.name.upper()}", *field.metadata.get("env", ())]
    cells = (
        ", ".join(f"`{flag}`" for flag in dict.fromkeys(flags)),
        ", ".join(f"`{variable}`" for variable in dict.fromkeys(variables)),
        default(field.default),
        field.metadata.get("help", "").replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |"


def default(value: object) -> str:
    """A default as one types it."""
    if value is None or value == "" or value == ():
        return "-"
    return f"`{','.join(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
