import pytest

from tests.stores import StoreProcess


@pytest.fixture(scope="session")
def store_address(tmp_path_factory):
    store = StoreProcess(tmp_path_factory.mktemp("store"), workers=2)
    store.start()
    yield store.address
    store.kill()
