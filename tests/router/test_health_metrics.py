"""What operators see of a replica that is ejected, comes back and leaves."""

from stagemesh.services.router.health.metrics import HealthMetrics
from stagemesh.services.router.health.stage import Notice

from stagemesh.metrics import REGISTRY

LABELS = {"model": "seen", "stage": "1", "replica": "r"}


def test_gauge_and_counter_follow_the_notices(caplog):
    notice = HealthMetrics()

    def ejected():
        return REGISTRY.get_sample_value("stagemesh_replica_ejected", LABELS)

    def ejections(reason):
        return REGISTRY.get_sample_value("stagemesh_ejections_total", {"model": "seen", "reason": reason})

    assert ejected() is None
    notice(Notice("seen", 1, "r", "slow"))
    notice(Notice("seen", 1, "r", "slow"))
    assert (ejected(), ejections("slow"), ejections("errors")) == (1.0, 2.0, None)
    assert "replica.ejected: r of stage 1 of seen: slow" in caplog.text
    notice(Notice("seen", 1, "r"))
    assert (ejected(), ejections("slow")) == (0.0, 2.0)
    notice(Notice("seen", 1, "r", gone=True))
    assert ejected() is None
    notice(Notice("seen", 1, "r", gone=True))
