"""What the core's failures mean, read off its code and text: pure.

The core reports most failures of a database server as INTERNAL, and nothing but the server's text tells
them apart. The texts are those of MariaDB's client library, of MySQL and MariaDB servers, and of libpq and
PostgreSQL in English; a text that is not known stays what the core called it. The core always rolls back
before it reports.
"""

import enum
import re

from metadata_store.frames import Answer

ABORTED, INTERNAL, INVALID_ARGUMENT, UNAVAILABLE, UNKNOWN = 10, 13, 3, 14, 2

_CONFLICT = re.compile(
    rb"mysql_query aborted"  # 1213 and 1205, which the core knows
    rb"|Deadlock found when trying to get lock|Lock wait timeout exceeded|Record has changed since last read"
    rb"|ERROR:  deadlock detected"  # 40P01
    rb"|ERROR:  could not serialize access"  # 40001
    rb"|canceling statement due to lock timeout"  # 55P03
    # Two calls gave one node a property that it had not: the core looks first, then inserts.
    rb'|violates unique constraint "\w+property_pkey"'  # 23505
    rb"|Duplicate entry '[^']*' for key '(?:\w+Property\.)?PRIMARY'"  # 1062
)
# Two calls put one type at once (see `type_names`): the second finds it on the next try.
_SAME_TYPE = b"memopod_one_type_of_a_name"
_LOST = re.compile(
    rb"Lost connection to (?:MySQL )?server|(?:MySQL s|S)erver has gone away|Connection was killed"
    rb"|Server shutdown in progress|mysql_real_connect failed|Can't connect to "
    rb"|running with the --(?:super-)?read-only|not yet prepared node for application use"
    rb"|server closed the connection unexpectedly|terminating connection|no connection to the server"
    rb"|could not (?:receive data from|send data to) server|connection pointer is NULL"
    rb"|SSL connection has been closed|SSL SYSCALL error"
    rb"|the database system is (?:starting up|shutting down|in recovery mode)"
    rb"|cannot execute [A-Z ]+ in a read-only transaction"
    rb"|PostgreSQL metadata source error: $"  # libpq has nothing to add once the connection is gone
)
_VALUE = re.compile(
    rb"Data too long for column|Out of range value for column|Incorrect string value"
    rb"|value too long for type|integer out of range|is out of range for type"
    rb"|invalid byte sequence for encoding|has no equivalent in encoding"
    # The core writes these numbers as nan and inf, which SQL takes for columns.
    rb"|no such column: -?(?:nan|inf) |Unknown column '-?(?:nan|inf)'|column \"(?:nan|inf)\" does not exist"
    # Filters and texts that are too much for an index or a plan.
    rb"|index row (?:size|requires) \d+"
    rb"|Too many tables; MySQL|at most \d+ tables in a join|too many FROM clause terms"
    rb"|Too high level of nesting|Expression tree is too large|stack depth limit exceeded"
)


class Failure(enum.Enum):
    """What an answer means for the store that gave it."""

    NONE = "none"
    """Not the database's: the core carried the call out, or refused it."""
    CONFLICT = "conflict"
    """Another transaction won; this one was rolled back, for certain."""
    LOST = "lost"
    """The connection is gone, or leads to a server that cannot serve: open the store again."""
    VALUE = "value"
    """The database has no room for a value, or no way to carry out a filter."""


def failure(answer: Answer) -> Failure:
    """Which of them an answer is."""
    if answer.code != 0 and _SAME_TYPE in answer.error:
        return Failure.CONFLICT
    if answer.code == ABORTED:
        return Failure.CONFLICT if _CONFLICT.search(answer.error) else Failure.NONE
    if answer.code != INTERNAL:
        return Failure.NONE
    if _LOST.search(answer.error):
        return Failure.LOST
    if _CONFLICT.search(answer.error):
        return Failure.CONFLICT
    return Failure.VALUE if _VALUE.search(answer.error) else Failure.NONE
