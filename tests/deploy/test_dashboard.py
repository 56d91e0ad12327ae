"""The dashboard asks only for metrics that are recorded, by labels that they have."""

import json
import re

from deploy_files import DEPLOY, ROOT
from stagemesh.services.stage.metrics import PARTS

DASHBOARD = json.loads((DEPLOY / "dashboards" / "stagemesh.json").read_text())
SOURCES = "".join(
    p.read_text() for folder in ("services", "stagemesh") for p in (ROOT / folder).rglob("*.py")
)


def labels_of(metric: str) -> set[str] | None:
    """Labels of a metric where it is made; None when nothing makes it."""
    name = re.sub(r"_(bucket|sum|count)$", "", metric)
    made = re.search(rf'"{name}",\s*"[^"]*",?\s*(\(([^()]*)\))?', SOURCES)
    if made is None:
        return None
    return set(re.findall(r'"(\w+)"', made[2] or ""))


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_metric_and_label_exists():
    # What Prometheus itself adds, and the bound of a histogram's bucket.
    added = {"job", "instance", "le"}
    for expression in expressions():
        metrics = re.findall(r"stagemesh_\w+", expression)
        assert metrics, expression
        used = {
            label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", group)
        }
        used |= set(re.findall(r"[{,](\w+)=~", expression))
        for metric in metrics:
            labels = labels_of(metric)
            assert labels is not None, f"nothing records {metric}"
            assert used <= labels | added, f"{metric} has no label {used - labels - added}"


def test_parts_of_a_pass_exist():
    asked = set(re.findall(r'part!?="(\w+)"', " ".join(expressions())))
    assert "bubble" in asked
    assert asked <= set(PARTS)


def test_a_metric_that_nobody_records_is_noticed():
    assert labels_of("stagemesh_requests_total") == {"model", "code"}
    assert labels_of("stagemesh_requets_total") is None


def test_panels_do_not_overlap():
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in DASHBOARD["panels"]]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
