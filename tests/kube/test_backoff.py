from hypothesis import given
from hypothesis import strategies as st

from memopod.kube.backoff import Backoff


@given(st.integers(0, 2000))
def test_waits_grow_up_to_the_longest(tries):
    backoff = Backoff(first=0.2, longest=10.0)
    delay = 0.0
    for number in range(min(tries, 40) + 1):
        delay = backoff.next()
        full = min(10.0, 0.2 * 2**number)
        assert full / 2 <= delay <= full


def test_after_a_success_it_starts_again():
    backoff = Backoff(first=0.2)
    for _ in range(10):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.2
