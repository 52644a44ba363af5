"""A gRPC server like the store's that answers a constant: what Python's gRPC alone costs.

`python -m benchmarks.store.bare PORT FILE` answers every RPC with the file's bytes.
"""

import sys
from pathlib import Path

import grpc
import uvloop

from metadata_store.rpcs import RPCS, SERVICE
from metadata_store.server import options


async def main(port, constant):
    async def answer(_request, _context):
        return constant

    server = grpc.aio.server(options=options(""))
    handlers = {rpc: grpc.unary_unary_rpc_method_handler(answer) for rpc in RPCS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
