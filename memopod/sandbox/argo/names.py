"""Names of nodes and Pods, as Argo makes them (workflow/util/pod_name.go, format v2)."""

import re

_MAX_POD_NAME = 253
_HASH_LENGTH = 10


def fnv32a(text: str) -> int:
    """The 32-bit FNV-1a hash of a text."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def node_id(workflow: str, node_name: str) -> str:
    """Id of a node; the root node's is the Workflow's name."""
    return workflow if node_name == workflow else f"{workflow}-{fnv32a(node_name)}"


def pod_name(workflow: str, node_name: str, template: str) -> str:
    """Name of a node's Pod: `<workflow>-<template>-<hash of the node's name>`."""
    if node_name == workflow:
        return workflow
    prefix = f"{workflow}-{template}"[: _MAX_POD_NAME - _HASH_LENGTH - 1]
    return f"{prefix}-{fnv32a(node_name)}"


def label_name(text: str, *, longest: int = 40) -> str:
    """Text as part of an object's name: lower case letters, digits and dashes."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return cleaned[:longest].strip("-") or "pipeline"
