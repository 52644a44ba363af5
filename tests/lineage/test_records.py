import pytest
from google.protobuf import any_pb2
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.lineage import records
from memopod.lineage.model import State


def test_an_execution_of_kubeflows_own_writer_has_no_state_and_no_times():
    message = mlmd.Execution(id=3, type="components.Train model@sha256=abc")
    message.properties["run_id"].string_value = "train-x7k2q"
    message.properties["component_id"].string_value = "Train model"
    message.custom_properties["input:rate"].double_value = 0.5
    message.custom_properties["kfp_pod_name"].string_value = "train-x7k2q-1"
    execution = records.execution(message)
    assert (execution.title, execution.state, execution.seconds) == (
        "train-x7k2q/Train model",
        State.UNKNOWN,
        None,
    )
    assert (execution.inputs, execution.pod) == ({"rate": 0.5}, "train-x7k2q-1")


def test_an_execution_of_kubeflows_v2_driver_keeps_values_in_structs():
    message = mlmd.Execution(id=3, type="system.ContainerExecution", last_known_state=mlmd.Execution.CACHED)
    message.custom_properties["task_name"].string_value = "train"
    message.custom_properties["cached_execution_id"].string_value = "12"
    message.custom_properties["inputs"].struct_value.update({"rate": 0.5, "names": ["a"]})
    message.custom_properties["outputs"].struct_value.update({"loss": 1})
    execution = records.execution(message)
    assert (execution.step, execution.cached_execution_id) == ("train", 12)
    assert (execution.inputs, execution.outputs) == ({"names": ["a"], "rate": 0.5}, {"loss": 1})


@pytest.mark.parametrize("text", ["", "none", "0"])
def test_a_cached_execution_id_that_is_no_id_is_none(text):
    message = mlmd.Execution(id=3)
    message.custom_properties["cached_execution_id"].string_value = text
    assert records.execution(message).cached_execution_id is None


def test_a_packed_message_names_its_type():
    message = mlmd.Execution(id=3)
    packed = any_pb2.Any(type_url="type.googleapis.com/some.Thing", value=b"\xff")
    message.custom_properties["input:thing"].proto_value.CopyFrom(packed)
    assert records.execution(message).inputs["thing"]["type_url"] == "type.googleapis.com/some.Thing"


def test_an_empty_parameter_is_a_parameter():
    message = mlmd.Execution(id=3)
    message.custom_properties["output:text"].string_value = ""
    assert records.execution(message).outputs == {"text": ""}


def test_an_event_is_named_by_its_paths_keys():
    event = mlmd.Event()
    event.path.steps.add(index=0)
    event.path.steps.add(key="model")
    event.path.steps.add(key="base")
    assert records.event_names(event) == ("model", "base")
    assert records.event_name(event) == "model, base"
    assert records.event_name(mlmd.Event()) == ""


def test_artifacts_that_were_not_known_are_named():
    message = mlmd.Execution(id=3)
    message.custom_properties["unresolved_inputs"].string_value = "a,b"
    execution = records.execution(message)
    assert (execution.unresolved_inputs, execution.unresolved_outputs) == (("a", "b"), ())
