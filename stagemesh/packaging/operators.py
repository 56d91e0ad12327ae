"""Which operations a piece may have: an allow list, because a graph is data from somebody else.

Allowed are the operators that torch tags as its core set, some composites that are faster whole than taken apart,
integer arithmetic on sizes, and nothing else. Of the core set these are refused: what writes to its arguments, what
draws random numbers, what returns memory that nobody filled (it may hold another model's data), what gradients need.
"""

# ruff: noqa: SIM905 - names read better as words than as strings
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from stagemesh.errors import CheckpointError

# Composites that are kept whole: taking them apart costs time (or a fused kernel), and they check their arguments.
KEPT = frozenset(
    """
    linear matmul conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d layer_norm group_norm rms_norm
    scaled_dot_product_attention lstm gru rnn_tanh rnn_relu silu mish hardswish hardsigmoid softplus
    log_sigmoid softmax log_softmax logsumexp masked_fill stack baddbmm addcmul addcdiv lerp max_pool2d rsub
    """.split()
)
# Not in the core set, without a decomposition that ends there, and checked by torch as the core set is.
_MORE = frozenset(
    """
    _unsafe_view split split_with_sizes_copy unbind view_copy t transpose lift_fresh_copy detach
    searchsorted bucketize histc bincount triu tril cummax cummin cumprod logcumsumexp
    roll rot90 argsort unique_dim repeat_interleave renorm erfinv lgamma digamma special_i0 kthvalue mode median
    nanmedian unfold pixel_shuffle pixel_unshuffle im2col upsample_bicubic2d upsample_linear1d upsample_trilinear3d
    upsample_nearest1d upsample_nearest3d adaptive_max_pool2d adaptive_max_pool3d linalg_vector_norm dot mv addmv
    fill celu selu frac copysign hypot nan_to_num clamp_min clamp_max square heaviside sinc
    xlogy zeros ones zeros_like ones_like new_zeros new_ones new_full eye linspace
    index_add index_copy index_fill gather take unsafe_split _assert_scalar
    """.split()
)
_REFUSED = frozenset(
    """
    empty empty_strided resize_ sym_storage_offset sym_stride sym_is_contiguous _fft_c2r _fft_r2c
    """.split()
)
# Arguments by which an operator that can draw random numbers is told not to.
_NOT_RANDOM = ("train", "dropout_p")
# Arguments that are strings; any other operator with one is refused (`from_file` reads the file named by one).
_TEXTS = frozenset(("rounding_mode", "approximate", "reduce", "side", "padding", "assert_msg"))
_KINDS = (int, float, bool)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        if not all(type(arg) in _KINDS for arg in args):
            raise TypeError("sizes must be numbers")
        result = function(*args)
        if isinstance(result, int) and abs(result) >= 2**63:
            raise OverflowError("a size is beyond 64 bits")
        return result

    return run


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(operator, name)
        for name in "add sub mul floordiv truediv mod neg eq ne lt le gt ge and_ or_ not_".split()
    },
    "max": max,
    "min": min,
    "ceil": math.ceil,
    "floor": math.floor,
    "trunc": math.trunc,
    "int": int,
    "float": float,
    "sum": lambda *args: sum(args),
    "if": lambda condition, yes, no: yes if condition else no,
}
SIZES: dict[str, Callable[..., Any]] = {f"size.{name}": _bounded(run) for name, run in _FUNCTIONS.items()}
# How the functions above are called in an exported graph.
SIZE_TARGETS: dict[Any, str] = {
    **{getattr(operator, name): f"size.{name}" for name in _FUNCTIONS if hasattr(operator, name)},
    math.ceil: "size.ceil",
    math.floor: "size.floor",
    math.trunc: "size.trunc",
    torch.sym_max: "size.max",
    torch.sym_min: "size.min",
    torch.sym_int: "size.int",
    torch.sym_float: "size.float",
    torch.sym_not: "size.not_",
    torch.sym_ite: "size.if",
}
GETITEM, TO_TENSOR, TO_SIZE = "getitem", "size.to_tensor", "size.from_tensor"


def _getitem(values: Any, index: Any) -> Any:
    if type(values) not in (tuple, list) or type(index) is not int:
        raise TypeError("only results of operators have items")
    return values[index]


def _to_tensor(size: Any) -> torch.Tensor:
    if type(size) not in (int, bool):
        raise TypeError("sizes must be integers")
    return torch.tensor(int(size))


def _to_size(tensor: Any) -> int:
    if tensor.dtype is not torch.int64 or tensor.ndim:
        raise TypeError("a size is one integer")
    return int(tensor.item())


_OWN: dict[str, Callable[..., Any]] = {
    **SIZES,
    GETITEM: _getitem,
    TO_TENSOR: _to_tensor,
    TO_SIZE: _to_size,
}


def why_refused(overload: Any) -> str:
    """Why an `OpOverload` may not be in a piece; empty when it may."""
    if overload.namespace != "aten":
        return f"only aten operators are allowed, not {overload.namespace!r}"
    name = overload._schema.name.removeprefix("aten::")
    arguments = overload._schema.arguments
    names = {argument.name for argument in arguments}
    if torch.Tag.nondeterministic_seeded in overload.tags and not names & set(_NOT_RANDOM):
        return "it draws random numbers"
    if name in _REFUSED or name.endswith("_backward"):
        return "it is not among the operators that a package may have"
    if torch.Tag.core not in overload.tags and name not in KEPT and name not in _MORE:
        return "it is not among the operators that a package may have"
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in arguments):
        return "it writes to its arguments"
    if any("str" in str(argument.type) and argument.name not in _TEXTS for argument in arguments):
        return "it takes a string"
    return ""


def resolve(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that a node's `op` names, having looked at the arguments that decide whether it is harmless.

    Raises:
        CheckpointError: there is none of that name, or it is not allowed.
    """
    if name in _OWN:
        return _OWN[name]
    overload = _overload(name)
    reason = "there is no such operator" if overload is None else why_refused(overload)
    if not reason and torch.Tag.nondeterministic_seeded in overload.tags:
        reason = _why_random(overload, args, kwargs)
    if reason:
        raise CheckpointError(f"operator {name[:80]!r} is refused: {reason}", field="source")
    return overload  # type: ignore[no-any-return]


def _overload(name: str) -> Any:
    parts = name.split(".")
    if len(parts) != 3 or any(part.startswith("__") for part in parts):
        return None
    # Namespaces, packets and overloads are attributes that torch makes when asked for.
    packet = getattr(torch.ops.aten, parts[1], None) if parts[0] == "aten" else None
    if not isinstance(packet, torch._ops.OpOverloadPacket) or parts[2] not in packet.overloads():
        return None
    return getattr(packet, parts[2])


def _why_random(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    for index, argument in enumerate(overload._schema.arguments):
        if argument.name in _NOT_RANDOM:
            given = kwargs.get(argument.name, args[index] if index < len(args) else argument.default_value)
            return "" if type(given) in _KINDS and given == 0 else "it draws random numbers"
    return "it draws random numbers"
