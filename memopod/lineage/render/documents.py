"""Answers as dicts that `json.dumps` takes: values whole, times in RFC 3339 (UTC), sizes in bytes."""

import dataclasses
import math
from datetime import UTC, datetime
from typing import Any

from memopod.lineage.model import (
    Artifact,
    Execution,
    Graph,
    Node,
    Parameter,
    Port,
    RunList,
    RunReport,
    RunSummary,
    StepReport,
    Value,
)

Document = dict[str, Any]


def as_document(answer: Graph | RunReport | RunList) -> Document:
    """Any answer as a JSON object."""
    if isinstance(answer, Graph):
        return _graph(answer)
    if isinstance(answer, RunReport):
        return {
            "run": answer.run,
            "namespace": answer.namespace,
            "steps": [_step(step) for step in answer.steps],
        }
    return {"runs": [_summary(run) for run in answer.runs], "more": answer.more}


def _graph(graph: Graph) -> Document:
    return {
        "direction": graph.direction.value,
        "roots": list(graph.roots),
        "nodes": [_node(node) for node in graph.nodes.values()],
        "edges": [{**dataclasses.asdict(edge), "relation": edge.relation.value} for edge in graph.edges],
        "unfollowed": [key for key in graph.nodes if key in graph.unfollowed],
        "notes": list(graph.notes),
    }


def _node(node: Node) -> Document:
    if isinstance(node, Execution):
        return _execution(node)
    if isinstance(node, Parameter):
        return {
            "node": node.key,
            "kind": "parameter",
            "execution_id": node.execution_id,
            "name": node.name,
            "value": _plain(node.value),
        }
    return _artifact(node)


def _execution(execution: Execution) -> Document:
    document = dataclasses.asdict(execution)
    document.update(
        node=execution.key,
        kind="execution",
        state=execution.state.value,
        inputs=_plain(execution.inputs),
        outputs=_plain(execution.outputs),
        started_at=_time(execution.started_at),
        finished_at=_time(execution.finished_at),
        seconds=execution.seconds,
        unresolved_inputs=list(execution.unresolved_inputs),
        unresolved_outputs=list(execution.unresolved_outputs),
    )
    return document


def _artifact(artifact: Artifact) -> Document:
    return {"node": artifact.key, "kind": "artifact", **dataclasses.asdict(artifact)}


def _step(step: StepReport) -> Document:
    return {
        **_execution(step.execution),
        "input_artifacts": [_port(port) for port in step.inputs],
        "output_artifacts": [_port(port) for port in step.outputs],
        "reused_from": _execution(step.reused_from) if step.reused_from else None,
    }


def _port(port: Port) -> Document:
    return {"as": port.name, **_artifact(port.artifact)}


def _summary(run: RunSummary) -> Document:
    return {
        "run": run.run,
        "namespace": run.namespace,
        "created_at": _time(run.created_at),
        "started_at": _time(run.started_at),
        "finished_at": _time(run.finished_at),
        "seconds": run.seconds,
        "steps": run.steps,
        "states": {state.value: count for state, count in run.states.items()},
    }


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    moment = datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Value) -> Value:
    """JSON has no NaN and no infinity: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
