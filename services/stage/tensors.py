"""Between torch tensors and what crosses a link. CPU tensors are not copied."""

import warnings

import torch

from stagemesh.errors import InvalidArgument
from stagemesh.tensor import TensorView, check_layout
from stagemesh.v1.tensor_pb2 import Tensor

# Received bytes are read-only, and nothing here writes to them.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

_NAMES: dict[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def to_view(tensor: torch.Tensor, name: str = "") -> TensorView:
    """View a tensor's bytes; copies only from a device or when it is not contiguous."""
    host = tensor if tensor.is_cpu else tensor.cpu()
    if not host.is_contiguous():
        host = host.contiguous()
    # Dimensions of one may have any stride in a contiguous tensor; as a list of bytes it must have none.
    flat = host.as_strided((host.numel(),), (1,))
    data = memoryview(flat.view(torch.uint8).numpy()) if host.numel() else memoryview(b"")
    return TensorView(_NAMES[host.dtype], tuple(host.shape), data, name)


def from_view(view: TensorView, device: torch.device, field: str = "tensor") -> torch.Tensor:
    """A tensor over the view's bytes (on a CPU), to be read only.

    Raises:
        InvalidArgument: the dtype is not one that partitions exchange.
    """
    if view.dtype not in _DTYPES:
        raise InvalidArgument(f"{field}.dtype: {view.dtype} is not supported", field=f"{field}.dtype")
    if not view.data.nbytes:
        return torch.empty(view.shape, dtype=_DTYPES[view.dtype], device=device)
    flat = torch.frombuffer(view.data, dtype=_DTYPES[view.dtype]).view(view.shape)
    return flat if device.type == "cpu" else flat.to(device)


def to_message(tensor: torch.Tensor, name: str) -> Tensor:
    """A tensor as a message, for what is small or rare; `to_view` copies less."""
    view = to_view(tensor, name)
    return Tensor(name=name, dtype=view.dtype, shape=view.shape, data=bytes(view.data))


def from_message(message: Tensor, device: torch.device) -> torch.Tensor:
    """The tensor of a message, to be read only.

    Raises:
        InvalidArgument: dtype, shape and length do not fit together.
    """
    data = message.data  # each look at it is a copy
    check_layout(message.dtype, message.shape, len(data), message.name)
    view = TensorView(message.dtype, tuple(message.shape), memoryview(data), message.name)
    return from_view(view, device, message.name)
