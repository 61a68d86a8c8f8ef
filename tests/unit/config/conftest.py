"""What tests of configurations share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_memprof.config.load import load_config
from ray_memprof.errors import EXIT_CONFIG, ConfigError

Write = Callable[[str], Path]


@pytest.fixture
def refusal(write: Write) -> Callable[..., tuple[str, str]]:
    """(message, hint) of a file that is refused; x.yaml stands for its path."""

    def refuse(text: str, *overrides: str) -> tuple[str, str]:
        path = write(text)
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        assert caught.value.exit_code == EXIT_CONFIG
        return str(caught.value).replace(str(path), "x.yaml"), caught.value.hint

    return refuse
