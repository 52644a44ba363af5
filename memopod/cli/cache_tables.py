"""Entries and statistics as tables, from their documents."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

Document = Mapping[str, Any]
SHORT_ID = 8
_PIPED_WIDTH = 4096
"""Columns where nobody watches: a row stays on a line, for `grep` and `less -S`."""
_REASONS_SHOWN = 4


def entries_table(entries: Sequence[Document]) -> Table:
    """A row for each entry."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ID", "NAMESPACE", "TEMPLATE", "WORKFLOW", "POD", "FINISHED"):
        table.add_column(column, no_wrap=column in {"ID", "FINISHED"})
    table.add_column("USES", justify="right")
    table.add_column("TIME SAVED", justify="right")
    table.add_column("MAX STALENESS", justify="right")
    for entry in entries:
        names = (entry["namespace"], entry["template"], entry["workflow"], entry["pod"])
        table.add_row(
            Text(entry["id"][:SHORT_ID], style="yellow" if entry["pinned"] else ""),
            *(Text(name) for name in names),
            moment(entry["finished_at"]),
            Text(str(entry["uses"]), style="green" if entry["uses"] else "dim"),
            duration(entry["seconds_saved"]),
            staleness(entry),
        )
    return table


def stats_table(stats: Sequence[Document]) -> Table:
    """A row for each namespace and template, and one for all."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAMESPACE", "TEMPLATE"):
        table.add_column(column)
    for column in ("ENTRIES", "HITS", "MISSES", "HIT RATE", "TIME SAVED"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("MISSES BY REASON", overflow="fold")
    for each in stats:
        table.add_row(Text(each["namespace"]), Text(each["template"]), *_figures(each))
    if len(stats) > 1:
        table.add_section()
        table.add_row(Text("all", style="bold"), "", *_figures(_total(stats)))
    return table


def _figures(stats: Document) -> Iterator[Text]:
    decided = stats["hits"] + stats["misses"]
    yield Text(str(stats["entries"]))
    yield Text(str(stats["hits"]), style="green" if stats["hits"] else "dim")
    yield Text(str(stats["misses"]))
    yield Text(f"{stats['hits'] / decided:.0%}" if decided else "-")
    yield Text(duration(stats["seconds_saved"]))
    most = sorted(stats["missed"].items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{reason} {count}" for reason, count in most[:_REASONS_SHOWN]]
    yield Text(", ".join([*shown, *(["..."] if len(most) > _REASONS_SHOWN else [])]))


def _total(stats: Sequence[Document]) -> Document:
    missed: dict[str, int] = {}
    for each in stats:
        for reason, count in each["missed"].items():
            missed[reason] = missed.get(reason, 0) + count
    summed = {
        name: sum(each[name] for each in stats) for name in ("entries", "hits", "misses", "seconds_saved")
    }
    return {**summed, "missed": missed}


def details(entry: Document) -> Table:
    """All that is known of one entry."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(entry):
        table.add_row(name, Text(value))
    return table


def _lines(entry: Document) -> Iterator[tuple[str, str]]:
    yield "id", entry["id"] + (" (pinned)" if entry["pinned"] else "")
    yield "namespace", entry["namespace"]
    yield "template", entry["template"]
    if entry["workflow"]:
        yield "workflow", f"{entry['workflow']} ({entry['workflow_uid']})"
        yield "node", entry["node_id"]
        yield "pod", f"{entry['pod']} ({entry['pod_uid']})"
        yield "image", entry["image_id"]
    else:
        yield "workflow", "not known: imported from Kubeflow"
    yield "execution", "not known" if entry["execution_id"] is None else str(entry["execution_id"])
    yield "ran", f"{moment(entry['started_at'])}, until {moment(entry['finished_at'])}"
    yield "recorded", moment(entry["recorded_at"])
    last = "" if entry["last_used_at"] is None else f", last {moment(entry['last_used_at'])}"
    yield "uses", f"{entry['uses']}{last}, saved {duration(entry['seconds_saved'])}"
    yield "max staleness", staleness(entry)
    yield "key", f"{entry['key']} (version {entry['key_version']})"
    for component, digest in sorted(entry["components"].items()):
        yield f"  {component}", digest
    outputs = entry["outputs"]
    some = outputs["parameters"] or outputs["artifacts"] or outputs["result"] is not None
    yield "outputs", "" if some else "none"
    for parameter, value in sorted(outputs["parameters"].items()):
        yield f"  {parameter}", value
    if outputs["result"] is not None:
        yield "  result", outputs["result"]
    for artifact in outputs["artifacts"]:
        told = [
            *([] if artifact["size"] is None else [f"{artifact['size']} bytes"]),
            *([] if artifact["digest"] is None else [artifact["digest"]]),
        ]
        yield f"  {artifact['name']}", artifact["uri"] + (f" ({', '.join(told)})" if told else "")


def moment(text: str) -> str:
    """An RFC 3339 time, to the second."""
    return f"{text[:19].replace('T', ' ')}Z"


def staleness(entry: Document) -> str:
    """How old an entry may be for a reuse, by its own step."""
    seconds = entry["max_staleness_seconds"]
    return "-" if seconds is None else duration(seconds)


def duration(seconds: float) -> str:
    """`0 s`, `1.5 s`, `2 m 5 s`, `3 h 20 m`, `4 d 1 h`: two units at most."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    parts: list[str] = []
    rest = int(timedelta(seconds=seconds).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def print_table(answer: RenderableType) -> None:
    """Write it, as wide as the terminal, or as it needs where there is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    console.print(answer)


def print_json(answer: Any) -> None:
    """Write a document."""
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
