"""A router that gives a fixed answer, breaks where it is told to, and goes on where another one broke."""

import time
from concurrent import futures

import grpc

from stagemesh.errors import ResourceExhausted, Unavailable
from stagemesh.grpc_errors import to_status
from stagemesh.grpc_server import channel_options
from stagemesh.v1 import inference_pb2, inference_pb2_grpc, stage_pb2

TOKEN = b"the token of any router here"
WORDS = ["ab ", "c€", "𝄞", " d", "e ", "fg"]


def token_id(index, number):
    return 100 * index + number


class ResumingRouter(inference_pb2_grpc.InferenceServiceServicer):
    """Each answer is `WORDS`. `break_after` chunks of the whole stream it fails as `how` says:

    "gone": as a broken connection does; "handed over": as a router that shuts down says; "busy": overloaded;
    "cancelled": as a server that is stopped; "after all": once everything was said. After `hold_after` chunks it says
    no more. `old` knows no resuming.
    """

    def __init__(self):
        self.break_after = None
        self.how = "gone"
        self.times = 10**9
        self.hold_after = None
        self.old = False
        self.requests = []
        self.ids = []
        self.left = []
        self._start(0)

    def _start(self, port):
        self._server = grpc.server(
            futures.ThreadPoolExecutor(16), options=[*channel_options(), ("grpc.so_reuseport", 0)]
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def kill(self):
        self._server.stop(0).wait()

    def restart(self):
        self._start(self.port)

    def _arrives(self, request, context):
        self.requests.append(request)
        self.ids.append(dict(context.invocation_metadata())["x-request-id"])
        self.left.append(context.time_remaining())

    def _maybe_break(self, sent, context, *, after_all=False):
        if self.break_after is None or sent < self.break_after or self.times <= 0:
            return
        if (self.how == "after all") != after_all:
            return
        self.times -= 1
        if self.how in ("gone", "after all"):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if self.how == "cancelled":
            context.abort(grpc.StatusCode.CANCELLED, "Cancelled on the server side")
        error = (
            Unavailable("the router is shutting down", retry_after_s=1.0)
            if self.how == "handed over"
            else ResourceExhausted("too many", retry_after_s=1.0)
        )
        code, message, metadata = to_status(error)
        context.set_trailing_metadata((("x-request-id", self.ids[-1]), *metadata))
        context.abort(code, message)

    def Generate(self, request, context):
        self._arrives(request, context)
        before = {}
        if request.HasField("resume") and not self.old:
            assert request.resume.token == TOKEN
            before = {answer.index: answer for answer in request.resume.answers}
        sent = 0
        for number in range(len(WORDS)):
            for index in range(request.n or 1):
                so_far = before.get(index, inference_pb2.AnswerSoFar(index=index))
                has = len(so_far.token_ids)
                assert list(so_far.token_ids) == [token_id(index, i) for i in range(has)]
                assert so_far.characters == len("".join(WORDS[:has]))
                if number < has:
                    continue
                assert not so_far.finished
                self._maybe_break(sent, context)
                while sent == self.hold_after and context.is_active():
                    time.sleep(0.01)
                sent += 1
                last = number == len(WORDS) - 1
                chunk = inference_pb2.GenerateResponse(
                    text=WORDS[number],
                    tokens=[stage_pb2.Token(id=token_id(index, number), logprob=-number)],
                    index=index,
                    finish_reason="length" if last else "",
                )
                if number == has:
                    chunk.resume_token = b"" if self.old else TOKEN
                    chunk.request_id = self.ids[-1]
                    if not has:
                        chunk.cache = inference_pb2.CACHE_STATUS_MISS
                    chunk.route.add(stage=0, replica_id=self.address)
                if last:
                    chunk.usage.prompt_tokens, chunk.usage.completion_tokens = 3, len(WORDS)
                yield chunk
        self._maybe_break(sent, context, after_all=True)

    def Embed(self, request, context):
        self._arrives(request, context)
        self._maybe_break(0, context)
        return inference_pb2.EmbedResponse(
            embeddings={"dtype": "F32", "shape": [1, 1], "data": b"\0\0\x80\x3f"}, request_id=self.ids[-1]
        )

    def Infer(self, request, context):
        self._arrives(request, context)
        self._maybe_break(0, context)
        return inference_pb2.InferResponse(outputs=request.inputs, request_id=self.ids[-1])
