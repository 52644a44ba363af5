"""The sandbox's API server: the part of the Kubernetes API that memopod and Argo's steps use, over HTTPS.

`registry` holds Kubernetes' rules for creating, changing and deleting objects, `storage` keeps them in
SQLite, `watching` answers lists and watches, `admission` calls the mutating webhooks, `routes` speaks
HTTP. Authentication is by bearer token (`tokens.json`); there is no authorization. It is for tests,
demos and laptops: one process, one machine, loopback.
"""
