"""What a failure of the database means for the call that met it."""

import pytest

from metadata_store.failures import INTERNAL, Failure, failure
from metadata_store.frames import Answer

SOURCE = "PostgreSQL metadata source error: ERROR:  "


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (SOURCE + "deadlock detected", Failure.CONFLICT),
        (
            SOURCE + 'duplicate key value violates unique constraint "contextproperty_pkey"\nDETAIL:  Key '
            "(context_id, name, is_custom_property)=(20, size, f) already exists.\n",
            Failure.CONFLICT,
        ),
        ("mysql_query failed: Duplicate entry '20-size-0' for key 'PRIMARY'", Failure.CONFLICT),
        (
            "mysql_query failed: Duplicate entry '20-size-0' for key 'ContextProperty.PRIMARY'",
            Failure.CONFLICT,
        ),
        (SOURCE + 'duplicate key value violates unique constraint "context_type_id_name_key"', Failure.NONE),
        ("mysql_query failed: Duplicate entry '1-n' for key 'UniqueContextTypeName'", Failure.NONE),
        (SOURCE + "terminating connection due to administrator command", Failure.LOST),
        (SOURCE + "value too long for type character varying(255)", Failure.VALUE),
        (SOURCE + "index row requires 9016 bytes, maximum size is 8191", Failure.VALUE),
        (SOURCE + 'column "nan" does not exist', Failure.VALUE),
        ("mysql_query failed: errno: Unknown column '-inf' in 'field list'", Failure.VALUE),
        ("Error when executing query: no such column: inf query: INSERT", Failure.VALUE),
        ("Error when executing query: no such column: infinite query: SELECT", Failure.NONE),
    ],
)
def test_only_the_text_tells_the_failures_of_a_database_apart(text, meaning):
    assert failure(Answer(INTERNAL, text.encode(), b"")) is meaning
