from cache_server.entries.breaker import Breaker


def made():
    now = [0.0]
    return now, Breaker(failures=3, pause=1, longest=4, clock=lambda: now[0])


def fail(breaker, times):
    return [breaker.failed() for _ in range(times)]


def test_it_opens_after_so_many_failures_in_a_row():
    _, breaker = made()
    assert fail(breaker, 2) == [False, False]
    breaker.succeeded()
    assert fail(breaker, 3) == [False, False, True]
    assert breaker.open
    assert not breaker.allows()


def test_after_its_pause_one_probe_is_allowed_and_its_success_closes_it():
    now, breaker = made()
    fail(breaker, 3)
    now[0] = 1.0
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True, True, True]


def test_each_failed_probe_doubles_the_pause_up_to_the_longest():
    now, breaker = made()
    fail(breaker, 3)
    pauses = []
    for _ in range(4):
        began = now[0]
        while not breaker.allows():
            now[0] += 0.5
        pauses.append(now[0] - began)
        assert not breaker.failed()
    assert pauses == [1, 2, 4, 4]


def test_a_probe_that_never_ends_does_not_keep_it_open_for_ever():
    now, breaker = made()
    fail(breaker, 3)
    now[0] = 1.0
    assert breaker.allows()
    now[0] = 2.0
    assert breaker.allows()
