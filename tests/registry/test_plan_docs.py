"""The page about planning shows a nodes file that works."""

import re
from pathlib import Path

from stagemesh.planning.nodes_file import read_nodes

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"


def test_the_nodes_file_of_the_page_is_read() -> None:
    shown = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    found = read_nodes(shown[1])
    assert [node.name for node in found.nodes] == ["new-1", "new-2", "old"]
    assert found.links.between("a", "b").rtt_ms == 4
    assert len(found.pins(8)) == 2
