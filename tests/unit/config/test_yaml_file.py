"""What stands in a YAML file and is no value at all is refused with its place."""

from pathlib import Path

import pytest

from ray_memprof.config.load import load_config
from ray_memprof.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("description: 2026-02-30", ", line 2, column 14: '2026-02-30' cannot be read as timestamp"),
        ("ranks: !!int x", ", line 2, column 8: 'x' cannot be read as int"),
        ("ranks: !!bool x", ", line 2, column 8: 'x' cannot be read as bool"),
        ("description: !!timestamp x", ", line 2, column 14: 'x' cannot be read as timestamp"),
        (f"ranks: {'9' * 5000}", f", line 2, column 8: '{'9' * 56}... cannot be read as int"),
        (f"description: {'[' * 3000}{']' * 3000}", ": nested too deeply"),
        ("logging: &all {profiler: *all}", ": a section holds itself"),
    ],
    ids=["date", "int", "bool", "timestamp", "digits", "depth", "loop"],
)  # fmt: skip
def test_what_yaml_itself_cannot_take_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\n{text}")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}{told}"
