"""Programs that know nothing of us, and what the diagnosis says of their training: from torch to the sentence."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ray_memprof.analysis.diagnosis.diagnose import Finding, findings
from ray_memprof.query.database import open_run
from ray_memprof.query.questions import rows_of
from ray_memprof.recorder.options import RecordingOptions
from ray_memprof.recorder.recording import recording
from ray_memprof.workload.observed import observed

WIDTH, NUM_BLOCKS = 32, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(x)))


class Net(nn.Module):
    def __init__(self, is_checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        self.is_checkpointed = is_checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.is_checkpointed else block(x)
        return x.square().mean()


def train(num_rows: int, *, is_checkpointed: bool = False, zeroes_late: bool = False) -> None:
    model = Net(is_checkpointed)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        loss = model(torch.ones(num_rows, WIDTH))
        if zeroes_late:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not zeroes_late:
            optimizer.zero_grad()


def said(
    run_dir: Path, program: Callable[[], None], patterns: tuple[str, ...] = ()
) -> tuple[dict[str, Finding], int]:
    """What the rules say of a program, by rule, and its peak."""
    with recording(RecordingOptions(run_dir=run_dir, device="cpu")) as recorder:
        with observed(recorder, module_spans=patterns):
            program()
    assert recorder.problems == ()
    with open_run(run_dir) as connection:
        ((peak,),) = {(row["allocated_peak_bytes"],) for row in rows_of(connection, "peak_by_rank")}
        return {one.rule: one for one in findings(connection)}, peak


def test_what_checkpointing_would_drop_it_drops(tmp_path: Path) -> None:
    """GIVEN the same training, WHEN its blocks are checkpointed, THEN its peak is lower by what was said, or more."""
    named, peak = said(tmp_path / "spans", lambda: train(4096), ("blocks.*",))
    bare, _ = said(tmp_path / "bare", lambda: train(4096))
    after, lower = said(tmp_path / "after", lambda: train(4096, is_checkpointed=True), ("blocks.*",))
    dropped = named["activations_kept"].bytes
    # What goes into GELU and what comes out of it, of all blocks but one. The peak is in the backward pass of the last
    # block, which has given one of them back.
    assert dropped == (2 * (NUM_BLOCKS - 1) - 1) * 4096 * 4 * WIDTH * 4
    assert peak - lower >= dropped > 0.7 * (peak - lower)
    assert 0.4 * dropped < bare["activations_kept"].bytes <= dropped
    assert "activations_kept" not in after


def test_a_checkpointed_training_without_spans_of_blocks_is_passed_over(tmp_path: Path) -> None:
    found, _ = said(tmp_path, lambda: train(4096, is_checkpointed=True))
    assert "activations_kept" not in found


def test_gradients_that_go_too_late_and_the_state_of_the_optimizer(tmp_path: Path) -> None:
    found, _ = said(tmp_path, lambda: train(64, zeroes_late=True))
    size = sum(one.untyped_storage().nbytes() for one in Net().parameters())
    # The last gradients were made in this step.
    assert found["gradients_kept"].bytes == size
    assert found["optimizer_state"].bytes == 2 * size
    assert found.keys() >= {"gradients_kept", "optimizer_state"}
    assert "weights_fp32" not in found


def test_gradients_that_go_in_time_are_no_finding(tmp_path: Path) -> None:
    found, _ = said(tmp_path, lambda: train(64))
    assert "gradients_kept" not in found


def test_inference_in_fp32_is_told_and_nothing_of_training(tmp_path: Path) -> None:
    def infer() -> None:
        model = Net().eval()
        with torch.no_grad():
            for _ in range(2):
                model(torch.ones(8, WIDTH))

    found, _ = said(tmp_path, infer)
    size = sum(one.untyped_storage().nbytes() for one in Net().parameters())
    assert {rule: one.bytes for rule, one in found.items()} == {"weights_fp32": size // 2}
