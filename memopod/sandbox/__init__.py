"""A cluster on one machine, for the demo, for tests and for laptops.

`supervisor` starts the API server (`apiserver`), the `kubelet` and memopod's services, and keeps them
alive; `runner` runs a pipeline file (`pipelines`) in it as Argo's workflow-controller would, with
Pods in Argo's shape (`argo`). The services cannot tell it from a cluster: an ordinary kubeconfig, an
ordinary HTTPS API. Everything is in one folder (`state`), and no process outlives it (`guard`).
"""
