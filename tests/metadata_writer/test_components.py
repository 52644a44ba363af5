import hashlib
import json

import pytest

from memopod.steps import names
from metadata_writer.components import read_component, read_pipeline


def annotated(text):
    return {names.KFP_COMPONENT_SPEC: text}


def test_a_plain_template_is_its_own_component():
    component = read_component("train", {})
    assert (component.name, component.type_name) == ("train", "components.train")
    assert component.output_type("model") == "NoType"


def test_a_component_is_versioned_by_the_digest_of_its_specification():
    text = json.dumps({"name": "Train model", "outputs": [{"name": "The Model!", "type": "Model"}]})
    component = read_component("train", annotated(text))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert component.type_name == f"components.Train model@sha256={digest}"
    assert component.name == "Train model"
    assert component.output_type("The-Model") == "Model"


def test_a_type_with_details_is_known_by_its_name():
    text = json.dumps(
        {"outputs": [{"name": "data", "type": {"GCSPath": {"data_type": "CSV"}}}, {"name": "x"}]}
    )
    component = read_component("load", annotated(text))
    assert component.name == "load"
    assert (component.output_type("data"), component.output_type("x")) == ("GCSPath", "NoType")


@pytest.mark.parametrize("text", ["{", '"text"', "[]"])
def test_an_unreadable_specification_is_none(text):
    assert read_component("train", annotated(text)).type_name == "components.train"


def test_types_of_outputs_can_be_given_for_a_plain_template():
    component = read_component("train", {names.OUTPUT_TYPES: '{"model": "system.Model", "odd": 3}'})
    assert (component.output_type("model"), component.output_type("odd")) == ("system.Model", "NoType")


@pytest.mark.parametrize(
    ("metadata", "spec", "name"),
    [
        ({}, {}, None),
        ({"labels": {"workflows.argoproj.io/workflow-template": "t"}}, {}, "t"),
        ({"labels": {"workflows.argoproj.io/cron-workflow": "c"}}, {}, "c"),
        ({}, {"workflowTemplateRef": {"name": "t"}}, "t"),
        ({"annotations": {"pipelines.kubeflow.org/pipeline_spec": '{"name": "p"}'}}, {}, "p"),
        ({"annotations": {"pipelines.kubeflow.org/pipeline_spec": "{"}}, {}, None),
    ],
)
def test_the_pipeline_of_a_workflow_is_named_by_kubeflow_or_by_what_argo_made_it_from(metadata, spec, name):
    assert read_pipeline({"metadata": metadata, "spec": spec}) == name
