"""What a Workflow says of the templates of its nodes."""

from collections.abc import Iterator, Mapping
from typing import Any

Template = Mapping[str, Any]


def template_name(node: Mapping[str, Any]) -> str:
    """The name of a node's template, wherever it is; empty for one that is written in its place."""
    return str(node.get("templateName") or (node.get("templateRef") or {}).get("template") or "")


def find_template(workflow: Mapping[str, Any], node: Mapping[str, Any]) -> Template | None:
    """The template of a node as the Workflow holds it, its own or one that it stored; None if neither."""
    status = workflow.get("status") or {}
    stored: Mapping[str, Template] = status.get("storedTemplates") or {}
    for place in _stored_at(node):
        if place in stored:
            return stored[place]
    if node.get("templateRef"):
        return None  # one of its own may have that name too
    specs = (workflow.get("spec") or {}, status.get("storedWorkflowTemplateSpec") or {})
    for spec in specs:
        for template in spec.get("templates") or ():
            if template.get("name") == node.get("templateName"):
                found: Template = template
                return found
    return None


def repository(workflow: Mapping[str, Any]) -> Mapping[str, Any]:
    """The artifact repository of a Workflow, in the shape of a template's `archiveLocation`."""
    reference = (workflow.get("status") or {}).get("artifactRepositoryRef") or {}
    found: Mapping[str, Any] = reference.get("artifactRepository") or {}
    return found


def _stored_at(node: Mapping[str, Any]) -> Iterator[str]:
    """Argo stores those of WorkflowTemplates by scope (`namespaced`, `cluster`), its name and their own."""
    reference = node.get("templateRef")
    if reference:
        scope = "cluster" if reference.get("clusterScope") else "namespaced"
        yield f"{scope}/{reference.get('name')}/{reference.get('template')}"
    elif node.get("templateScope"):
        yield f"{node['templateScope']}/{node.get('templateName')}"
