"""What the doctor says of the webhook's certificate."""

from datetime import UTC, datetime, timedelta

import pytest

from cache_server.authority import Lifetimes, found
from memopod.cli.install_network import fault_of

NAME = "cache-server.memopod.svc"


def fault(lifetime, age):
    """What is wrong with a certificate of this lifetime that was made `age` ago."""
    made = found([NAME], Lifetimes(certificate=lifetime), datetime.now(UTC) - age)
    return fault_of(made.leaf, [[made.signer]], NAME)


@pytest.mark.parametrize(
    ("lifetime", "age"),
    [
        (timedelta(days=7), timedelta(days=0)),
        (timedelta(days=7), timedelta(days=5)),
        (timedelta(hours=24), timedelta(hours=17)),  # short, and due just now
    ],
)
def test_a_certificate_that_is_renewed_in_time_is_well(lifetime, age):
    assert fault(lifetime, age) is None


@pytest.mark.parametrize(
    ("lifetime", "age"),
    [
        (timedelta(days=7), timedelta(days=6, hours=1)),
        (timedelta(days=90), timedelta(days=89, hours=1)),
        (timedelta(hours=24), timedelta(hours=21)),
    ],
)
def test_one_that_nobody_renewed_is_named_before_it_ends(lifetime, age):
    assert "and nobody renewed it" in fault(lifetime, age)


def test_one_that_ended_is_named():
    assert "the certificate is valid from" in fault(timedelta(days=7), timedelta(days=8))
