"""Envoy in front of the metadata store: its whole configuration, made from `Settings`.

`bootstrap` is the one source: what `memopod envoy run` starts, what `memopod envoy render` prints, and what
`envoy/envoy.yaml`, the file in the image, is a copy of. `listeners` is the side of the clients (who may
call what), `clusters` the side of the stores (which of them answers), `tls` both sides' certificates.
"""

from memopod.proxy.bootstrap import bootstrap
from memopod.proxy.settings import Settings
from memopod.proxy.tls import secrets

__all__ = ["Settings", "bootstrap", "secrets"]
