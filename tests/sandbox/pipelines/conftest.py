import copy

import pytest
import yaml

from memopod.sandbox.pipelines import read_pipeline

CONTAINER = {"image": "python:3.9", "command": ["true"]}


@pytest.fixture
def write(tmp_path):
    """Writes a document (or text) as a pipeline file, and returns its path."""

    def write_file(document):
        path = tmp_path / "pipeline.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return path

    return write_file


@pytest.fixture
def plan_of(write):
    """Reads a document as a pipeline."""
    return lambda document: read_pipeline(write(document))


@pytest.fixture
def pipeline():
    """A pipeline of one task `work` with an input `n` of the given type and an output `out`."""

    def build(kind="STRING", **component):
        return copy.deepcopy(
            {
                "pipelineInfo": {"name": "example"},
                "schemaVersion": "2.1.0",
                "components": {
                    "comp-work": {
                        "executorLabel": "exec-work",
                        "inputDefinitions": {"parameters": {"n": {"parameterType": kind}}},
                        "outputDefinitions": {"parameters": {"out": {"parameterType": "STRING"}}},
                        **component,
                    }
                },
                "deploymentSpec": {"executors": {"exec-work": {"container": CONTAINER}}},
                "root": {
                    "inputDefinitions": {"parameters": {"n": {"parameterType": kind}}},
                    "dag": {
                        "tasks": {
                            "work": {
                                "componentRef": {"name": "comp-work"},
                                "cachingOptions": {"enableCache": True},
                                "inputs": {"parameters": {"n": {"componentInputParameter": "n"}}},
                            }
                        }
                    },
                },
            }
        )

    return build
