"""Free TCP ports on 127.0.0.1."""

import random
import socket

_RANGE = range(20000, 32000)
"""Below Linux' ephemeral ports: no outgoing connection takes one between choice and use."""


def free_ports(count: int) -> list[int]:
    """Different free ports, chosen at random, so that two sandboxes that start at once seldom meet.

    Raises OSError if the machine has none left.
    """
    held: list[socket.socket] = []
    try:
        for port in random.sample(_RANGE, len(_RANGE)):
            candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                candidate.close()
                continue
            held.append(candidate)
            if len(held) == count:
                return [found.getsockname()[1] for found in held]
    finally:
        for found in held:
            found.close()
    raise OSError(f"expected {count} free ports between {_RANGE.start} and {_RANGE.stop}, found {len(held)}")
