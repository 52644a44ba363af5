"""Loads a pipeline file and walks its IR, so that every error names its place in the file.

The IR is `ml_pipelines.PipelineSpec` of Kubeflow Pipelines
(api/v2alpha1/pipeline_spec.proto), as the SDK's compiler writes it in YAML.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from memopod.sandbox.pipelines.errors import PipelineError

SCHEMA_VERSION = "2.1.0"
_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """A value of the file and the path that leads to it, such as `root.dag.tasks.train`."""

    path: str
    value: Any

    def _below(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def __contains__(self, name: str) -> bool:
        return isinstance(self.value, dict) and self.value.get(name) is not None

    def error(self, problem: str) -> PipelineError:
        """An error at this place."""
        return PipelineError(self.path, problem)

    def get(self, name: str) -> "Place":
        """The value below `name`, None where absent. Raises PipelineError unless this is a mapping."""
        return Place(self._below(name), self.mapping().get(name))

    def need(self, name: str) -> "Place":
        """The value below `name`. Raises PipelineError if there is none."""
        found = self.get(name)
        if found.value is None:
            raise self.error(f"{name!r} is missing")
        return found

    def mapping(self) -> dict[str, Any]:
        """This value as a mapping, an empty one where absent. Raises PipelineError for anything else."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"expected a mapping, got {kind(self.value)}")
        return self.value

    def entries(self) -> Iterator[tuple[str, "Place"]]:
        """The values of a mapping with their names."""
        for name in self.mapping():
            yield str(name), Place(self._below(str(name)), self.mapping()[name])

    def text(self) -> str:
        """This value as text. Raises PipelineError for anything else."""
        if not isinstance(self.value, str):
            raise self.error(f"expected text, got {kind(self.value)}")
        return self.value

    def elements(self) -> Iterator["Place"]:
        """The values of a list, nothing where absent. Raises PipelineError for anything else."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self.error(f"expected a list, got {kind(self.value)}")
        for index, value in enumerate(self.value):
            yield Place(f"{self.path}[{index}]", value)


def kind(value: Any) -> str:
    """What a YAML value is, in YAML's words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a boolean", int: "an integer"}
    return names.get(type(value), "nothing" if value is None else "a number")


def load(path: Path) -> tuple[Place, tuple[str, ...]]:
    """Read the file and return the pipeline spec with notices about what is ignored.

    Raises PipelineError for a file that cannot be read, is not YAML, is not IR or is of another
    schema version.
    """
    documents = _documents(path)
    spec = next((d for d in documents if isinstance(d, dict) and "pipelineInfo" in d), None)
    if spec is None or not {"root", "deploymentSpec"} <= spec.keys():
        raise PipelineError(
            str(path),
            "this is not Kubeflow Pipelines IR: expected the keys pipelineInfo, root and deploymentSpec; "
            "compile the pipeline with the kfp SDK first",
        )
    version = spec.get("schemaVersion")
    if version != SCHEMA_VERSION:
        found = "none" if version is None else repr(version)
        raise PipelineError("schemaVersion", f"expected {SCHEMA_VERSION!r}, got {found}")
    notices = []
    for document in documents:
        if document is spec or document is None:
            continue
        if not isinstance(document, dict) or "platforms" not in document:
            raise PipelineError(
                str(path), "a second YAML document that is no platform spec: one file, one pipeline"
            )
        notices.append(
            "the platform spec (second YAML document) is ignored: the sandbox has no such platform"
        )
    return Place("", spec), tuple(notices)


def _documents(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise PipelineError(str(path), f"cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise PipelineError(str(path), f"is larger than {_MAX_BYTES} bytes")
    try:
        return list(yaml.safe_load_all(content.decode()))
    except UnicodeDecodeError as error:
        raise PipelineError(str(path), "is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise PipelineError(place, f"is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise PipelineError(str(path), "is not YAML") from error
