"""Whether a split may be deployed. Pure."""

from stagemesh import parity
from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError, FailedPrecondition, InvalidArgument
from stagemesh.v1.registry_pb2 import DeployRequest


def check_certified(request: DeployRequest, found: Checkpoint, stages: int) -> bool:
    """Whether a certificate vouches for the split; False when it was asked for all the same.

    Raises:
        FailedPrecondition: none does, naming `stages`.
        InvalidArgument: the certificate that came along cannot be read, failed, or is of something else.
    """
    known = list(parity.shipped())
    if request.certificate:
        try:
            own = parity.read(request.certificate)
        except CheckpointError as error:
            raise InvalidArgument(error.message, field="certificate") from None
        if own.revision != found.revision:
            raise InvalidArgument("certificate: it is of another checkpoint", field="certificate")
        if own.stages != stages:
            raise InvalidArgument(
                f"certificate: it is for {own.stages} stages, not {stages}", field="certificate"
            )
        if not own.passed:
            raise InvalidArgument(
                f"certificate: split and whole did not agree: {own.reason}", field="certificate"
            )
        known.append(own)
    try:
        parity.require(known, found, "MODEL", stages)
    except FailedPrecondition:
        if not request.force:
            raise
        return False
    return True
