"""Tells operators which replicas are ejected: a gauge, a counter, and a line in the log."""

import logging
from contextlib import suppress

from stagemesh.metrics import counter, gauge

from .stage import Notice

log = logging.getLogger(__name__)
_LABELS = ("model", "stage", "replica")


class HealthMetrics:
    """Takes the notices of `Health`. A replica that was never ejected, or is gone, has no gauge of its own."""

    def __init__(self) -> None:
        self.ejected = gauge(
            "stagemesh_replica_ejected",
            "1 while this router gives the replica no sessions but canaries.",
            _LABELS,
        )
        self.ejections = counter(
            "stagemesh_ejections_total",
            "Replicas taken out of the balance, by reason: failing, errors, slow.",
            ("model", "reason"),
        )

    def __call__(self, notice: Notice) -> None:
        """Record an ejection, a return, or that the replica is gone."""
        labels = (notice.model, str(notice.stage), notice.replica_id)
        if notice.gone:
            with suppress(KeyError):
                self.ejected.remove(*labels)
        else:
            self.ejected.labels(*labels).set(1.0 if notice.reason else 0.0)
        if notice.reason:
            self.ejections.labels(notice.model, notice.reason).inc()
            log.warning(
                "replica.ejected: %s of stage %s of %s: %s", labels[2], labels[1], labels[0], notice.reason
            )
        elif not notice.gone:
            log.info("replica.rejoined: %s of stage %s of %s", labels[2], labels[1], labels[0])
