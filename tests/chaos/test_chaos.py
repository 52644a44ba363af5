import pytest

from tests.chaos.conduct import Plan, conduct


@pytest.mark.parametrize("seed", [8])
async def test_the_graph_is_the_one_that_was_made_whatever_goes_wrong(tmp_path, seed):
    plan = Plan(
        seed=seed, pods=60, workflows=8, changes_a_second=90.0, kill_every=2.0, cut_every=1.0,
        restart_every=4.0, settle_seconds=60.0,
    )  # fmt: skip
    found, world, killed, proxy = await conduct(plan, tmp_path)
    assert found == []
    assert world.made_pods > 40
    assert len(world.truth.artifacts) > 10
    assert min(killed.values()) > 0
    assert proxy.faults > 0
