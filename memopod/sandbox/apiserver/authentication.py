"""Who sends a request: bearer tokens from a file.

There is no authorization: whoever has a token of the sandbox may do everything in it.
"""

from pathlib import Path

import msgspec

from memopod.sandbox.apiserver.admission import User
from memopod.sandbox.apiserver.statuses import unauthorized


class Tokens:
    """The users of `tokens.json`: `{token: {"username", "groups"}}`, read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at = -1
        self._users: dict[str, User] = {}

    def user(self, authorization: str | None) -> User:
        """The user of an Authorization header; raises StatusError (401)."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized()
        self._read()
        user = self._users.get(token.strip())
        if user is None:
            raise unauthorized()
        return user

    def _read(self) -> None:
        changed = self._path.stat().st_mtime_ns
        if changed == self._read_at:
            return
        known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, dict[str, str | list[str]]])
        self._users = {
            token: User(str(entry["username"]), tuple(entry["groups"])) for token, entry in known.items()
        }
        self._read_at = changed
