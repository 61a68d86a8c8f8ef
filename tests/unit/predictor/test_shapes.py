"""Shapes that the first rank tells the others."""

import threading
from pathlib import Path

import pytest
import torch

from ray_memprof.predictor import shapes
from ray_memprof.predictor.shapes import FirstRankEnded, Shapes


def test_a_first_rank_that_tells_nothing_has_ended(tmp_path: Path) -> None:
    Shapes(tmp_path / "shapes").end()
    with pytest.raises(FirstRankEnded):
        Shapes(tmp_path / "shapes").take()


def test_each_rank_takes_all_in_order_and_waits_for_what_comes_later(tmp_path: Path) -> None:
    first, others = Shapes(tmp_path / "shapes"), [Shapes(tmp_path / "shapes") for _ in range(2)]

    def tell() -> None:
        first.append(torch.bfloat16, (2, 512, 64))
        first.append(torch.float32, ())
        first.end()

    timer = threading.Timer(0.1, tell)
    timer.start()
    for other in others:
        assert other.take() == (torch.bfloat16, (2, 512, 64))
        assert other.take() == (torch.float32, ())
        with pytest.raises(FirstRankEnded):
            other.take()
    timer.join()


def test_a_rank_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_WAIT_S", 0.1)
    (tmp_path / "shapes").write_text("float32 1 2", encoding="ascii")  # a line that is not whole yet
    with pytest.raises(TimeoutError, match="rank 0 has not told the shape"):
        Shapes(tmp_path / "shapes").take()
