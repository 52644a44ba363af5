import asyncio
from collections import Counter
from functools import partial

from memopod.kube import Client
from metadata_writer.shards import Shards, shard_of


def test_namespaces_are_spread_over_the_shards_the_same_for_everybody():
    shares = Counter(shard_of(f"team-{n}", 4) for n in range(1000))
    assert sorted(shares) == [0, 1, 2, 3]
    assert min(shares.values()) > 200
    assert shard_of("pipelines", 4) == shard_of("pipelines", 4)
    assert shard_of("pipelines", 1) == 0


def test_without_an_election_one_writes_all():
    shards = Shards(3)
    assert shards.leads("anything")
    assert shards.led() == [0, 1, 2]


async def test_each_shard_has_one_leader_and_another_follows_it(cluster, kubeconfig, eventually):
    async with Client.from_kubeconfig(str(kubeconfig)) as client:
        replicas, tasks = [], []
        for name in ("one", "other"):
            shards, won = Shards(2), []
            runs = shards.elect(
                client, namespace=cluster.namespace, identity=name, won=partial(won.append, name)
            )
            replicas.append((shards, won))
            tasks.append([asyncio.create_task(run, name=f"elect {name}") for run in runs])
            await eventually(lambda: sum(len(s.led()) for s, _ in replicas) == 2)
        (first, first_won), (second, second_won) = replicas
        assert sorted([*first.led(), *second.led()]) == [0, 1]
        assert (first_won, second_won) == (["one"] * len(first.led()), ["other"] * len(second.led()))
        assert first.leads("x") != second.leads("x")
        for task in tasks[0]:
            task.cancel()
        await asyncio.wait(tasks[0])
        await eventually(lambda: second.led() == [0, 1])
        for task in tasks[1]:
            task.cancel()
        await asyncio.wait(tasks[1])
