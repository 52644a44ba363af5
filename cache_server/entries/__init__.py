"""What has run, and can be reused: one entry for each namespace and key, in a SQL database.

`Entry` is one such success, `Entries` what the controller and the recorder ask. `open_layered` opens the
database (SQLite, MySQL or MariaDB, PostgreSQL; its schema is in `migrations`) with memory and Redis above
it, and `layers` says why that is right; `open_entries` opens the database alone.
"""

from cache_server.entries.entry import Entries, EntriesUnavailable, Entry
from cache_server.entries.imported import find_imported
from cache_server.entries.layers import LayeredEntries, open_layered
from cache_server.entries.migrations import migrate
from cache_server.entries.sql import SqlEntries, open_entries

__all__ = [
    "Entries",
    "EntriesUnavailable",
    "Entry",
    "LayeredEntries",
    "SqlEntries",
    "find_imported",
    "migrate",
    "open_entries",
    "open_layered",
]
