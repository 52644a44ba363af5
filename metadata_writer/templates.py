"""What a Workflow says of the templates of its nodes."""

from collections.abc import Mapping
from typing import Any


def find_template(workflow: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The template of a node as the Workflow holds it, its own or one that it stored; None if neither."""
    status = workflow.get("status") or {}
    specs = (workflow.get("spec") or {}, status.get("storedWorkflowTemplateSpec") or {})
    for spec in specs:
        for template in spec.get("templates") or ():
            if template.get("name") == node.get("templateName"):
                found: Mapping[str, Any] = template
                return found
    return None


def repository(workflow: Mapping[str, Any]) -> Mapping[str, Any]:
    """The artifact repository of a Workflow, in the shape of a template's `archiveLocation`."""
    reference = (workflow.get("status") or {}).get("artifactRepositoryRef") or {}
    found: Mapping[str, Any] = reference.get("artifactRepository") or {}
    return found
