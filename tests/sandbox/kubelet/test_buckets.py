import pytest

from memopod.sandbox.argo import archive_location
from memopod.sandbox.kubelet.buckets import ArtifactError, Buckets
from memopod.steps import Location

ARCHIVE = archive_location("wf", "pod")


def at(key, bucket="pipelines"):
    return Location("s3", "minio.sandbox:9000", bucket, key)


async def test_a_file_comes_back_as_it_was(tmp_path):
    buckets = Buckets(tmp_path / "buckets")
    (tmp_path / "in").write_bytes(b"\0content")
    await buckets.keep(tmp_path / "in", at("a/b"))
    await buckets.fetch(at("a/b"), tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out").read_bytes() == b"\0content"


async def test_a_folder_comes_back_as_it_was(tmp_path):
    buckets = Buckets(tmp_path / "buckets")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "one.txt").write_text("1")
    (tmp_path / "in" / "sub" / "two words.txt").write_text("2")
    await buckets.keep(tmp_path / "in", at("a/folder"))
    await buckets.fetch(at("a/folder"), tmp_path / "out")
    assert (tmp_path / "out" / "one.txt").read_text() == "1"
    assert (tmp_path / "out" / "sub" / "two words.txt").read_text() == "2"


async def test_an_artifact_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="there is no artifact at minio://pipelines/no/such"):
        await Buckets(tmp_path).fetch(at("no/such"), tmp_path / "out")


async def test_an_empty_folder_cannot_be_kept(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="the folder is empty"):
        await Buckets(tmp_path / "buckets").keep(tmp_path / "empty", at("a"))


@pytest.mark.parametrize("bucket", ["../../etc", "a/b", "", "UPPER", "a..b"])
async def test_a_name_that_is_no_buckets_is_refused(tmp_path, bucket):
    with pytest.raises(ArtifactError, match="is no bucket's name"):
        await Buckets(tmp_path).fetch(at("a", bucket), tmp_path / "out")


def test_the_place_of_a_key_only_artifact_is_in_the_archives_bucket(tmp_path):
    artifact = {"name": "a", "s3": {"key": "k"}, "archive": {"none": {}}}
    assert Buckets(tmp_path).place(artifact, ARCHIVE) == at("k")


@pytest.mark.parametrize(
    ("artifact", "message"),
    [
        ({"name": "a", "s3": {"key": "k"}}, "keeps artifacts as they are"),
        ({"name": "a", "raw": {"data": "x"}, "archive": {"none": {}}}, "the sandbox's only object store"),
        (
            {
                "name": "a",
                "s3": {"endpoint": "s3.example.com", "bucket": "b", "key": "k"},
                "archive": {"none": {}},
            },
            "the sandbox's only object store",
        ),
    ],
)
def test_a_place_that_the_sandbox_does_not_have_is_refused(tmp_path, artifact, message):
    with pytest.raises(ArtifactError, match=message):
        Buckets(tmp_path).place(artifact, ARCHIVE)
