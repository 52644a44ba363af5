"""The rules of `Entries`, checked against a dictionary."""

import asyncio
import uuid
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from cache_server.entries import Entry, open_entries
from memopod.steps import Outputs

NAMESPACES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["00", "01"])
TIMES = st.integers(0, 4).map(lambda n: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n))
PODS = st.sampled_from(["p1", "p2", "p3"])


class Rules(RuleBasedStateMachine):
    put_before = Bundle("put_before")

    def __init__(self, database):
        super().__init__()
        self.model = {}
        self.database = database
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.entries = self.runner.run(self._open())
        database.query("DELETE FROM entries")

    async def _open(self):
        return await self.stack.enter_async_context(open_entries(self.database.url))

    def teardown(self):
        self.runner.run(self.stack.aclose())
        self.runner.close()

    def by_id(self, entry_id):
        return next((place for place, entry in self.model.items() if entry.id == entry_id), None)

    @rule(target=put_before, namespace=NAMESPACES, key=KEYS, finished=TIMES, pod=PODS)
    def put(self, namespace, key, finished, pod):
        entry = Entry(
            id=uuid.uuid4().hex,
            namespace=namespace,
            key=key,
            key_version=1,
            components={},
            template_name="t",
            workflow="w",
            workflow_uid="u",
            node_id="n",
            pod_name="p",
            pod_uid=pod,
            image_id="i",
            outputs=Outputs(parameters={}),
            execution_id=None,
            started_at=finished,
            finished_at=finished,
            recorded_at=finished,
        )
        self.put_again(entry)
        return entry

    @rule(entry=put_before)
    def put_again(self, entry):
        place = entry.namespace, entry.key
        standing = self.model.get(place)
        if standing is None or (
            entry.finished_at > standing.finished_at and entry.pod_uid != standing.pod_uid
        ):
            self.model[place] = entry
        assert self.runner.run(self.entries.put(entry)) == (self.model[place].id == entry.id)

    @rule(entry=put_before, moment=TIMES)
    def use(self, entry, moment):
        self.runner.run(self.entries.used(entry.id, moment))
        place = self.by_id(entry.id)
        if place is not None:
            standing = self.model[place]
            last = max(moment, standing.last_used_at or moment)
            self.model[place] = replace(standing, uses=standing.uses + 1, last_used_at=last)

    @rule(entry=put_before)
    def retire(self, entry):
        place = self.by_id(entry.id)
        assert self.runner.run(self.entries.retire(entry.id, "test")) == (place is not None)
        self.model.pop(place, None)

    @rule(target=put_before)
    def reopen(self):
        self.runner.run(self.stack.aclose())
        self.stack = AsyncExitStack()
        self.entries = self.runner.run(self._open())
        return multiple()

    @invariant()
    def what_stands_is_what_the_model_says(self):
        for namespace in ("a", "b"):
            for key in ("00", "01"):
                assert self.runner.run(self.entries.find(namespace, key)) == self.model.get((namespace, key))
        for pod in ("p1", "p2", "p3"):
            recorded = any(entry.pod_uid == pod for entry in self.model.values())
            assert self.runner.run(self.entries.recorded(pod)) == recorded
        listed = self.runner.run(self.entries.list())
        assert sorted(e.id for e in listed) == sorted(e.id for e in self.model.values())


def test_the_rules_hold_on_every_database(database):
    run_state_machine_as_test(
        lambda: Rules(database),
        settings=settings(max_examples=15 if database.kind == "sqlite" else 6, stateful_step_count=15),
    )
