import pytest

from memopod.lineage import Ambiguous, BadReference, NotRecorded
from memopod.lineage.reader import Reader
from memopod.lineage.references import near, resolve


async def resolved(client, reference):
    return (await resolve(Reader(client), reference)).node


async def test_a_step_whose_name_holds_colons_can_be_named(client):
    assert (await resolved(client, "odd-1/train(0:a)")).step == "train(0:a)"
    assert (await resolved(client, "odd-1/train(0:a):loss")).value == 0.5


async def test_a_name_that_fits_two_steps_names_them_by_id(client):
    with pytest.raises(Ambiguous, match=r"fits 2 nodes; name one of execution:\d+, execution:\d+"):
        await resolved(client, "odd-1/again")


async def test_an_output_of_an_ambiguous_step_keeps_the_output_in_the_advice(client):
    with pytest.raises(Ambiguous, match=r"execution:\d+:x, execution:\d+:x"):
        await resolved(client, "odd-1/again:x")


async def test_a_location_that_two_artifacts_had_names_them_by_id(client):
    with pytest.raises(Ambiguous, match=r"artifact:\d+, artifact:\d+"):
        await resolved(client, "minio://pipelines/odd-1/overwritten")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("irs-1/train", "run 'irs-1' is not recorded; did you mean iris-1"),
        ("zzz/train", "run 'zzz' is not recorded; see `memopod lineage runs`"),
        ("iris-1/trian", "did you mean iris-1/train"),
        ("iris-1/train:modle", "did you mean iris-1/train:model"),
        ("iris-1/train:zzz", "did you mean iris-1/train:model"),
        ("odd-1/orphan:zzz", "it has no outputs"),
        ("minio://pipelines/none", "an artifact at 'minio://pipelines/none' is not recorded"),
        ("execution:999999", "execution 999999 is not recorded"),
        ("artifact:999999", "artifact 999999 is not recorded"),
    ],
)
async def test_what_is_not_recorded_is_said_with_what_may_have_been_meant(client, reference, message):
    with pytest.raises(NotRecorded, match=message.replace("?", r"\?")):
        await resolved(client, reference)


@pytest.mark.parametrize(
    "reference", ["", "/", "/step", "run/", "execution:", "execution:x", "artifact:-1", "artifact:7:x"]
)
async def test_text_that_names_no_node_says_what_does(client, reference):
    with pytest.raises(BadReference, match=r"expected run/step, run/step:output, execution:ID"):
        await resolved(client, reference)


async def test_a_run_alone_is_answered_with_its_steps(client):
    with pytest.raises(BadReference, match="is a run; name a step of it: iris-1/load, iris-1/train"):
        await resolved(client, "iris-1")


def test_a_beginning_is_nearer_than_a_similar_name():
    assert near("my-pipe", ["my-pika", "my-pipeline-x7k2q", "other"]) == ["my-pipeline-x7k2q", "my-pika"]
