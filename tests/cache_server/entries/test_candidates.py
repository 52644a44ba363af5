import uuid
from datetime import timedelta

import pytest

from cache_server.entries.candidates import of_key, of_pod, of_template


@pytest.fixture
def make_entry(make_entry):
    return lambda **changes: make_entry(key=uuid.uuid4().hex * 2, **changes)


async def test_the_newest_entries_of_a_template_are_candidates_in_their_namespace(entries, make_entry):
    first = make_entry(template_name="train", components={"salt": "1"})
    later = [
        make_entry(template_name="train", finished_at=first.finished_at + timedelta(seconds=n))
        for n in (1, 2)
    ]
    others = [make_entry(template_name="Train"), make_entry(template_name="train", namespace="elsewhere")]
    for entry in (*later, first, *others):
        assert await entries.put(entry)
    found = await of_template(entries.database, first.namespace, "train")
    assert [c.id for c in found] == [later[1].id, later[0].id, first.id]
    assert found[-1].components == {"salt": "1"}
    limited = await of_template(entries.database, first.namespace, "train", limit=2)
    assert [c.id for c in limited] == [later[1].id, later[0].id]
    before = await of_template(entries.database, first.namespace, "train", before=later[0].finished_at)
    assert [c.id for c in before] == [first.id]


async def test_an_entry_is_found_by_its_key_in_any_namespace_and_by_its_pod_in_one(entries, make_entry):
    entry, other = make_entry(), make_entry(namespace="elsewhere")
    for one in (entry, other):
        assert await entries.put(one)
    assert [c.id for c in await of_key(entries.database, other.key)] == [other.id]
    assert [c.id for c in await of_pod(entries.database, entry.namespace, entry.pod_name)] == [entry.id]
    assert await of_pod(entries.database, "nowhere", entry.pod_name) == []
