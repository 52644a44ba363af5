"""`make bench-store`: the metadata store next to a bare gRPC server and to ml-metadata's core by itself."""
