"""A memory for Kubernetes pipelines: steps that already ran are reused, and every step is recorded.

The rooms: `steps` (what a step is; pure), `kube` (the Kubernetes API), `mlmd` (the metadata store's
client), `lineage` (questions to the store), `sandbox` (a cluster on one machine) and `cli`.
The services are packages of their own: `cache_server`, `metadata_writer` and `metadata_store`.
"""

__version__ = "0.1.0"
