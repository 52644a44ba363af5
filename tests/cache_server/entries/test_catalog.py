from datetime import timedelta

import pytest

from cache_server.entries.catalog import Catalog, Filter
from cache_server.entries.counts import Counts
from memopod.steps import Location, OutputArtifact, Outputs

SECOND = timedelta(seconds=1)


@pytest.fixture
def catalog(entries):
    return Catalog(entries.database)


@pytest.fixture
def several(make_entry):
    first = make_entry()
    return [
        make_entry(
            key=f"{n:064x}",
            # Two by two at the same moment.
            finished_at=first.finished_at + n // 2 * SECOND,
            namespace="a" if n % 3 else "b",
        )
        for n in range(9)
    ]


async def every(catalog, which):
    return [entry async for batch in catalog.all(which) for entry in batch]


async def test_pages_follow_each_other_without_a_gap_or_a_repetition(entries, catalog, several):
    await entries.put_all(several)
    wanted = sorted(several, key=lambda e: (-e.finished_at.timestamp(), e.id))
    for size in (1, 2, 4, 9, 20):
        found, after = [], None
        while True:
            page = await catalog.page(Filter(), limit=size, after=after)
            found += page.entries
            if page.after is None:
                break
            after = page.after
        assert found == wanted


@pytest.mark.parametrize("after", ["", "x-1", "1", "-1-a", "9" * 40 + "-a"])
async def test_a_place_that_is_none_is_refused(catalog, after):
    with pytest.raises(ValueError, match="an earlier page"):
        await catalog.page(Filter(), limit=1, after=after)


async def test_entries_are_found_by_what_they_are_and_what_they_put_out(entries, catalog, make_entry):
    outputs = Outputs(
        parameters={"loss": '0.1 "x" 🎉', "other": "1"},
        artifacts=(
            OutputArtifact(name="m", location=Location("s3", "minio:9000", "bucket", "run-1/m"), reported={}),
        ),
    )
    entry = make_entry(outputs=outputs, components={"image": "12ab"}, template_name="Train")
    await entries.put(entry)
    await entries.put(
        make_entry(key="ef" * 32, template_name="train", outputs=Outputs(parameters={}), components={})
    )
    for pair in (
        'parameter.loss=0.1 "x" 🎉', "component.image=12ab", "template=Train", f"key={entry.key}",
        "artifact=minio://bucket/run-1/m", "artifact=run-1/m",
    ):  # fmt: skip
        assert await every(catalog, Filter.parse([pair])) == [entry], pair
    for pairs in (
        ["parameter.loss=0.1"], ["parameter.other=0"], ["component.image=12"], ["parameter.image=12ab"],
        ["artifact=s3://bucket/run-1/m"], ["artifact=run-1"], ["template=Train", "workflow=other"],
    ):  # fmt: skip
        assert await every(catalog, Filter.parse(pairs)) == [], pairs
    assert await every(catalog, Filter.parse(["template=Train"], namespace="other")) == []


@pytest.mark.parametrize("pair", ["", "template", "size=3", "parameter=1", "parameter.=1", "=x"])
def test_what_is_no_field_is_refused_with_what_is(pair):
    with pytest.raises(ValueError, match=r"where FIELD is namespace, template, .*component\.NAME"):
        Filter.parse([pair])


async def test_what_is_invalidated_is_gone_pinned_or_not_and_nothing_else(entries, catalog, several):
    await entries.put_all(several)
    here = [entry for entry in several if entry.namespace == "a"]
    await catalog.pin(here[0].id, True)
    assert await catalog.invalidate(Filter(namespace="a"), dry_run=True) == len(here)
    token = (await entries.read("a", "")).token
    assert await catalog.invalidate(Filter(namespace="a")) == len(here)
    assert (await entries.read("a", "")).token != token
    assert await every(catalog, Filter(namespace="a")) == []
    assert len(await every(catalog, Filter())) == len(several) - len(here)


async def test_statistics_tell_hits_misses_by_reason_and_time_saved_by_template(entries, catalog, make_entry):
    entry = make_entry()
    await entries.put(entry)
    counts = Counts(entries.database)
    counts.add(namespace="pipelines", template="train", reason="hit", entry_id=entry.id)
    for reason in ("miss", "miss", "stale"):
        counts.add(namespace="pipelines", template="train", reason=reason)
    counts.add(namespace="other", template="x", reason="volume")
    await counts.write()
    train, other = await catalog.stats(None, days=1)
    assert (train.namespace, train.template, train.entries, train.hits, train.misses) == (
        "pipelines", "train", 1, 1, 3,
    )  # fmt: skip
    assert train.missed == {"miss": 2, "stale": 1}
    assert train.seconds_saved == pytest.approx(60.5, abs=0.1)
    assert (other.entries, other.missed) == (0, {"volume": 1})
    assert [s.namespace for s in await catalog.stats("other", days=1)] == ["other"]


def test_a_field_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="expected template once"):
        Filter.parse(["template=a", "template=b"])
