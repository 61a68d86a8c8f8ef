"""What an assistant may call: each is a command of ray-memprof, and returns the text that the command prints.

    Tools(Path("profiler_logs")).ask("peak_by_rank", "baseline")

No run is written, and no number is computed here. The docstrings and annotations are what the assistant reads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ray_memprof.assistant.bounded import TextForm, cut_text, rows_text
from ray_memprof.query.answers import MOST_ROWS, columns_text, has_moments
from ray_memprof.query.guard import Bounds
from ray_memprof.store.find_run import find_run, list_runs
from ray_memprof.store.schema import TABLES
from ray_memprof.store.standing import standing_note

if TYPE_CHECKING:
    from ray_memprof.analysis.comparison.compare import Comparison

MOST_PLAN_ROWS = 5
"""Each row is a whole prediction."""
LIMIT_S = 60.0
"""Seconds until a question or an SQL statement is stopped."""

Run = Annotated[
    str, Field(description="A name or name/run_id from list_runs, a path, or latest: the newest.")
]
MaxRows = Annotated[int, Field(ge=1, le=MOST_ROWS, description="The most rows to return.")]
Format = Annotated[
    TextForm, Field(description="table: sizes and times with units; csv and json: exact bytes and ns.")
]


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools, for the runs below one folder."""

    output_dir: Path

    def list_runs(
        self, max_rows: Annotated[int, Field(ge=1, le=MOST_ROWS, description="The most runs to list.")] = 20
    ) -> str:
        """List the recorded runs, the newest first: their names, when they were recorded and how they ended."""
        from ray_memprof.query.run_table import run_columns
        from ray_memprof.store.run_list import listed

        found = list_runs(self.output_dir, begun=True)[::-1]
        if not found:
            return f"there are no runs in {self.output_dir.absolute()}\n"
        shown = list(map(listed, found[:max_rows]))
        reasons = [f"{one.name}/{one.run_id}: {one.reason}\n" for one in shown if one.reason]
        text = columns_text(run_columns(shown)) + "".join(reasons)
        more = len(found) - len(shown)
        return cut_text(text) + (
            f"cut after {len(shown)} runs: {more} older ones are left out.\n" if more else ""
        )

    def questions(
        self,
        name: Annotated[
            str, Field(description="A question: its SQL, with every column explained. A table: its columns.")
        ] = "",
    ) -> str:
        """List every question that `ask` answers and every table that `sql` reads, or explain one of them."""
        from ray_memprof.query.ask import question_lines, sql_of

        if not name:
            return "\n".join(question_lines()) + "\n"
        return cut_text(_table_lines(name) if name in TABLES else sql_of(name))

    def ask(
        self,
        question: Annotated[str, Field(description="A name that `questions` lists.")],
        run: Run = "latest",
        max_rows: MaxRows = 50,
        format: Format = "table",  # noqa: A002 - the name in the protocol
    ) -> str:
        """Answer a question about a run by its name, such as peak_by_rank, imbalance or alive_at_peak."""
        from ray_memprof.query.questions import question as sql_of

        if question not in TABLES:
            sql_of(question)  # refuses a name that is no question
        return self._rows(question, run, max_rows, format)

    def sql(
        self,
        sql: Annotated[
            str, Field(description="One statement of DuckDB that begins with SELECT, WITH or FROM.")
        ],
        run: Run = "latest",
        max_rows: MaxRows = 50,
        format: Format = "table",  # noqa: A002 - the name in the protocol
    ) -> str:
        """Ask a run in SQL; it can read the tables and questions that `questions` lists, and no file."""
        return self._rows(sql, run, max_rows, format)

    def diagnose(self, run: Run = "latest") -> str:
        """Say in sentences what makes the peak of a run so high, on which ranks, and what to change."""
        from ray_memprof.analysis.diagnosis.findings import diagnosed, found_text

        return cut_text(found_text([diagnosed(find_run(run, self.output_dir))]))

    def compare(
        self,
        runs: Annotated[list[Run], Field(min_length=2, description="The base, then the other runs.")],
        fail_if: Annotated[
            Sequence[str],
            Field(
                description="Limits to check, such as 'peak_device_used > +2%' or 'decode.duration > 3 s'."
            ),
        ] = (),
        rank: Annotated[int | None, Field(ge=0, description="Compare only this rank.")] = None,
        max_rows: Annotated[int, Field(ge=1, le=MOST_ROWS, description="The most rows of each kind.")] = 20,
    ) -> str:
        """Compare runs with the first of them: settings that differ, the whole run, every rank and every span."""
        from ray_memprof.analysis.comparison.compare import compare

        folders = [find_run(one, self.output_dir) for one in runs]
        return cut_text(_compared_text(compare(folders, fail_if, rank=rank), max_rows))

    def plan(
        self,
        task: Annotated[str, Field(description="A task of wan, such as t2v-14B.")],
        gpu: Annotated[
            str, Field(description="The GPU model, or here: the one at hand. Default: that, else H200.")
        ] = "",
        gpus: Annotated[int, Field(ge=1, description="GPUs, all on one host.")] = 1,
        size: Annotated[str, Field(description="width*height in pixels; default: of the task.")] = "",
        frames: Annotated[int | None, Field(ge=1, description="Frames, 4n+1; default: of the task.")] = None,
        steps: Annotated[int | None, Field(ge=1, description="Denoise steps; default: of the task.")] = None,
        limit: Annotated[
            str, Field(description="What each rank may use: '22 GiB'; default: all of the GPU.")
        ] = "",
        host_memory: Annotated[
            str, Field(description="Host memory of all ranks together; default: it does not matter.")
        ] = "",
        inexact: Annotated[
            bool, Field(description="Whether levers that change the result (fp8) are proposed, too.")
        ] = False,
        overrides: Annotated[
            Sequence[str], Field(description="Other keys, as section.key=value: they stay as they are.")
        ] = (),
        flags: Annotated[
            Sequence[str], Field(description="The same by flags of wan.generate: ffn_chunks=16.")
        ] = (),
        max_rows: Annotated[
            int, Field(ge=1, le=MOST_PLAN_ROWS, description="The most rows; each takes half a minute.")
        ] = 3,
    ) -> str:
        """Say which layouts and levers of wan fit on these GPUs, the fastest first: predicted, without a GPU.

        Takes a minute or more. A row has its device memory, headroom, times, host memory and settings.
        """
        from ray_memprof.assistant.planning import plan_text

        given = {
            "--task": task, "--gpu": gpu, "--gpus": gpus, "--size": size, "--frames": frames, "--steps": steps,
            "--limit": limit, "--host-memory": host_memory, "--rows": max_rows,
        }  # fmt: skip
        arguments = [f"{name}={value}" for name, value in given.items() if value not in ("", None)]
        arguments += [*(f"--set={one}" for one in overrides), *(f"--flag={one}" for one in flags)]
        return cut_text(plan_text([*arguments, *(["--inexact"] if inexact else [])]))

    def _rows(self, text: str, run: str, max_rows: int, form: TextForm) -> str:
        from ray_memprof.query.ask import ask, began_ns

        run_dir = find_run(run, self.output_dir)
        # One row more tells whether there are more.
        rows = ask(text, [run_dir], bounds=Bounds(most_rows=max_rows + 1, limit_s=LIMIT_S))
        began = began_ns([run_dir]) if form == "table" and has_moments(rows) else None
        return _noted([run_dir], rows_text(rows, most_rows=max_rows, form=form, began_ns=began))


def _noted(run_dirs: Iterable[Path], text: str) -> str:
    """The text below a line for each run that has not ended."""
    notes = filter(None, map(standing_note, run_dirs))
    return "".join(f"{line}\n" for line in notes) + text


def _compared_text(compared: "Comparison", most: int) -> str:
    from ray_memprof.analysis.comparison.text import check_lines, comparison_text, warnings

    lines = [*warnings(compared), *check_lines(compared)]
    return "".join(f"{line}\n" for line in lines) + comparison_text(compared, most)


def _table_lines(name: str) -> str:
    """What a row of a table is, then its columns with meaning and unit."""
    table = TABLES[name]
    width = max(len(column.name) for column in table.columns)
    lines = [
        f"{name}: one row = {table.row}",
        *([] if name == "runs" else [f"{'rank':<{width}}  of the run"]),
    ]
    for column in table.columns:
        unit = f" ({column.unit})" if column.unit else ""
        lines.append(f"{column.name:<{width}}  {column.meaning}{unit}")
    return "\n".join(lines) + "\n"
