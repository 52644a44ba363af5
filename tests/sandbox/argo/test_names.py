import pytest

from memopod.sandbox.argo import node_id, pod_name
from memopod.sandbox.argo.names import label_name


def test_names_are_those_of_the_recordings():
    assert node_id("arts-4ddfz", "arts-4ddfz.make") == "arts-4ddfz-2913590014"
    assert pod_name("params-vpvbd", "params-vpvbd.use", "use") == "params-vpvbd-use-2891326813"


def test_the_root_node_is_named_like_its_workflow():
    assert node_id("wf", "wf") == "wf"
    assert pod_name("wf", "wf", "main") == "wf"


def test_a_pods_name_is_never_too_long():
    name = pod_name("w" * 200, "w.t", "t" * 200)
    assert len(name) <= 253
    assert name.rsplit("-", 1)[1].isdigit()


@pytest.mark.parametrize(
    ("text", "name"),
    [("My Pipeline", "my-pipeline"), ("a_b.c", "a-b-c"), ("___", "pipeline"), ("x" * 60, "x" * 40)],
)
def test_a_pipelines_name_becomes_part_of_an_objects_name(text, name):
    assert label_name(text) == name
