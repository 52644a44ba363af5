"""The control plane of tests/real serves these tests too."""

from tests.real.conftest import admin, cluster, plane, play, proxy

__all__ = ["admin", "cluster", "plane", "play", "proxy"]
