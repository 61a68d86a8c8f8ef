"""The page of runs side by side: what it says, its figures, the command that writes it, and the end of a matrix."""

import glob
import html
import re
from pathlib import Path
from typing import Any

import pytest
from run_tables import make_ranks, make_run, span
from test_run_page import drawn, outline
from typer.testing import CliRunner, Result

from ray_memprof import cli, launch
from ray_memprof.analysis.comparison.compare import compare
from ray_memprof.config.run_config import RunConfig
from ray_memprof.report import comparison_page
from ray_memprof.store.find_run import list_runs

GIB = 2**30
SECOND = 10**9
MATRIX = """
name: table
workload: script
script: {{path: {folder}/job.py}}
logging: {{output_dir: {folder}/logs}}
matrix:
  - name: one
  - name: two
    set: {{generation.base_seed: 7}}
  - name: three
    set: {{generation.base_seed: 8}}
"""


def stage(number: int, path: str, seconds: tuple[int, int], gib: int) -> dict[str, Any]:
    size = (0, 0, gib * GIB)
    start, end = seconds
    return span(number, path, (start * SECOND, end * SECOND), allocated=size, reserved=size, device_used=size)


def run_of(folder: Path, *ranks: list[dict[str, Any]], status: str = "ok", **run: Any) -> Path:
    """A run with these spans on its ranks."""
    tables = {rank: {"spans": rows} for rank, rows in enumerate(ranks)}
    run = {"run_id": folder.name, "status": status, "source": "cuda", **run}
    return make_ranks(make_run(folder, tables), *({} for _ in ranks), **run)


def three(tmp_path: Path) -> list[Path]:
    """One rank; two of them, with a stage more; one that failed, and took less."""
    long_key = '{"note": "' + 400 * "n" + '", "steps": 2}'
    first = [stage(1, "load", (0, 1), 2), stage(2, "denoise", (1, 3), 4)]
    more = [first[0], stage(2, "warm", (1, 2), 1), stage(3, "denoise", (2, 5), 6)]
    return [
        run_of(tmp_path / "first" / "r1", first, config='{"note": "n", "steps": 1}'),
        run_of(tmp_path / "more" / "r2", more, [stage(1, "load", (0, 1), 2)], config=long_key),
        run_of(
            tmp_path / "less" / "r3",
            [stage(1, "load", (0, 1), 1)],
            status="oom",
            reason="rank 0: <b>2 GiB</b> & more",
            config='{"note": "n", "steps": 2}',
        ),
    ]


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return three(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def page(run_dirs: list[Path]) -> str:
    """Of those three."""
    return page_of(run_dirs)


def page_of(run_dirs: list[Path], *limits: str) -> str:
    return comparison_page.render(compare(run_dirs, limits, allow_failed=True))


def table(page: str, label: str) -> list[list[str]]:
    """The cells of a table in plain text, lines of a cell joined by a bar; the head first."""
    text = page.split(f'aria-label="{label}"', 1)[1].split("</table>", 1)[0]
    return [
        [
            html.unescape(re.sub("<[^>]+>", "", re.sub("<(?:small|br)>", " | ", cell))).strip()
            for cell in cells
        ]
        for cells in (
            re.findall(r"<t[hd]\b.*?>(.*?)</t[hd]>", row) for row in re.findall("<tr>.*?</tr>", text)
        )
    ]


def test_runs_without_rows_make_a_page_that_has_nothing_to_show(tmp_path: Path) -> None:
    page = page_of([make_run(tmp_path / name / "r", {0: {}}) for name in "ab"])
    found = outline(page)
    assert found.headings == [
        "2 runs side by side",
        "2 of 2 runs did not end well",
        "Runs",
        "The whole run",
        "Set differently",
        "Spans that moved most",
    ]
    assert sorted(found.scripts) == ["code", "sql"], "no figure"
    assert table(page, "The whole run")[1:] == [[f"{name} (unknown)", *6 * ["-"]] for name in "ab"]
    assert "No span moved by 0.1% of the whole first run." in page


def test_the_whole_run_has_every_figure_with_its_change_against_the_first(page: str) -> None:
    outline(page)
    assert table(page, "The whole run") == [
        [
            "run",
            "device used, peak",
            "reserved, peak",
            "allocated, peak",
            "imbalance",
            "duration",
            "unexplained",
        ],
        ["first", "4.00 GiB", "4.00 GiB", "4.00 GiB", "1", "3.000 s", "0 B"],
        [
            "more",
            "6.00 GiB | +2.00 GiB, +50.0%",
            "6.00 GiB | +2.00 GiB, +50.0%",
            "6.00 GiB | +2.00 GiB, +50.0%",
            "1.5 | +0.5, +50.0%",
            "5.000 s | +2.000 s, +66.7%",
            "0 B | =",
        ],
        [
            "less (oom)",
            "1.00 GiB | -3.00 GiB, -75.0%",
            "1.00 GiB | -3.00 GiB, -75.0%",
            "1.00 GiB | -3.00 GiB, -75.0%",
            "1 | =",
            "1.000 s | -2.000 s, -66.7%",
            "0 B | =",
        ],
    ]


def test_runs_with_steps_have_the_seconds_of_a_step(tmp_path: Path) -> None:
    """GIVEN two steps of 2 s and of 3 s; the second run does not denoise."""
    size = (0, 0, GIB)
    steps = [
        span(
            number,
            "denoise",
            (3 * number * SECOND, (3 * number + 2) * SECOND),
            step=number - 1,
            allocated=size,
        )
        for number in (1, 2)
    ]
    dirs = [run_of(tmp_path / "a" / "r", steps), run_of(tmp_path / "b" / "r", [stage(1, "load", (0, 1), 1)])]
    rows = table(page_of(dirs), "The whole run")
    assert [row[rows[0].index("a step")] for row in rows] == ["a step", "2.000 s", "-"]


def test_runs_of_the_cpu_are_told_in_words_of_a_process(tmp_path: Path) -> None:
    rows = [stage(1, "denoise", (0, 1), 2)]
    page = page_of([run_of(tmp_path / name / "r", rows, source="cpu") for name in "ab"])
    outline(page)
    assert table(page, "The whole run")[:2] == [
        ["run", "process memory, peak", "tensors, peak", "imbalance", "duration", "unexplained"],
        ["a", "2.00 GiB", "2.00 GiB", "1", "1.000 s", "0 B"],
    ]
    body = page[page.index("<main") : page.index('id="plotly"')]
    for text in ("device", "reserved", "allocated"):
        assert text not in re.sub(r"<code>.*?</code>", "", body)


def test_it_is_told_what_was_compared_and_which_run_failed_why(page: str, run_dirs: list[Path]) -> None:
    assert [row[:6] for row in table(page, "Runs")[1:]] == [
        ["first", "first", "r1", "ok", "1", "cuda"],
        ["more", "more", "r2", "ok", "2", "cuda"],
        ["less", "less", "r3", "oom", "1", "cuda"],
    ]
    assert [row[7] for row in table(page, "Runs")[1:]] == list(map(str, run_dirs))
    assert "1 of 3 runs did not end well" in page
    assert "<li>less: oom, rank 0: &lt;b&gt;2 GiB&lt;/b&gt; &amp; more</li>" in page
    assert "The runs have 1 and 2 ranks." in page


def test_figures_show_the_peaks_of_every_run_and_of_its_stages_in_the_order_they_begin(page: str) -> None:
    figures = drawn(outline(page))
    names = ["first", "more", "less (oom)"]
    assert [(one["name"], one["y"], one["customdata"]) for one in figures["peaks"]["data"]] == [
        (name, names, [4 * GIB, 6 * GIB, GIB]) for name in ("device used", "reserved", "allocated")
    ]
    (heat,) = figures["stages"]["data"]
    assert (heat["x"], heat["y"]) == (["load", "warm", "denoise"], names)
    assert heat["customdata"] == [[2 * GIB, None, 4 * GIB], [2 * GIB, GIB, 6 * GIB], [GIB, None, None]]


def test_settings_name_each_other_value_once_with_the_runs_that_have_it(
    page: str, run_dirs: list[Path]
) -> None:
    assert table(page, "Set differently") == [
        ["key", "first", "other runs"],
        ["note", "n", f"{297 * 'n'}... in more"],
        ["steps", "1", "2 in more, less"],
    ]
    assert table(page_of(run_dirs[::2]), "Set differently") == [["key", "first", "less"], ["steps", "1", "2"]]


def test_spans_of_all_runs_come_with_the_largest_moves_first(page: str) -> None:
    grown = "6.00 GiB | +2.00 GiB, +50.0%"
    halved = "1.00 GiB | -1.00 GiB, -50.0%"
    assert table(page, "Spans that moved most") == [
        ["run", "span", "peak allocated", "peak reserved", "peak device used", "duration"],
        [
            "less",
            "denoise | only in the first run",
            *["4.00 GiB"] * 3,
            "2.000 s",
        ],
        ["more", "denoise", *[grown] * 3, "3.000 s | +1.000 s, +50.0%"],
        ["more", "warm | not in the first run", *["1.00 GiB"] * 3, "1.000 s"],
        ["less", "load", *[halved] * 3, "1.000 s | ="],
    ]


def test_of_many_spans_the_thirty_that_moved_most_are_listed(tmp_path: Path) -> None:
    def spans(extra: int) -> list[dict[str, Any]]:
        return [stage(n, f"s{n}", (n, n + 1), n + (extra if n > 5 else 0)) for n in range(1, 41)]

    page = page_of([run_of(tmp_path / name / "r", spans(extra)) for name, extra in (("a", 0), ("b", 3))])
    assert len(table(page, "Spans that moved most")) == 1 + 30
    assert "30 of 35 spans are listed that moved" in page


@pytest.mark.slow
def test_twenty_runs_with_long_and_strange_names_are_told_apart(tmp_path: Path) -> None:
    names = [f"{40 * 'a'}{number:02}{40 * 'b'}" for number in range(10)]
    names += [f"<i>{number} & {'c' * 50}" for number in range(9)] + ["<|script>"]
    run_dirs = [
        run_of(tmp_path / name / "r", [stage(1, "load", (0, 1), 1 + number)])
        for number, name in enumerate(names)
    ]
    page = page_of(run_dirs)
    figures = drawn(outline(page))
    labels = figures["stages"]["data"][0]["y"]
    # Cut, the first ten would look the same.
    assert not [label for label in labels if "<" in label]
    labels = list(map(html.unescape, labels))
    assert labels == [run_dir.parent.name for run_dir in run_dirs]
    assert [row[0] for row in table(page, "The whole run")[1:]] == labels


def test_long_labels_are_cut_beside_figures_alone(tmp_path: Path) -> None:
    names = [f"{30 * 'a'}-{end}" for end in ("with-slicing-off", "with-slicing-on")]
    page = page_of([run_of(tmp_path / name / "r", [stage(1, "load", (0, 1), 1)]) for name in names])
    labels = drawn(outline(page))["stages"]["data"][0]["y"]
    assert labels == ["aaaaaaaaaaaaaaaaa..-with-slicing-off", "aaaaaaaaaaaaaaaaa..a-with-slicing-on"]
    assert [row[0] for row in table(page, "Runs")[1:]] == names


def test_limits_that_were_held_against_the_runs_are_listed(run_dirs: list[Path]) -> None:
    page = page_of(run_dirs, "peak_allocated > 5 GiB")
    assert outline(page).headings[-1] == "Limits"
    assert "limit exceeded: peak_allocated &gt; 5 GiB: 4.00 GiB -&gt; 6.00 GiB" in page
    assert "limit holds: peak_allocated &gt; 5 GiB: 4.00 GiB -&gt; 1.00 GiB" in page


# The command.


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def test_the_command_writes_the_page_besides_its_answer(tmp_path: Path, run_dirs: list[Path]) -> None:
    first, more, _ = run_dirs
    path = tmp_path / "pages" / "x.html"
    plain = call("compare", first, more, "--format", "json")
    told = call("compare", first, more, "--format", "json", "--html", path)
    assert (told.exit_code, told.stdout) == (0, plain.stdout)
    assert told.stderr.splitlines() == [f"comparison: {path}"]
    assert path.read_text() == page_of([first, more])


def test_the_page_is_written_where_a_limit_is_exceeded_too(tmp_path: Path, run_dirs: list[Path]) -> None:
    first, more, _ = run_dirs
    path = tmp_path / "x.html"
    told = call("compare", first, more, "--html", path, "--fail-if", "peak_allocated > +1%")
    assert (told.exit_code, "limit exceeded" in path.read_text()) == (30, True)


def test_a_page_of_one_rank_is_refused(tmp_path: Path) -> None:
    told = call("compare", "a", "b", "--html", tmp_path / "x.html", "--rank", 0)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == "error: --html shows all ranks\nhint: leave out --rank, or --html\n"


# A matrix.


class Runs:
    """In place of launch.run: each run leaves a folder with what is given for it, and ends with its code."""

    def __init__(self, *ends: tuple[int, bool]) -> None:
        self.ends = list(ends)

    def __call__(self, config: RunConfig, *, plain: bool) -> tuple[int, Path]:
        code, is_recorded = self.ends.pop(0)
        folder = config.logging.output_dir / config.name / "r1"
        folder.mkdir(parents=True)
        (folder.parent / "latest").symlink_to("r1")
        status = {"status": "oom" if code else "ok", "reason": "out of memory" if code else ""}
        if is_recorded:
            run_of(folder, [stage(1, "load", (0, 1), 1 + code)], **status)
        return code, folder


def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *ends: tuple[int, bool]) -> Result:
    monkeypatch.setattr(launch, "run", Runs(*ends))
    return launched_so(tmp_path)


def launched_so(tmp_path: Path) -> Result:
    (tmp_path / "job.py").write_text("")
    config = tmp_path / "x.yaml"
    config.write_text(MATRIX.format(folder=tmp_path))
    return CliRunner().invoke(launch.app, [str(config)])


def test_a_matrix_ends_with_a_page_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = launched(tmp_path, monkeypatch, (0, True), (11, True), (0, True))
    page = tmp_path / "logs" / "table-matrix.html"
    lines = [re.split(r"  +", line.strip()) for line in told.output.splitlines()]
    assert (told.exit_code, lines[:1] + lines[2:]) == (
        11,
        [
            [
                "run",
                "status",
                *("allocated, peak", "change", "reserved, peak", "change", "device used, peak", "change"),
            ],
            ["table-one", "ok", *3 * ["1.00 GiB"]],
            ["table-two", "oom", *3 * ["12.0 GiB", "+11.0 GiB, x 12"]],
            ["table-three", "ok", *3 * ["1.00 GiB", "="]],
            [f"comparison: {page}"],
        ],
    )
    rows = table(page.read_text(), "The whole run")[1:]
    assert [row[0] for row in rows] == ["table-one", "table-two (oom)", "table-three"]
    assert [row[1] for row in rows] == [
        "1.00 GiB",
        "12.0 GiB | +11.0 GiB, x 12",
        "1.00 GiB | =",
    ]


def test_the_page_of_a_matrix_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(tmp_path, monkeypatch, (0, True), (0, True), (0, True))
    logs = tmp_path / "logs"
    assert [run.parent.name for run in list_runs(logs)] == ["table-one", "table-three", "table-two"]
    assert len(glob.glob(f"{logs}/*/latest")) == 3


def test_a_run_that_recorded_nothing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = launched(tmp_path, monkeypatch, (0, True), (20, False), (0, True))
    rows = table((tmp_path / "logs" / "table-matrix.html").read_text(), "Runs")[1:]
    assert (told.exit_code, [row[0] for row in rows]) == (20, ["table-one", "table-three"])
    assert re.search(r"^ table-two +unknown( +-){6}$", told.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([(0, True), (0, False), (0, False)], 0),
        ([(20, False), (20, False), (20, False)], 20),
        ([(0, True), (0, True), (130, True)], 130),  # Whoever stops it wants no page.
    ],
)
def test_without_two_records_or_after_a_signal_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: list[tuple[int, bool]], code: int
) -> None:
    told = launched(tmp_path, monkeypatch, *ends)
    assert (told.exit_code, told.output) == (code, "")
    assert not list(tmp_path.glob("logs/*.html"))


@pytest.mark.parametrize("code", [0, 12])
def test_a_page_that_cannot_be_written_is_a_line_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    page = tmp_path / "logs" / "table-matrix.html"
    (page / "in the way").mkdir(parents=True)
    told = launched(tmp_path, monkeypatch, (0, True), (code, True), (0, True))
    assert told.exit_code == code
    assert re.fullmatch(rf"warning: the runs are not compared: .*{re.escape(str(page))}.*\n", told.output)


def test_a_record_that_cannot_be_read_is_a_line_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "logs" / "table-one" / "r1" / "tables" / "spans" / "rank=9"
    made = Runs((0, True), (0, True), (0, True))

    def run(config: RunConfig, *, plain: bool) -> tuple[int, Path]:
        ended = made(config, plain=plain)
        damaged.mkdir(parents=True, exist_ok=True)
        (damaged / "part-0.parquet").write_bytes(b"no\nparquet")
        return ended

    monkeypatch.setattr(launch, "run", run)
    told = launched_so(tmp_path)
    assert told.exit_code == 0
    assert re.fullmatch(r"warning: the runs are not compared: .*\n", told.output)
