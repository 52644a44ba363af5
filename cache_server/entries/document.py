"""Entries and statistics as JSON, for people and scripts: what `--json` writes and the API answers."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cache_server.entries.catalog import Stats
from cache_server.entries.entry import Entry
from memopod.steps.outputs import Outputs


def entry_document(entry: Entry) -> dict[str, Any]:
    """An entry as JSON; times are RFC 3339 in UTC, durations seconds."""
    return {
        "id": entry.id,
        "namespace": entry.namespace,
        "key": entry.key,
        "key_version": entry.key_version,
        "components": dict(entry.components),
        "template": entry.template_name,
        "workflow": entry.workflow,
        "workflow_uid": entry.workflow_uid,
        "node_id": entry.node_id,
        "pod": entry.pod_name,
        "pod_uid": entry.pod_uid,
        "image_id": entry.image_id,
        "outputs": _outputs(entry),
        "execution_id": entry.execution_id,
        "started_at": _rfc3339(entry.started_at),
        "finished_at": _rfc3339(entry.finished_at),
        "recorded_at": _rfc3339(entry.recorded_at),
        "last_used_at": None if entry.last_used_at is None else _rfc3339(entry.last_used_at),
        "uses": entry.uses,
        "seconds_saved": entry.saved.total_seconds(),
        "max_staleness_seconds": entry.max_staleness_seconds,
        "pinned": entry.pinned,
    }


def read_entry(document: Mapping[str, Any]) -> Entry:
    """The inverse of `entry_document`. Raises KeyError, TypeError or ValueError for anything else."""
    plain = (
        *("id", "namespace", "key", "key_version", "components", "workflow", "workflow_uid", "node_id"),
        *("pod_uid", "image_id", "execution_id", "uses", "max_staleness_seconds", "pinned"),
    )
    times = ("started_at", "finished_at", "recorded_at")
    values: dict[str, Any] = {name: document[name] for name in plain}
    values |= {name: datetime.fromisoformat(document[name]) for name in times}
    used = document["last_used_at"]
    return Entry(
        **values,
        template_name=document["template"],
        pod_name=document["pod"],
        last_used_at=None if used is None else datetime.fromisoformat(used),
        outputs=Outputs.from_json(document["outputs"]),
    )


def stats_document(stats: Stats) -> dict[str, Any]:
    """Statistics of one template as JSON."""
    return {
        "namespace": stats.namespace,
        "template": stats.template,
        "entries": stats.entries,
        "hits": stats.hits,
        "misses": stats.misses,
        "missed": dict(stats.missed),
        "seconds_saved": stats.seconds_saved,
    }


def _outputs(entry: Entry) -> Mapping[str, Any]:
    """As stored, and with each artifact's URI."""
    stored = entry.outputs.to_json()
    located = zip(stored["artifacts"], entry.outputs.artifacts, strict=True)
    return {**stored, "artifacts": [{**each, "uri": own.location.uri} for each, own in located]}


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
