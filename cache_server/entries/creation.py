"""A database that is not there yet is made, as Kubeflow's cache server does with the one it is given."""

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from cache_server.entries.databases import cause_of, describe, kind_of, target_of

_ALWAYS_THERE = {"mysql": "information_schema", "postgresql": "postgres"}


async def ensure_database(url: str) -> None:
    """Make the database of a MySQL, MariaDB or PostgreSQL URL unless it exists; SQLite makes its own.

    Raises OSError, which says what to do, when it can neither be opened nor made.
    """
    kind = kind_of(url)
    if kind == "sqlite" or await _opens(url):
        return
    target, arguments = target_of(url)
    name = str(target.database)
    server = target.set(database=_ALWAYS_THERE[kind])
    engine = create_async_engine(
        server, isolation_level="AUTOCOMMIT", hide_parameters=True, connect_args=arguments
    )
    if kind == "mysql":
        # The driver formats statements.
        name = name.replace("%", "%%")
    statement = {
        "mysql": f"CREATE DATABASE IF NOT EXISTS `{name.replace('`', '``')}` CHARACTER SET utf8mb4",
        "postgresql": "CREATE DATABASE \"{}\" ENCODING 'UTF8' TEMPLATE template0".format(
            name.replace('"', '""')
        ),
    }[kind]
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql(statement)
    except (SQLAlchemyError, OSError) as error:
        # Of two that make it at once, one fails although it is there.
        if not await _opens(url):
            message = (
                f"{describe(url)}: cannot be opened or made: {cause_of(error)}; create it, or grant CREATE"
            )
            raise OSError(message) from error
    finally:
        await engine.dispose()


async def _opens(url: str) -> bool:
    target, arguments = target_of(url)
    engine = create_async_engine(target, hide_parameters=True, pool_size=1, connect_args=arguments)
    try:
        async with engine.connect():
            return True
    except (SQLAlchemyError, OSError):
        return False
    finally:
        await engine.dispose()
