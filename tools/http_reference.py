"""Writes docs/reference/http-api.md from cache_server/api/openapi.json, which the server itself serves."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "cache_server" / "api" / "openapi.json"
PAGE = ROOT / "docs" / "reference" / "http-api.md"
HEAD = """# HTTP API

The cache server's API of entries (`--api-port`, HTTPS). This page is written by `make reference` from
[openapi.json](../../cache_server/api/openapi.json), which the server serves at `/openapi.json`;
[databases](../databases.md#asking-and-changing-entries) tells who may use it.
"""


def reference() -> str:
    """The whole page."""
    document = json.loads(SOURCE.read_text(encoding="utf-8"))
    parts = [HEAD, document["info"]["description"], ""]
    for path, operations in document["paths"].items():
        parts += [operation(method, path, described, document) for method, described in operations.items()]
    parts += ["## Schemas", ""]
    parts += [schema(name, shape) for name, shape in document["components"]["schemas"].items()]
    return "\n".join(parts)


def operation(method: str, path: str, described: dict[str, Any], document: dict[str, Any]) -> str:
    """One call: what it takes, what it answers."""
    rows = [parameter(resolve(each, document)) for each in described.get("parameters", ())]
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        shape = resolve(body, document)
        rows += [field(name, each, shape, "body") for name, each in shape.get("properties", {}).items()]
    answers = [
        f"| {status} | {resolve(answer, document)['description']} |"
        for status, answer in described["responses"].items()
    ]
    parts = [f"## {method.upper()} {path}", "", described["summary"], ""]
    if described.get("description"):
        parts += [described["description"], ""]
    if rows:
        parts += ["| parameter | in | type | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join([*parts, "| status | |", "|---|---|", *answers, ""])


def schema(name: str, shape: dict[str, Any]) -> str:
    """One shape by its fields."""
    rows = [field(key, each, shape) for key, each in shape.get("properties", {}).items()]
    intro = [shape["description"], ""] if "description" in shape else []
    return "\n".join([f"### {name}", "", *intro, "| field | type | meaning |", "|---|---|---|", *rows, ""])


def parameter(described: dict[str, Any]) -> str:
    """A row of a call's table."""
    shape = described["schema"]
    meaning = described.get("description") or shape.get("description", "")
    name = f"`{described['name']}`{' (required)' if described.get('required') else ''}"
    return f"| {name} | {described['in']} | {kind(shape)} | {escape(meaning)} |"


def field(name: str, shape: dict[str, Any], owner: dict[str, Any], place: str = "") -> str:
    """A row of a shape's table, or of a call's where it has a body."""
    shown = f"`{name}`{' (required)' if place and name in owner.get('required', ()) else ''}"
    cells = [shown, *([place] if place else []), kind(shape), escape(shape.get("description", ""))]
    return f"| {' | '.join(cells)} |"


def kind(shape: dict[str, Any]) -> str:
    """A type, its bounds and default."""
    if "$ref" in shape:
        name = shape["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in shape:
        return " or ".join(f"`{each}`" for each in shape["enum"])
    if "oneOf" in shape or "anyOf" in shape:
        return " or ".join(kind(each) for each in shape.get("oneOf") or shape["anyOf"])
    given = shape.get("type", "any")
    text = " or ".join(given) if isinstance(given, list) else str(given)
    if text == "array":
        text = f"array of {kind(shape.get('items', {}))}"
    if "minimum" in shape and "maximum" in shape:
        text += f", {shape['minimum']} to {shape['maximum']}"
    return text + (f", `{json.dumps(shape['default'])}` by default" if "default" in shape else "")


def resolve(described: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    while "$ref" in described:
        target: Any = document
        for part in described["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        described = target
    return described


def escape(text: str) -> str:
    """Text for the cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
