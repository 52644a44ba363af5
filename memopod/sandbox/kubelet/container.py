"""Turns a Pod's `main` container into a local program: command, environment, folders.

A container sees its own file system; a local process sees the machine's. The fixed paths that a
step's template declares (all below `/memopod/`) are therefore replaced, where they stand in command,
arguments and environment, by paths in the Pod's folder.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memopod.sandbox.pipelines.placeholders import EXECUTOR_OUTPUT, ROOT

_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_FIELDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "metadata.name": lambda pod: pod["metadata"]["name"],
    "metadata.namespace": lambda pod: pod["metadata"]["namespace"],
    "metadata.uid": lambda pod: pod["metadata"]["uid"],
    "spec.nodeName": lambda _pod: "sandbox",
    "spec.serviceAccountName": lambda pod: pod["spec"].get("serviceAccountName", "default"),
}


class ContainerError(ValueError):
    """The container cannot be run as a local process. The message names no values."""


@dataclass(frozen=True, slots=True)
class Program:
    """What runs on this machine for a container."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    workdir: Path


class Folder:
    """The folder of one Pod: `files` stands for `/memopod/`, `main.log` is the log of `main`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / "files"
        self.home = root / "home"
        self.scratch = root / "tmp"
        self.log = root / "main.log"

    def local(self, path: str) -> Path:
        """Where a declared path of the container is on this machine.

        Raises ContainerError for a path that is not below `/memopod/`.
        """
        inside = os.path.normpath(path)
        if not inside.startswith(ROOT):
            raise ContainerError(f"the path {path!r} is not below {ROOT}, which is all that the sandbox maps")
        return self.files / inside.removeprefix(ROOT)

    def create(self, declared: Iterable[str]) -> None:
        """Make the folders that the program finds when it starts, without what an earlier start left."""
        shutil.rmtree(self.files, ignore_errors=True)
        for folder in (self.files, self.home, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        for path in (*declared, EXECUTOR_OUTPUT):
            self.local(path).parent.mkdir(parents=True, exist_ok=True)


def declared_paths(template: Mapping[str, Any]) -> list[str]:
    """The paths of a template's input artifacts, output parameters and output artifacts."""
    inputs, outputs = template.get("inputs") or {}, template.get("outputs") or {}
    return [
        *(a["path"] for a in inputs.get("artifacts") or () if a.get("path")),
        *(
            p["valueFrom"]["path"]
            for p in outputs.get("parameters") or ()
            if (p.get("valueFrom") or {}).get("path")
        ),
        *(a["path"] for a in outputs.get("artifacts") or () if a.get("path")),
    ]


def mapping(folder: Folder, declared: Iterable[str]) -> Callable[[str], str]:
    """A function that puts local paths in place of the declared ones, in any text.

    A declared path counts where it stands as a whole path (or as a folder above one), not as the end
    of a longer one: other text, a parameter's value say, stays as it is.
    """
    paths = sorted({*declared, EXECUTOR_OUTPUT}, key=len, reverse=True)
    pattern = re.compile(r"(?<![\w.~/-])(?:" + "|".join(map(re.escape, paths)) + r")(?![\w-])")
    return lambda text: pattern.sub(lambda match: str(folder.local(match[0])), text)


def own_command(container: Mapping[str, Any]) -> list[str]:
    """The program and its arguments, without Argo's emissary in front. Raises ContainerError if empty."""
    command = [str(word) for word in container.get("command") or ()]
    if command[1:2] == ["emissary"] and "--" in command:
        command = command[command.index("--") + 1 :]
    words = [*command, *(str(word) for word in container.get("args") or ())]
    if not command:
        raise ContainerError("the container has no command, and the sandbox does not know its image's")
    return words


def environment(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    read: Callable[[str, str, str], str | None],
) -> dict[str, str]:
    """The variables that the Pod sets for the container.

    `read(kind, name, key)` gives the value of a key of a ConfigMap or Secret, None if there is none.
    Raises ContainerError for a reference that cannot be resolved.
    """
    values: dict[str, str] = {}
    for variable in container.get("env") or ():
        name, source = str(variable["name"]), variable.get("valueFrom")
        if source is None:
            values[name] = expand(str(variable.get("value") or ""), values)
            continue
        value = _from_source(pod, name, source, read)
        if value is not None:
            values[name] = value
    return values


def _from_source(
    pod: Mapping[str, Any], name: str, source: Mapping[str, Any], read: Callable[[str, str, str], str | None]
) -> str | None:
    if "fieldRef" in source:
        path = source["fieldRef"]["fieldPath"]
        if path not in _FIELDS:
            raise ContainerError(f"environment variable {name}: the sandbox does not know the field {path}")
        return _FIELDS[path](pod)
    for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if field in source:
            reference = source[field]
            value = read(kind, str(reference["name"]), str(reference["key"]))
            if value is None and not reference.get("optional"):
                missing = f"there is no key {reference['key']!r} in {kind} {reference['name']!r}"
                raise ContainerError(f"environment variable {name}: {missing}")
            return value
    raise ContainerError(f"environment variable {name}: the sandbox does not know its source")


def references(container: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The ConfigMaps and Secrets that a container's environment needs, as (kind, name)."""
    found = set()
    for variable in container.get("env") or ():
        source = variable.get("valueFrom") or {}
        for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            if field in source:
                found.add((kind, str(source[field]["name"])))
    return found


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)` as Kubernetes does; unknown names stay, `$$` is one `$`."""

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return values.get(match[1], match[0])

    return _VARIABLE.sub(replace, text)


def program(
    container: Mapping[str, Any], variables: Mapping[str, str], folder: Folder, declared: Sequence[str]
) -> Program:
    """The local program of a container. Raises ContainerError if it cannot be one.

    The program does not inherit the kubelet's environment, but for PATH: the folder of this Python
    interpreter comes first in it, so that `python3` is found on every machine.
    """
    to_local = mapping(folder, declared)
    words = [to_local(expand(word, variables)) for word in own_command(container)]
    path = os.environ.get("PATH", os.defpath)
    env = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}",
        "HOME": str(folder.home),
        "TMPDIR": str(folder.scratch),
        "LANG": "C.UTF-8",
        **{name: to_local(value) for name, value in variables.items()},
    }
    workdir = folder.home
    if container.get("workingDir"):
        workdir = Path(to_local(str(container["workingDir"])))
        if not workdir.is_dir():
            raise ContainerError(
                f"the working directory {container['workingDir']!r} does not exist on this machine"
            )
    return Program(tuple(words), env, workdir)
