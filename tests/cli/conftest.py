from contextlib import asynccontextmanager

import pytest

from cache_server.api import EntriesApi, TokenFile
from cache_server.certificates import server_context
from cache_server.entries import open_layered
from cache_server.entries.catalog import Catalog
from memopod.sandbox.certificates import prepare_state

TOKEN = "the_token_of_this_test"


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    prepare_state(folder, 1)
    return folder / "tls"


@pytest.fixture
def served(tls, tmp_path):
    """Serves the entries at a URL by the API; gives the flags that name it."""

    @asynccontextmanager
    async def served(url):
        for name in ("token", "tokens"):
            (tmp_path / name).write_text(f"{TOKEN}\n")
        async with open_layered(url) as entries:
            api = EntriesApi(Catalog(entries.sql.database), TokenFile(str(tmp_path / "tokens")))
            context = server_context(str(tls / "cache-server.crt"), str(tls / "cache-server.key"))
            port = await api.start("127.0.0.1", 0, context)
            try:
                yield [
                    "--server", f"https://127.0.0.1:{port}",
                    "--token-file", str(tmp_path / "token"), "--ca-file", str(tls / "ca.crt"),
                ]  # fmt: skip
            finally:
                await api.stop()

    return served
