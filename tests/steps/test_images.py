import pytest
from step_edits import main, volume

from memopod.steps import read_step
from memopod.steps.images import is_pinned, mutable_images

DIGEST = "@sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("reference", "pinned"),
    [
        ("python", False),
        ("python:3.11", False),
        ("registry:5000/python", False),
        ("python@sha256:00", False),
        (f"python:3.11{DIGEST}-not", False),
        (f"python{DIGEST}", True),
        (f"registry:5000/a/python:3.11{DIGEST}", True),
    ],
)
def test_only_a_digest_names_a_content(reference, pinned):
    assert is_pinned(reference) == pinned


def test_images_of_all_containers_of_the_step_count_and_argos_do_not(make_pod):
    pod = make_pod()
    main(pod)["image"] = f"python{DIGEST}"
    assert mutable_images(read_step(pod)) == []
    pod["spec"]["containers"].append({"name": "helper", "image": "nginx:1"})
    pod["spec"]["initContainers"].append({"name": "prepare", "image": "busybox"})
    volume(pod, {"image": {"reference": "data:latest"}}, "data")
    assert mutable_images(read_step(pod)) == ["busybox", "nginx:1", "data:latest"]
    assert mutable_images(read_step(pod), frozenset({"helper"})) == ["busybox", "data:latest"]
