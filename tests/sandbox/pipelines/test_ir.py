import pytest

from memopod.sandbox.pipelines import PipelineError, load


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"missing\.yaml: cannot be read: No such file"):
        load(tmp_path / "missing.yaml")


def test_text_that_is_not_yaml_is_refused_with_line_and_column(write):
    with pytest.raises(PipelineError, match=r"pipeline\.yaml:3:2: is not YAML"):
        load(write("a: 1\nb: [1, 2\nc: }"))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PipelineError, match="is not UTF-8 text"):
        load(path)


@pytest.mark.parametrize(
    "text", ["just text", "- 1\n- 2", "apiVersion: argoproj.io/v1alpha1\nkind: Workflow", ""]
)
def test_yaml_that_is_not_ir_is_refused(write, text):
    with pytest.raises(PipelineError, match="this is not Kubeflow Pipelines IR"):
        load(write(text))


@pytest.mark.parametrize(("version", "told"), [("2.0.0", "'2.0.0'"), (None, "none"), (2.1, "2.1")])
def test_another_schema_version_is_refused(write, pipeline, version, told):
    document = pipeline()
    document["schemaVersion"] = version
    with pytest.raises(PipelineError, match=rf"schemaVersion: expected '2.1.0', got {told}"):
        load(write(document))


def test_a_platform_spec_is_ignored_with_a_word(write, pipeline):
    path = write(pipeline())
    path.write_text(path.read_text() + "---\nplatforms:\n  kubernetes: {}\n")
    _, notices = load(path)
    assert "platform spec" in notices[0]


def test_any_other_second_document_is_refused(write, pipeline):
    path = write(pipeline())
    path.write_text(path.read_text() + "---\nsomething: else\n")
    with pytest.raises(PipelineError, match="second YAML document"):
        load(path)
