"""The data flow diagrams agree with one another."""

import re
from pathlib import Path


def test_each_flow_of_level_0_appears_in_level_1_between_the_same_outsiders():
    text = (Path(__file__).resolve().parents[2] / "docs" / "delivery.md").read_text()
    above, below = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    outsiders = re.findall(r"(\w+)\[[A-Z]", above)
    for source, flow, sink in re.findall(r"(\w+)\S* -- (F\d+) .*? --> (\w+)", above):
        outsider = next(name for name in (source, sink) if name in outsiders)
        lines = [line for line in below.splitlines() if f"- {flow} " in line]
        assert any(outsider in line for line in lines), f"{flow} of {outsider} is not in level 1"
