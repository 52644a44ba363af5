"""The asyncio client of an ML Metadata service, direct or through Envoy.

`StoreClient.call` sends any RPC by its name and returns the answer that the service's descriptor names;
failures are `StoreError` and its kinds. `list_all` pages through a whole list, `to_value` and
`from_value` turn Python values into a node's property values and back.
"""

from memopod.mlmd.client import Retry, StoreClient
from memopod.mlmd.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable
from memopod.mlmd.listing import list_all
from memopod.mlmd.values import PropertyValue, from_properties, from_value, to_value

__all__ = [
    "AlreadyExists",
    "NotFound",
    "PropertyValue",
    "Retry",
    "StoreClient",
    "StoreError",
    "StoreUnavailable",
    "from_properties",
    "from_value",
    "list_all",
    "to_value",
]
