"""The least that `genaid status` could be: one gRPC call to the address in argv, and its answer printed."""

import sys

import grpc

from genaid.image.v1 import engine_pb2, engine_pb2_grpc


def main() -> None:
    """Ask for the engine."""
    with grpc.insecure_channel(sys.argv[1]) as channel:
        answer = engine_pb2_grpc.EngineServiceStub(channel).GetEngine(engine_pb2.GetEngineRequest())
    print(answer)


if __name__ == "__main__":
    main()
