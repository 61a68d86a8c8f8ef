"""What the driver itself records of a run: first the verdict, then the rows of the tables runs and ranks.

    state.settle(verdict)                     # writes run.json and logs/rankN.stack.txt before files are collected
    write_driver_tables(run_dir, state.run_row(), state.rank_rows())

A run that failed, or never started, is still a run: it has a row, with status and reason.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import wan
from ray_memprof.config.load import effective_yaml
from ray_memprof.config.run_config import RunConfig
from ray_memprof.driver.elsewhere import Elsewhere
from ray_memprof.driver.placement import node_places
from ray_memprof.driver.repository import commit_text, repository
from ray_memprof.rank.layout_columns import layout_columns
from ray_memprof.rank.messages import Outcome, RankFacts, Status
from ray_memprof.rank.rank_rows import rank_columns
from ray_memprof.recorder.clock import Clock
from ray_memprof.store.run_files import LOGS_DIR
from ray_memprof.store.run_folder import RunFolder
from ray_memprof.store.run_tables import run_columns
from ray_memprof.supervision.verdict import Verdict


@dataclass
class RunState:
    """What the driver knows of one run; it is filled while the run goes on."""

    config: RunConfig
    folder: RunFolder
    verdict: Verdict | None = None
    facts: Sequence[RankFacts] = ()
    """In rank order; empty until the ranks have their places."""
    clock: Clock = field(default_factory=Clock)
    """The driver's clock; all times of the run are in its time."""
    clock_offsets_ns: dict[int, int] = field(default_factory=dict)
    """By rank: how far its host's clock was ahead of the driver's; the rank subtracts this from its times."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of rank 0: the variables that were set for it, and all others that affect its memory. Other ranks differ only in
    the variables that torchrun sets."""
    checks: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Which records are missing or damaged, and what went wrong while they were recorded."""
    elsewhere: list[Elsewhere] = field(default_factory=list)
    """What has not been collected from other hosts; `ray-memprof finish` can bring it in."""
    stages_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage of starting and ending the run took, and the time to its first step."""
    measured: list[str] = field(default_factory=list)
    """What was measured, as the lines of report/summary.py; empty if nothing could be derived."""
    is_abandoned: bool = False
    """Whether a second signal came: nothing more is collected or derived."""

    @classmethod
    def begin(cls, config: RunConfig) -> "RunState":
        """The state of a new run, for which a folder is made. Raises PreflightFailed."""
        folder = RunFolder.create(
            config.logging.output_dir,
            config.name,
            config_text=effective_yaml(config),
            num_ranks=config.num_ranks,
        )
        return cls(config, folder)

    @cached_property
    def repositories(self) -> dict[str, Any]:
        """Git state of the program and of ray-memprof. Read once and kept: files may change while the run goes on."""
        script = self.config.script
        # A module is mostly one of the working folder; nothing is imported here to find out.
        program = Path(wan.__file__).parent if script is None else script.path or Path.cwd()
        return {"program_git": repository(program), "ray_memprof_git": repository(Path(__file__).parent)}

    @property
    def exit_code(self) -> int:
        """Exit code of the launcher."""
        return self._ended().exit_code

    def settle(self, verdict: Verdict) -> None:
        """Record how the run has ended; self.verdict is set only after run.json has been written."""
        if 0 in verdict.outcomes:
            self.environment = self.environment | verdict.outcomes[0].environment
        for rank, outcome in sorted(verdict.outcomes.items()):
            lines = (f"rank {rank}: {text}" for text in outcome.problems)
            self.problems += [line for line in lines if line not in self.problems]
        for rank, stack in verdict.stacks.items():
            self.folder.write_text(stack, LOGS_DIR, f"rank{rank}.stack.txt")
        self.folder.note(
            status=verdict.status,
            exit_code=verdict.exit_code,
            reason=verdict.reason,
            hint=verdict.hint,
            culprits=list(verdict.ranks),
            problems=self.problems,
            end_ns=self.clock.now_ns(),
            stages_s=self.stages_s,
        )
        self.verdict = verdict

    def note(self) -> None:
        """Write all that is known by now into run.json."""
        self.folder.note(
            git_commit=commit_text(self.repositories["program_git"]),
            **self.repositories,
            versions=self.checks,
            environment=self.environment,
            ranks=[asdict(one) for one in self.facts],
            stages_s=self.stages_s,
        )
        self.note_problems()

    def note_problems(self) -> None:
        """Write the problems, and the folders not collected yet, into run.json."""
        self.folder.note(problems=self.problems, elsewhere=[one.facts() for one in self.elsewhere])

    def run_row(self) -> dict[str, Any]:
        """The row of this run in the table runs."""
        verdict = self._ended()
        facts = {
            **self.folder.facts,
            "environment": self.environment,
            "git_commit": commit_text(self.repositories["program_git"]),
            "versions": self.checks,
            # A full disk may have kept them out of run.json.
            "status": verdict.status,
            "exit_code": verdict.exit_code,
            "reason": verdict.reason,
        }
        return run_columns(facts, self.config.model_dump(mode="json", by_alias=True))

    def rank_rows(self) -> list[dict[str, Any]]:
        """The rows of the table ranks; empty if the ranks never got their places."""
        rows = []
        for rank, (node, local_rank) in enumerate(node_places(self.facts)):
            where = {"node": node, "local_rank": local_rank, **layout_columns(self.config, rank)}
            rows.append(self._rank_row(rank) | where)
        return rows

    def _rank_row(self, rank: int) -> dict[str, Any]:
        """The row of a rank, without its place on the node and in the layout."""
        verdict, facts = self._ended(), self.facts[rank]
        outcome, beat = self._outcome(rank), verdict.beats.get(rank)
        if beat is not None and not outcome.path:
            outcome = replace(outcome, path=beat.path, step=beat.step)
        return {
            **rank_columns(facts, outcome),
            "clock_offset_ns": self.clock_offsets_ns.get(rank, 0),
        }

    def _outcome(self, rank: int) -> Outcome:
        """How a rank ended: by its own report, else by the verdict, else because another rank ended the run."""
        verdict = self._ended()
        if rank in verdict.outcomes:
            return verdict.outcomes[rank]
        if rank in verdict.ranks:
            return Outcome(
                rank=rank, status=verdict.status, exit_code=verdict.exit_code, reason=verdict.reason
            )
        loss = verdict.losses.get(rank)
        reason = loss.detail if loss and loss.detail else f"ended with the run: {verdict.reason}"
        status: Status = "interrupted"
        if loss is not None:
            status = {"node": "lost", "host_oom": "host_oom"}.get(loss.kind, "died")  # type: ignore[assignment]
        return Outcome(rank=rank, status=status, exit_code=verdict.exit_code, reason=reason)

    def _ended(self) -> Verdict:
        assert self.verdict is not None, "settle() comes first"
        return self.verdict
