"""The walks of README.md run as written."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
WALKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_three() -> None:
    assert len(WALKS) == 3


@pytest.mark.parametrize("walk", WALKS)
def test_walk(walk: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(walk, str(README), "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out
    assert "partial-first" in printed or "deepseek-v3" in printed
