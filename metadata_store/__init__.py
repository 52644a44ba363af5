"""The ML Metadata service: `ml_metadata.MetadataStoreService` over ml-metadata's own C++ core.

Requests and answers are bytes that pass through untouched, so every client and every existing database
behaves as with `ml_metadata_store_server`. The core's Python binding holds the interpreter's lock for a
whole query, and so the stores live in worker processes and stay open: `server` speaks gRPC, `pool` hands
each call to a free worker within the call's deadline, `worker` is what runs in such a process,
`connection` turns flags into the core's configuration, `probe` tells whether the database answers.
"""
