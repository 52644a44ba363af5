"""For whom a step waits, and how long: the rules, and any order in which things can happen."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache_server.executions import Executions, Turn
from cache_server.waiting import (
    ACROSS_WORKFLOWS,
    EVERYWHERE,
    OFF,
    Execution,
    Leave,
    Phase,
    Stay,
    WaitRules,
    is_waiting,
    judge,
    may_wait,
)
from memopod.steps import names, read_step
from memopod.steps.times import to_text

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
RULES = WaitRules(scope=ACROSS_WORKFLOWS, longest=600.0, most=3)
KEY = "e" * 64


def seconds(number):
    return timedelta(seconds=number)


def a_pod(make_pod, name="a", workflow="w1", created=NOW, **annotations):
    """A held Pod, as the informer shows it."""
    pod = make_pod()
    pod["metadata"] |= {
        "name": name, "namespace": "pipelines", "uid": f"uid-{name}", "resourceVersion": "1",
        "creationTimestamp": to_text(created), "labels": {names.STEP_LABEL: names.HELD},
    }  # fmt: skip
    pod["metadata"]["ownerReferences"][0]["uid"] = workflow
    pod["metadata"]["annotations"] |= {names.KEY: "base", names.HOLD_UNTIL: to_text(created + seconds(30))}
    pod["metadata"]["annotations"] |= annotations
    pod["spec"]["schedulingGates"] = [{"name": names.GATE}]
    return pod


def released(pod, phase="Running", key=KEY):
    """The same Pod after its gate was lifted."""
    changed = {**pod, "spec": {**pod["spec"], "schedulingGates": []}, "status": {"phase": phase}}
    changed["metadata"] = {
        **pod["metadata"],
        "resourceVersion": str(int(pod["metadata"]["resourceVersion"]) + 1),
        "labels": {names.STEP_LABEL: names.RELEASED},
        "annotations": {**pod["metadata"]["annotations"], names.ENTRY_KEY: key},
    }
    return changed


def run_of(pod, phase=Phase.RUNNING, since=NOW):
    metadata = pod["metadata"]
    return Execution(
        uid=metadata["uid"], name=metadata["name"], namespace=metadata["namespace"], key=KEY,
        workflow_uid=metadata["ownerReferences"][0]["uid"], created=NOW, phase=phase, since=since,
    )  # fmt: skip


def executions_of(*pods, rules=RULES):
    known = Executions(rules)
    for pod in pods:
        known.see_released(pod, NOW)
    return known


def choose(known, pod, now=NOW, key=KEY):
    return known.choose(read_step(pod), key, now)


def test_a_step_waits_for_the_identical_one_of_another_workflow(make_pod):
    running = released(a_pod(make_pod))
    known = executions_of(running)
    assert choose(known, a_pod(make_pod, "b", "w2")).name == "a"


@pytest.mark.parametrize(
    ("status", "age", "awaited"),
    [
        ("Running", 599, True),
        ("Pending", 29, True),
        ("Pending", 30, False),
        ("Succeeded", 9, True),
        ("Succeeded", 10, False),
        ("Failed", 0, False),
    ],
)
def test_only_a_run_that_goes_on_is_waited_for(make_pod, status, age, awaited):
    known = executions_of(released(a_pod(make_pod), status))
    later = NOW + seconds(age)
    choice = choose(known, a_pod(make_pod, "b", "w2", created=later), later)
    assert choice is Turn.GO if not awaited else choice.name == "a"


def test_a_run_that_is_being_deleted_is_not_waited_for(make_pod):
    running = released(a_pod(make_pod))
    running["metadata"]["deletionTimestamp"] = to_text(NOW)
    assert choose(executions_of(running), a_pod(make_pod, "b", "w2")) is Turn.GO


def test_other_inputs_another_namespace_and_an_unknown_key_are_not_waited_for(make_pod):
    known = executions_of(released(a_pod(make_pod)))
    elsewhere = a_pod(make_pod, "b", "w2")
    elsewhere["metadata"]["namespace"] = "other"
    assert choose(known, elsewhere) is Turn.GO
    assert choose(known, a_pod(make_pod, "b", "w2"), key="f" * 64) is Turn.GO
    assert choose(known, a_pod(make_pod, "b", "w2"), key=None) is Turn.GO


@pytest.mark.parametrize(
    ("scope", "annotation", "same", "waits"),
    [
        (OFF, None, False, False),
        (OFF, ACROSS_WORKFLOWS, False, True),
        (OFF, ACROSS_WORKFLOWS, True, False),
        (OFF, EVERYWHERE, True, True),
        (ACROSS_WORKFLOWS, None, False, True),
        (ACROSS_WORKFLOWS, None, True, False),
        (ACROSS_WORKFLOWS, OFF, False, False),
        (ACROSS_WORKFLOWS, "no such scope", False, False),
        (EVERYWHERE, None, True, True),
    ],
)
def test_the_cluster_and_the_step_say_for_whom_it_waits(make_pod, scope, annotation, same, waits):
    known = executions_of(released(a_pod(make_pod)), rules=WaitRules(scope=scope))
    asked = {names.COALESCE: annotation} if annotation else {}
    pod = a_pod(make_pod, "b", "w1" if same else "w2", **asked)
    assert (choose(known, pod) is not Turn.GO) == waits


@pytest.mark.parametrize("limit", ["timeout", "pendingTimeout", "activeDeadlineSeconds", "pod", "workflow"])
def test_a_step_with_any_deadline_never_waits(make_pod, limit):
    step = read_step(a_pod(make_pod))
    assert may_wait(step, RULES, NOW)
    if limit == "pod":
        step.pod["spec"]["activeDeadlineSeconds"] = 86400
    elif limit == "workflow":
        deadline = {"name": names.ENV_DEADLINE, "value": to_text(NOW + timedelta(days=1))}
        env = [v for v in step.pod["spec"]["containers"][0]["env"] if v["name"] != names.ENV_DEADLINE]
        step.pod["spec"]["containers"][0]["env"] = [*env, deadline]
    else:
        step.template[limit] = 86400 if limit == "activeDeadlineSeconds" else "24h"
    assert not may_wait(step, RULES, NOW)


def test_the_oldest_of_several_runs_is_chosen(make_pod):
    younger, older = a_pod(make_pod, "a"), a_pod(make_pod, "z", "w9", created=NOW - seconds(1))
    known = executions_of(released(younger), released(older))
    assert choose(known, a_pod(make_pod, "b", "w2")).name == "z"


def test_no_more_than_so_many_wait_in_a_namespace(make_pod):
    running = released(a_pod(make_pod))
    known = executions_of(running)
    for number in range(RULES.most):
        pod = a_pod(make_pod, f"b{number}", f"w{number}-")
        known.joined(pod, choose(known, pod))
    assert choose(known, a_pod(make_pod, "late", "w-late")) is Turn.GO


def test_an_older_step_that_may_be_the_same_goes_first_but_not_for_long(make_pod):
    known = Executions(RULES)
    older, younger = a_pod(make_pod), a_pod(make_pod, "b", "w2", created=NOW + seconds(1))
    known.see_held(older)
    known.see_held(younger)
    assert choose(known, younger) is Turn.LATER
    assert choose(known, older) is Turn.GO
    assert choose(known, younger, NOW + seconds(RULES.defer)) is Turn.GO
    assert known.released(older, KEY, NOW) == [younger]
    assert choose(known, younger).name == "a"


def test_a_decision_is_remembered_until_the_informer_shows_it(make_pod):
    known = Executions(RULES)
    first, second = a_pod(make_pod), a_pod(make_pod, "b", "w2")
    known.see_held(first)
    known.released(first, KEY, NOW)
    known.see_held(first)
    assert choose(known, second).name == "a"
    known.see_released(released(first, "Pending"), NOW)
    assert choose(known, second).name == "a"


@pytest.mark.parametrize("end", ["failed", "deleted", "fruitless"])
def test_when_the_awaited_comes_to_nothing_all_leave_and_the_key_is_not_waited_for_a_while(make_pod, end):
    running = released(a_pod(make_pod))
    known = executions_of(running)
    waiters = [a_pod(make_pod, name, name) for name in "bc"]
    for pod in waiters:
        known.joined(pod, choose(known, pod))
        pod["metadata"]["annotations"][names.WAITS_FOR] = "a"
        known.see_held(pod)
    if end == "failed":
        told = known.see_released({**running, "status": {"phase": "Failed"}}, NOW)
    elif end == "deleted":
        told = known.forget(running, NOW)
    else:
        known.see_released({**running, "status": {"phase": "Succeeded"}}, NOW)
        told = known.recorded(running, entry=False, now=NOW)
    assert told == waiters
    assert all(isinstance(known.judge(pod, NOW), Leave) for pod in waiters)
    another = released(a_pod(make_pod, "d", "w4"))
    known.see_released(another, NOW)
    assert choose(known, a_pod(make_pod, "e", "w5")) is Turn.GO
    after = NOW + seconds(RULES.pause)
    assert choose(known, a_pod(make_pod, "e", "w5", created=after), after).name == "d"


def test_an_entry_ends_the_wait_at_once(make_pod):
    running = released(a_pod(make_pod))
    known = executions_of(running)
    waiter = a_pod(make_pod, "b", "w2", **{names.WAITS_FOR: "a"})
    known.see_held(waiter)
    known.see_released({**running, "status": {"phase": "Succeeded"}}, NOW)
    assert known.judge(waiter, NOW) is Stay.STAY
    assert known.recorded(running, entry=True, now=NOW) == [waiter]
    assert known.judge(waiter, NOW) == Leave("miss")


@pytest.mark.parametrize(
    ("phase", "lasted", "verdict"),
    [
        (Phase.RUNNING, 0, Stay.STAY),
        (Phase.PENDING, 29, Stay.RENEW),
        (Phase.PENDING, 30, Leave("awaited-pending")),
        (Phase.SUCCEEDED, 9, Stay.STAY),
        (Phase.SUCCEEDED, 10, Leave("awaited-no-entry")),
        (Phase.FRUITLESS, 0, Leave("awaited-no-entry")),
        (Phase.FAILED, 0, Leave("awaited-failed")),
        (Phase.RUNNING, 600, Leave("waited-too-long")),
        (None, 0, Leave("awaited-gone")),
    ],
)
def test_every_wait_has_an_end(make_pod, phase, lasted, verdict):
    waiter = a_pod(make_pod, "b", "w2", **{names.HOLD_UNTIL: to_text(NOW + seconds(45))})
    run = run_of(a_pod(make_pod), phase) if phase else None
    assert judge(waiter, run, RULES, NOW + seconds(lasted)) == verdict


def test_nobody_goes_on_waiting_where_waiting_was_switched_off(make_pod):
    waiter = a_pod(make_pod, "b", "w2", **{names.COALESCE: OFF})
    assert judge(waiter, run_of(a_pod(make_pod)), RULES, NOW) == Leave("waiting-off")


def test_a_pod_that_was_made_again_under_the_same_name_is_another_run(make_pod):
    running = released(a_pod(make_pod))
    known = executions_of(running)
    waiter = a_pod(make_pod, "b", "w2", **{names.WAITS_FOR: "a"})
    known.see_held(waiter)
    assert known.forget(running, NOW) == [waiter]
    again = a_pod(make_pod)
    again["metadata"]["uid"] = "another"
    known.see_held(again)
    assert known.judge(waiter, NOW) == Leave("awaited-gone")


def test_what_was_said_of_a_pod_that_is_reused_after_all_is_taken_back(make_pod):
    known = Executions(RULES)
    first = a_pod(make_pod)
    waiter = a_pod(make_pod, "b", "w2", **{names.WAITS_FOR: "a"})
    known.released(first, KEY, NOW)
    known.see_held(waiter)
    known.not_released(first["metadata"]["uid"])
    assert known.judge(waiter, NOW) is not Leave
    assert known.reused(first) == [waiter]
    assert known.judge(waiter, NOW) == Leave("awaited-gone")


class Waiting(RuleBasedStateMachine):
    """Two replicas that see the cluster late, one of which leads; identical steps of many workflows.

    The leader may change between any two moments, and a write that its predecessor had begun may still
    arrive.
    """

    make_pod = None

    def __init__(self):
        super().__init__()
        self.now = NOW
        self.pods = {}
        self.views = [Executions(RULES), Executions(RULES)]
        self.unseen = [[], []]
        self.leader = 0
        self.failovers = 0
        self.late = None
        self.extra = 0
        self.count = 0
        self.released_at = {}

    # What happens in the cluster.

    def write(self, pod, version):
        """The API server takes a write only on the version that it was made for."""
        name = pod["metadata"]["name"]
        current = self.pods.get(name)
        if current is None or current["metadata"]["resourceVersion"] != version:
            return False
        pod["metadata"]["resourceVersion"] = str(int(version) + 1)
        self.pods[name] = pod
        self.tell(pod)
        return True

    def tell(self, pod):
        for queue in self.unseen:
            queue.append(("seen", pod))

    @property
    def known(self):
        return self.views[self.leader]

    def running(self):
        return [
            p for p in self.pods.values()
            if not p["spec"]["schedulingGates"] and p["status"]["phase"] in ("Pending", "Running")
        ]  # fmt: skip

    def ended(self):
        return [p for p in self.pods.values() if p.get("status") == {"phase": "Succeeded"}]

    @rule(workflow=st.integers(0, 5))
    def a_step_comes(self, workflow):
        self.count += 1
        pod = a_pod(self.make_pod, f"p{self.count:03}", f"w{workflow}", created=self.now)
        self.pods[pod["metadata"]["name"]] = pod
        self.tell(pod)

    @rule(replica=st.sampled_from([0, 1]), amount=st.integers(1, 5))
    def an_informer_catches_up(self, replica, amount):
        for _ in range(amount):
            if self.unseen[replica]:
                self.deliver(replica)

    def deliver(self, replica):
        kind, pod = self.unseen[replica].pop(0)
        view = self.views[replica]
        if kind == "gone":
            view.forget(pod, self.now)
        elif pod["spec"]["schedulingGates"]:
            view.see_held(pod)
        else:
            view.see_released(pod, self.now)

    @rule(by=st.integers(1, 20))
    def time_passes(self, by):
        self.now += seconds(by)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), end=st.sampled_from(["Running", "Succeeded", "Failed", "gone"]))
    def a_run_goes_on(self, data, end):
        pod = data.draw(st.sampled_from(self.running()))
        name = pod["metadata"]["name"]
        if end == "gone":
            del self.pods[name]
            for queue in self.unseen:
                queue.append(("gone", pod))
        else:
            if pod["status"]["phase"] == end:
                return
            version = pod["metadata"]["resourceVersion"]
            assert self.write({**pod, "metadata": dict(pod["metadata"]), "status": {"phase": end}}, version)

    @precondition(lambda self: self.ended())
    @rule(data=st.data(), entry=st.booleans())
    def the_recorder_is_done_with_a_run(self, data, entry):
        self.known.recorded(data.draw(st.sampled_from(self.ended())), entry=entry, now=self.now)

    @rule()
    def the_leader_changes(self):
        # The new leader has seen what its predecessor wrote until it gave up, but for one late write.
        self.leader = 1 - self.leader
        self.failovers += 1
        while self.unseen[self.leader]:
            self.deliver(self.leader)

    @precondition(lambda self: self.late is not None)
    @rule()
    def a_write_of_the_predecessor_arrives(self):
        pod, version = self.late
        self.late = None
        if self.write(pod, version):
            self.released_beside(pod)

    # What the leader does, as the controller does it.

    def held(self):
        return [p for p in self.pods.values() if p["spec"]["schedulingGates"]]

    @precondition(lambda self: self.held())
    @rule(data=st.data(), delayed=st.booleans())
    def the_leader_decides(self, data, delayed):
        pod = data.draw(st.sampled_from(self.held()))
        version = pod["metadata"]["resourceVersion"]
        if ("seen", pod) in self.unseen[self.leader]:
            return
        if is_waiting(pod):
            if isinstance(self.known.judge(pod, self.now), Stay):
                return
            self.release(pod, version, delayed)
            return
        choice = choose(self.known, pod, self.now)
        if choice is Turn.LATER:
            return
        if isinstance(choice, Execution):
            assert choice.workflow_uid != pod["metadata"]["ownerReferences"][0]["uid"]
            self.known.joined(pod, choice)
            marked = {**pod, "metadata": {**pod["metadata"], "annotations": {
                **pod["metadata"]["annotations"], names.WAITS_FOR: choice.name,
            }}}  # fmt: skip
            if not self.write(marked, version):
                self.known.not_joined(pod)
            return
        self.release(pod, version, delayed)

    def release(self, pod, version, delayed):
        self.known.released(pod, KEY, self.now)
        after = released(pod, "Pending")
        if delayed and self.late is None:
            self.late = after, version
        elif self.write(after, version):
            self.released_beside(after)
        else:
            self.known.not_released(pod["metadata"]["uid"])

    def released_beside(self, pod):
        """Count an execution that began beside one for which it could have waited.

        Not those that a rule lets go: who waited and was let go, a key whose run failed, a full
        namespace, and runs that do not start.
        """
        mine = pod["metadata"]["ownerReferences"][0]["uid"]
        soon = self.now - seconds(RULES.pending_grace)
        beside = [
            p for p in self.running()
            if p["metadata"]["ownerReferences"][0]["uid"] != mine
            and (p["status"]["phase"] == "Running" or self.released_at[p["metadata"]["name"]] > soon)
        ]  # fmt: skip
        self.released_at[pod["metadata"]["name"]] = self.now
        let_go = self.known._barred or self.known._in_namespace["pipelines"] >= RULES.most
        if beside and not let_go and not is_waiting(pod):
            self.extra += 1

    @invariant()
    def executions_beyond_the_first_are_those_of_a_failover(self):
        assert self.extra <= self.failovers

    @invariant()
    def what_is_counted_is_what_waits(self):
        for view in self.views:
            assert view.waiting() == sum(len(pods) for pods in view._waiters.values())
            assert view._in_namespace["pipelines"] == view.waiting()
            assert set(view._identical.get(("pipelines", KEY), ())) == set(view._runs)

    def teardown(self):
        """Whatever happened: once all is seen and time has passed, nobody waits for ever."""
        for replica in (0, 1):
            while self.unseen[replica]:
                self.deliver(replica)
        end = self.now + seconds(RULES.longest)
        for pod in self.held():
            if is_waiting(pod):
                assert isinstance(self.known.judge(pod, end), Leave)
            else:
                assert choose(self.known, pod, end) is not Turn.LATER or (
                    choose(self.known, pod, end + seconds(RULES.defer)) is Turn.GO
                )


def test_in_any_order_of_events_a_failover_costs_one_execution_at_most_and_no_wait_is_for_ever(make_pod):
    from hypothesis.stateful import run_state_machine_as_test

    Waiting.make_pod = staticmethod(make_pod)
    run_state_machine_as_test(
        Waiting, settings=settings(max_examples=60, stateful_step_count=40, database=None)
    )
