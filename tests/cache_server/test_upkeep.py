"""The cache server keeps house: decisions are counted, and entries are not kept for ever."""

from datetime import UTC, datetime, timedelta

import pytest

from cache_server import configuration
from cache_server.settings import Settings


async def test_what_was_decided_is_counted_by_template(cluster, parts):
    outputs = {"parameters": [{"name": "Output", "value": "x", "valueFrom": {"path": "/tmp/o"}}]}
    entry = await parts.entry(outputs)
    await parts.decide(await cluster.held_pod())
    assert [(c["namespace"], c["reason"], c["entry_id"]) for c in parts.counted] == [
        ("pipelines", "miss", ""),
        ("pipelines", "hit", entry.id),
    ]
    assert {c["template"] for c in parts.counted} == {entry.template_name}


@pytest.mark.parametrize("flag", ["retention_idle", "retention_age"])
def test_a_retention_that_is_no_duration_is_refused(flag, tmp_path):
    settings = Settings(database=f"sqlite:///{tmp_path}/x.db", **{flag: "soon"})
    with pytest.raises(ValueError, match=rf"--{flag.replace('_', '-')}: expected an ISO 8601 duration"):
        configuration.resolve(settings)
    with pytest.raises(ValueError, match="--retention-number"):
        Settings(retention_number=-1)


def test_by_default_entries_stay_for_ninety_days_after_their_last_use():
    limits = configuration.retention_limits(Settings())
    assert (limits.age, limits.idle, limits.number) == (None, timedelta(days=90), None)


@pytest.mark.parametrize("text", ["P9999Y", "P99999999999Y"])
def test_a_limit_beyond_all_time_can_be_counted_back(text):
    limits = configuration.retention_limits(Settings(retention_age=text, retention_idle=text))
    assert datetime.now(UTC) - limits.age == pytest.approx(datetime.now(UTC) - limits.idle, abs=timedelta(1))
