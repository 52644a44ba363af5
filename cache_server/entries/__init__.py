"""What has run, and can be reused: one entry for each namespace and key, in a SQL database.

`Entry` is one such success, `Entries` what the controller and the recorder ask, `open_entries` the
SQL database behind it (SQLite, MySQL or MariaDB, PostgreSQL; its schema is in `migrations`).
"""

from cache_server.entries.entry import Entries, EntriesUnavailable, Entry
from cache_server.entries.migrations import migrate
from cache_server.entries.sql import SqlEntries, open_entries

__all__ = ["Entries", "EntriesUnavailable", "Entry", "SqlEntries", "migrate", "open_entries"]
