"""A real control plane on this machine: etcd and Kubernetes' API server, as `make control-plane` builds them.

`find_programs` says where they are, `Files.prepare` writes what they read, `furnish` makes a new API server
one that Argo and memopod can use. Without a controller manager nobody collects garbage or makes a namespace's
default account: `furnish` and `add_namespace` make what is needed.
"""

from memopod.sandbox.control_plane.objects import add_namespace, apply, furnish, permissions
from memopod.sandbox.control_plane.programs import Files, Programs, find_programs

__all__ = ["Files", "Programs", "add_namespace", "apply", "find_programs", "furnish", "permissions"]
