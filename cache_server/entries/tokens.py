"""A namespace's token: a random text that changes with every entry that is taken back or replaced.

Whoever remembers entries (memory, Redis) files them under the token that they were read with, so that a
change makes everything that was remembered before unreachable. Being random, a token never returns, not
even after a database was restored, and belongs to one database alone.
"""

import uuid
from collections.abc import Iterable

from sqlalchemy import select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from cache_server.entries.schema import tokens


async def ensure_token(connection: AsyncConnection, namespace: str) -> None:
    """Give the namespace its first token: without one, nothing of it is remembered."""
    there = select(tokens.c.token).where(tokens.c.namespace == namespace)
    if await connection.scalar(there) is None:
        await connection.execute(_put(connection.dialect.name, namespace, replace=False))


async def change_token(connection: AsyncConnection, namespace: str) -> None:
    """Forget, with the transaction that is under way, all that is remembered of the namespace.

    Called after the transaction's other changes: the row is locked for the shortest time then, and
    always as the last, so that nobody waits in a circle.
    """
    statement = update(tokens).where(tokens.c.namespace == namespace).values(token=uuid.uuid4().hex)
    if (await connection.execute(statement)).rowcount == 0:
        await connection.execute(_put(connection.dialect.name, namespace, replace=True))


async def change_tokens(connection: AsyncConnection, namespaces: Iterable[str]) -> None:
    """`change_token` of several, in one order for all who do so."""
    for namespace in sorted(set(namespaces)):
        await change_token(connection, namespace)


def _put(dialect: str, namespace: str, *, replace: bool) -> sqlite.Insert | mysql.Insert | postgresql.Insert:
    row = {"namespace": namespace, "token": uuid.uuid4().hex}
    if dialect == "mysql":
        into_mysql = mysql.insert(tokens).values(row)
        token = into_mysql.inserted.token if replace else tokens.c.token
        return into_mysql.on_duplicate_key_update(token=token)
    into = sqlite.insert(tokens).values(row) if dialect == "sqlite" else postgresql.insert(tokens).values(row)
    if not replace:
        return into.on_conflict_do_nothing(index_elements=[tokens.c.namespace])
    return into.on_conflict_do_update(
        index_elements=[tokens.c.namespace], set_={"token": into.excluded.token}
    )
