"""Every policy that the documentation shows is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nsn_edge.runtimes.policy import load_policy

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
TABLES = ("battery", "temperature", "throttling", "step_wise", "pi", "deadline", "energy", "difficulty")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_is_a_sound_policy(number: int, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(EXAMPLES[number], encoding="utf-8")
    assert load_policy(file).to_json()["schema_version"] in (1, 2)


def test_every_table_has_an_example() -> None:
    shown = set(re.findall(r"^\[+(\w+)\]+", "\n".join(EXAMPLES), re.MULTILINE))
    assert shown == set(TABLES)
