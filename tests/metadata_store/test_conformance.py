"""Random calls, the same to this server and to ml-metadata in this process, on each database.

The two must give equal answers: codes, messages and responses, ids included, since both databases see the
same calls from their beginning. Left out is what differs on purpose (docs/metadata-store.md): lists above
100 rows, numbers beyond 32 bits, and texts and filters that the core would turn into SQL on PostgreSQL.
"""

import itertools
import uuid

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

KINDS = ("Artifact", "Execution", "Context")
TYPES = {"Artifact": mlmd.ArtifactType, "Execution": mlmd.ExecutionType, "Context": mlmd.ContextType}
NODES = {"Artifact": mlmd.Artifact, "Execution": mlmd.Execution, "Context": mlmd.Context}
NAMES = st.sampled_from(["a", "b", "naïve", "it's", "with blank", ""])
NUMBERS = st.sampled_from([1, 2, 3, 4, 5, 8, 999_999])
KIND = st.sampled_from(KINDS)
PROPERTIES = st.dictionaries(
    st.sampled_from(["size", "note", "ratio"]),
    st.one_of(
        st.integers(-1000, 1000).map(lambda number: mlmd.Value(int_value=number)),
        st.sampled_from(["", "text", "ü"]).map(lambda text: mlmd.Value(string_value=text)),
        st.sampled_from([0.0, 1.5, -2e50]).map(lambda number: mlmd.Value(double_value=number)),
        st.booleans().map(lambda flag: mlmd.Value(bool_value=flag)),
    ),
    max_size=2,
)
DECLARED = st.dictionaries(
    st.sampled_from(["size", "note", "ratio"]),
    st.sampled_from([mlmd.INT, mlmd.STRING, mlmd.DOUBLE, mlmd.BOOLEAN]),
    max_size=2,
)
FILTERS = st.sampled_from([
    "name = 'a'", "id > 2", "type = 'a'", "name LIKE '%a%' AND id < 9", "properties.size.int_value > 0",
    "custom_properties.note.string_value = 'text'", "create_time_since_epoch > 0", "nonsense = 1", "name =",
    "contexts_x.name = 'a'", "external_id = 'a'", "uri = 'a'", "last_known_state = COMPLETE", "state = LIVE",
])  # fmt: skip
OPTIONS = st.one_of(
    st.none(),
    st.builds(
        lambda size, query, field, ascending: mlmd.ListOperationOptions(
            max_result_size=size, filter_query=query,
            order_by_field=mlmd.ListOperationOptions.OrderByField(field=field, is_asc=ascending),
        ),
        st.sampled_from([-1, 0, 1, 2, 20, 100]), st.one_of(st.just(""), FILTERS),
        st.sampled_from([0, 3]), st.booleans(),
    ),
)  # fmt: skip
EVENTS = st.builds(
    lambda artifact, execution, kind: mlmd.Event(artifact_id=artifact, execution_id=execution, type=kind),
    NUMBERS, NUMBERS, st.integers(0, 6),
)  # fmt: skip


class Conversation(RuleBasedStateMachine):
    """One client's calls. Names are its own, so that every example starts anew; ids are everybody's."""

    numbers = itertools.count()
    twins = None

    @initialize()
    def begin(self):
        self.prefix = f"{next(self.numbers)}-"
        self.tokens = {}
        self.known = {kind: [] for kind in KINDS}
        self.types = {kind: [] for kind in KINDS}

    def named(self, name):
        return self.prefix + name if name else ""

    def pick(self, ids, number):
        return ids[number % len(ids)] if ids and number < 100 else number

    def node(self, kind, draft):
        node = NODES[kind](type_id=self.pick(self.types[kind], draft["type"]))
        if draft["again"]:
            node.id = self.pick(self.known[kind], draft["again"])
        if draft["name"]:
            node.name = self.named(draft["name"])
        if draft["external"]:
            node.external_id = self.named(draft["external"])
        for name, value in draft["custom"].items():
            node.custom_properties[name].CopyFrom(value)
        for name, value in draft["properties"].items():
            node.properties[name].CopyFrom(value)
        if kind == "Artifact":
            node.uri = draft["name"]
        return node

    drafts = st.fixed_dictionaries({
        "type": NUMBERS, "again": st.sampled_from([0, 0, 0, 1, 2, 999_999]), "name": NAMES,
        "external": st.sampled_from(["", "", "a", "b"]), "custom": PROPERTIES,
        "properties": st.one_of(st.just({}), PROPERTIES),
    })  # fmt: skip

    @rule(kind=KIND, name=NAMES, declared=DECLARED, add=st.booleans(), omit=st.booleans())
    def put_type(self, kind, name, declared, add, omit):
        made = TYPES[kind](name=self.named(name), properties=declared)
        answer = self.twins(
            f"Put{kind}Type", can_add_fields=add, can_omit_fields=omit, **{f"{kind.lower()}_type": made}
        )[2]
        if answer.type_id:
            self.types[kind].append(answer.type_id)

    @rule(kind=KIND, drafts=st.lists(drafts, min_size=1, max_size=3))
    def put_nodes(self, kind, drafts):
        nodes = [self.node(kind, draft) for draft in drafts]
        answer = self.twins(f"Put{kind}s", **{f"{kind.lower()}s": nodes})[2]
        self.known[kind] += getattr(answer, f"{kind.lower()}_ids")

    @rule(execution=drafts, artifacts=st.lists(drafts, max_size=2), contexts=st.lists(drafts, max_size=1),
          reuse=st.booleans(), event=st.integers(0, 6))  # fmt: skip
    def put_execution(self, execution, artifacts, contexts, reuse, event):
        pairs = [
            service.PutExecutionRequest.ArtifactAndEvent(
                artifact=self.node("Artifact", artifact), event=mlmd.Event(type=event)
            )
            for artifact in artifacts
        ]
        answer = self.twins(
            "PutExecution", execution=self.node("Execution", execution), artifact_event_pairs=pairs,
            contexts=[self.node("Context", context) for context in contexts],
            options=service.PutExecutionRequest.Options(reuse_context_if_already_exist=reuse),
        )[2]  # fmt: skip
        if answer.execution_id:
            self.known["Execution"].append(answer.execution_id)

    indexes = st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 6))

    @rule(
        executions=st.lists(drafts, max_size=2), artifacts=st.lists(drafts, max_size=2),
        contexts=st.lists(drafts, max_size=1), reuse=st.booleans(), edges=st.lists(indexes, max_size=2),
    )  # fmt: skip
    def put_lineage(self, executions, artifacts, contexts, reuse, edges):
        self.twins(
            "PutLineageSubgraph",
            executions=[self.node("Execution", draft) for draft in executions],
            artifacts=[self.node("Artifact", draft) for draft in artifacts],
            contexts=[self.node("Context", draft) for draft in contexts],
            event_edges=[
                service.PutLineageSubgraphRequest.EventEdge(
                    execution_index=execution, artifact_index=artifact, event=mlmd.Event(type=kind)
                )
                for execution, artifact, kind in edges
            ],
            options=service.PutLineageSubgraphRequest.Options(reuse_context_if_already_exist=reuse),
        )

    @rule(events=st.lists(EVENTS, min_size=1, max_size=2))
    def put_events(self, events):
        for event in events:
            event.artifact_id = self.pick(self.known["Artifact"], event.artifact_id)
            event.execution_id = self.pick(self.known["Execution"], event.execution_id)
        self.twins("PutEvents", events=events)

    @rule(first=NUMBERS, second=NUMBERS, context=NUMBERS)
    def put_edges(self, first, second, context):
        context = self.pick(self.known["Context"], context)
        self.twins(
            "PutAttributionsAndAssociations",
            attributions=[
                mlmd.Attribution(artifact_id=self.pick(self.known["Artifact"], first), context_id=context)
            ],
            associations=[
                mlmd.Association(execution_id=self.pick(self.known["Execution"], second), context_id=context)
            ],
        )

    @rule(parent=NUMBERS, child=NUMBERS)
    def put_parent(self, parent, child):
        ids = self.known["Context"]
        pair = mlmd.ParentContext(parent_id=self.pick(ids, parent), child_id=self.pick(ids, child))
        self.twins("PutParentContexts", parent_contexts=[pair])

    @rule(kind=KIND, name=NAMES, numbers=st.lists(NUMBERS, max_size=3))
    def get_types(self, kind, name, numbers):
        self.twins(f"Get{kind}Type", type_name=self.named(name))
        self.twins(f"Get{kind}TypesByID", type_ids=[self.pick(self.types[kind], each) for each in numbers])

    @rule(kind=KIND, name=NAMES, node=NAMES, numbers=st.lists(NUMBERS, max_size=3))
    def get_nodes(self, kind, name, node, numbers):
        lower = kind.lower()
        fields = {"type_name": self.named(name), f"{lower}_name": self.named(node)}
        self.twins(f"Get{kind}ByTypeAndName", **fields)
        ids = [self.pick(self.known[kind], number) for number in numbers]
        self.twins(f"Get{kind}sByID", **{f"{lower}_ids": ids})
        self.twins(f"Get{kind}sByExternalIds", external_ids=[self.named(node)])

    @rule(kind=KIND, name=NAMES, options=OPTIONS, again=st.booleans())
    def list_nodes(self, kind, name, options, again):
        if options is not None and again and kind in self.tokens:
            options.next_page_token = self.tokens[kind]
        fields = {} if options is None else {"options": options}
        self.twins(f"Get{kind}sByType", type_name=self.named(name), **fields)
        if options is not None:  # without options: all rows of all examples
            self.tokens[kind] = self.twins(f"Get{kind}s", **fields)[2].next_page_token

    @rule(number=NUMBERS, options=OPTIONS)
    def get_neighbours(self, number, options):
        context = self.pick(self.known["Context"], number)
        fields = {} if options is None else {"options": options}
        for rpc in ("GetArtifactsByContext", "GetExecutionsByContext"):
            self.twins(rpc, context_id=context, **fields)
        for rpc in ("GetParentContextsByContext", "GetChildrenContextsByContext"):
            self.twins(rpc, context_id=context)
        execution = self.pick(self.known["Execution"], number)
        artifact = self.pick(self.known["Artifact"], number)
        self.twins("GetContextsByExecution", execution_id=execution)
        self.twins("GetContextsByArtifact", artifact_id=artifact)
        self.twins("GetEventsByExecutionIDs", execution_ids=[execution])
        self.twins("GetEventsByArtifactIDs", artifact_ids=[artifact])
        self.twins("GetArtifactsByURI", uris=["b"] if number > 5 else [])

    @rule(number=NUMBERS, query=FILTERS, hops=st.integers(-1, 4), direction=st.integers(0, 3))
    def get_lineage(self, number, query, hops, direction):
        options = mlmd.LineageSubgraphQueryOptions(max_num_hops=hops, direction=direction)
        if number > 3:
            options.starting_artifacts.filter_query = query
        elif number > 1:
            execution = self.pick(self.known["Execution"], number)
            options.starting_executions.filter_query = f"id = {execution}"
        self.twins("GetLineageSubgraph", lineage_subgraph_query_options=options)


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgresql"])
def test_random_conversations_are_answered_as_by_ml_metadata_itself(
    start_store, tmp_path_factory, request, kind, twins_of, database_on
):
    if kind == "sqlite":
        store, url = start_store(), f"sqlite:///{tmp_path_factory.mktemp('twin')}/twin.db"
    else:
        server = request.getfixturevalue({"mysql": "mariadb"}.get(kind, kind))
        store, url = (
            start_store("--workers=2", url=database_on(server, kind).url),
            database_on(server, kind).url,
        )
    twins = twins_of(store, url)
    machine = type(f"Conversation{uuid.uuid4().hex}", (Conversation,), {"twins": twins})
    few = settings(
        max_examples=25, stateful_step_count=40, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate], print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=few)
    assert twins.calls >= 800  # on three databases, more than 2,000 a run
