"""Put a context manager around every kind of aio handler: the base of what servers put around theirs."""

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import grpc

Around = Callable[[grpc.aio.ServicerContext], AbstractAsyncContextManager[Any]]

_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def wrap_handler(handler: Any, around: Around) -> Any:
    """A handler that runs `handler` inside `around(context)`.

    Works for coroutine handlers (also those that call `context.write`) and asynchronous generators. A handler of
    any other kind (synchronous, run by gRPC in a thread) is returned as it is.
    """
    attribute, make = _KINDS[handler.request_streaming, handler.response_streaming]
    behavior = getattr(handler, attribute)
    if inspect.isasyncgenfunction(behavior):
        # Written from here rather than yielded on: a generator whose RPC is cancelled is closed at some later
        # time in some other context, while this one ends here and now.
        async def write_all(request: Any, context: grpc.aio.ServicerContext) -> None:
            async with around(context), aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

        wrapped: Any = write_all
    elif inspect.iscoroutinefunction(behavior):

        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            async with around(context):
                return await behavior(request, context)

        wrapped = call
    else:
        return handler
    return make(
        wrapped,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
