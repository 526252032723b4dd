"""What every call gets."""

import grpc.aio

type Context = grpc.aio.ServicerContext[object, object]
