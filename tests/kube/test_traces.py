import hashlib

from hypothesis import given
from hypothesis import strategies as st

from memopod.kube import Traces

KEYS = [hashlib.blake2b(name, digest_size=16).digest() for name in (b"a", b"b", b"c")]
KEYS += [KEYS[0][:8] + bytes(8), KEYS[0][:2] + b"\1" * 14]
ACTIONS = st.tuples(st.sampled_from(["put", "pop"]), st.sampled_from(KEYS), st.binary(max_size=255))


@given(st.lists(ACTIONS, max_size=30))
def test_they_remember_as_a_dictionary_does(actions):
    traces, model = Traces(16), {}
    for action, key, value in actions:
        if action == "put":
            traces.put(key, value)
            model[key] = value
        else:
            assert traces.pop(key) == model.pop(key, None)
        assert (len(traces), sorted(traces)) == (len(model), sorted(model))
        assert (traces.get(key), key in traces) == (model.get(key), key in model)
        for prefix in (KEYS[0][:8], KEYS[1]):
            assert sorted(traces.keys_of(prefix)) == sorted(k for k in model if k.startswith(prefix))
