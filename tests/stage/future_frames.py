"""The protocol as a later version might have it: the same messages, each with a field that this version does not know."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from stagemesh.v1 import stage_pb2, tensor_pb2

NOVELTY = "novelty"
_EXTENDED = (
    "Hello",
    "Frame",
    "Step",
    "StepOpen",
    "Sampling",
    "RouteHop",
    "HopRecord",
    "SessionClose",
    "SessionError",
    "StepResult",
    "Feedback",
)


def _build() -> dict[str, type[Message]]:
    pool = descriptor_pool.DescriptorPool()
    tensor = descriptor_pb2.FileDescriptorProto()
    tensor_pb2.DESCRIPTOR.CopyToProto(tensor)
    pool.Add(tensor)
    stage = descriptor_pb2.FileDescriptorProto()
    stage_pb2.DESCRIPTOR.CopyToProto(stage)
    for message in stage.message_type:
        if message.name in _EXTENDED:
            message.field.add(
                name=NOVELTY,
                number=900,
                type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
                label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            )
    pool.Add(stage)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"stagemesh.v1.{name}"))
        for name in _EXTENDED
    }


FUTURE = _build()
