"""What is left alone, as Kubeflow's writer leaves it: those that record for themselves."""

from collections.abc import Mapping
from typing import Any, Final

from memopod.steps import names
from metadata_writer.templates import find_template

_TFX_ENTRYPOINT: Final = "tfx/orchestration/kubeflow/container_entrypoint.py"


def skip_reason(pod: Mapping[str, Any]) -> str | None:
    """Why a Pod is left alone, as Kubeflow's writer leaves it; None for one that is recorded."""
    if names.ARGO_WORKFLOW not in (pod["metadata"].get("labels") or {}):
        return "no-workflow"
    mains = [c for c in pod["spec"].get("containers") or () if c.get("name") == "main"]
    return _skip_reason(pod["metadata"], mains[0] if len(mains) == 1 else {})


def node_skip_reason(workflow: Mapping[str, Any], node: Mapping[str, Any]) -> str | None:
    """The same of a node: what its Pod would say is in the template and the Workflow."""
    template = find_template(workflow, node) or {}
    for_all = (workflow.get("spec") or {}).get("podMetadata") or {}
    return _skip_reason(for_all, {}) or _skip_reason(
        template.get("metadata") or {}, template.get("container") or {}
    )


def _skip_reason(metadata: Mapping[str, Any], container: Mapping[str, Any]) -> str | None:
    # Kubeflow Pipelines v2 and TFX record for themselves.
    if (metadata.get("annotations") or {}).get(names.KFP_V2_COMPONENT) == "true":
        return "kfp-v2"
    command = container.get("command") or [""]
    by_label = "tfx" in (metadata.get("labels") or {}).get(names.KFP_SDK_TYPE, "")
    return "tfx" if by_label or str(command[-1]).endswith(_TFX_ENTRYPOINT) else None
