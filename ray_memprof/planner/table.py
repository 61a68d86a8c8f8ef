"""A plan as people and programs read it: lines, JSON, and a YAML file for each row.

text_of(plan)                                # the table, and what is nearest
facts_of(plan)                               # the same as plain data, in bytes and seconds; SCHEMA_VERSION
write_rows(plan, Path("plans"))              # plans/plan-1.yaml ..., which launch and predict take
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ray_memprof.errors import ConfigError
from ray_memprof.planner.search import Nearest, Plan, Row
from ray_memprof.planner.space import KEY_OF, Asked, Choice, config_of, mapping_of
from ray_memprof.predictor.gpu_profile import gpu_profile
from ray_memprof.store.whole_file import check_target, whole_file
from ray_memprof.wording import size_text

SCHEMA_VERSION = 1
"""Of the JSON: raised when a key changes its meaning or goes."""
MOST_POINTS = 400
"""The most configurations that are not rows in the figure."""


def text_of(plan: Plan) -> str:
    """The rows as a table, then what misses, and how all others were judged."""
    asked = plan.asked
    lines = []
    if plan.rows:
        head = ("row", "device used", "headroom", "in", "a step", "the run", "host memory", "levers")
        table = [head, *(_cells(asked, number, row) for number, row in enumerate(plan.rows, 1))]
        widths = [max(len(row[at]) for row in table) for at in range(len(head) - 1)]
        for row in table:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("  ".join([*cells, row[-1]]).rstrip())
    else:
        lines.append(f"nothing fits: {asked.task} on {_gpus(asked)} under {size_text(asked.limit_bytes)}")
    lines += _nearest_lines(plan)
    lines.append(_judged_line(plan))
    return "\n".join(lines) + "\n"


def _cells(asked: Asked, number: int, row: Row) -> tuple[str, ...]:
    predicted = row.predicted
    return (
        str(number),
        size_text(predicted.device_used_bytes),
        size_text(asked.limit_bytes - predicted.device_used_bytes),
        f"{predicted.stage}, rank {predicted.rank}" if asked.num_gpus > 1 else predicted.stage,
        seconds_text(predicted.step_s),
        seconds_text(row.run_s),
        size_text(row.bound.host_bytes),
        levers_text(row.choice),
    )


def levers_text(choice: Choice) -> str:
    """What is not at its default: "ulysses 2, dit_fsdp, load_strategy stream"; "no lever" if nothing is."""
    return ", ".join(_lever(choice, name) for name in choice.changed()) or "no lever"


def _lever(choice: Choice, name: str) -> str:
    value = getattr(choice, name)
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"


def seconds_text(seconds: float) -> str:
    """A time in the unit that suits it: "0.52 s", "48 s", "12 min", "3.1 h"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _gpus(asked: Asked) -> str:
    name = gpu_profile(asked.gpu).name
    return f"{asked.num_gpus} x {name}" if asked.num_gpus > 1 else name


def _nearest_lines(plan: Plan) -> list[str]:
    nearest = plan.nearest
    if nearest is None:
        return []
    which = "faster, and misses" if plan.rows else "nearest"
    lines = [
        f"{which}: {levers_text(nearest.choice)}: {_missed(nearest)}, a step {seconds_text(nearest.bound.step_s)}"
    ]
    if nearest.cured is not None:
        settings = [f"{KEY_OF[name]}: {_yaml(getattr(nearest.cured, name))}" for name in nearest.cure]
        lines.append(f"  it would fit with {', '.join(settings)} (by its estimate)")
    elif not plan.rows and nearest.misses_by_bytes and not plan.asked.allows_inexact:
        lines.append("  --inexact tries weights and products in fp8, which change the result")
    return lines


def _missed(nearest: Nearest) -> str:
    parts = []
    if nearest.misses_by_bytes:
        parts.append(
            f"{size_text(nearest.misses_by_bytes)} of the device are missing in {nearest.bound.stage}"
        )
    if nearest.misses_host_by_bytes:
        parts.append(f"{size_text(nearest.misses_host_by_bytes)} of host memory are missing")
    return " and ".join(parts) or "it misses the limit"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _judged_line(plan: Plan) -> str:
    out = plan.num_by_weights + plan.num_by_bound
    rest = f"{plan.num_left:,} are left open" if plan.num_left else "the others are no faster than a row"
    rest = f"; {rest}" if plan.num_left or plan.rows else ""
    return (
        f"{plan.num_legal:,} legal configurations: {out:,} cannot fit, by a bound; "
        f"{plan.num_by_host:,} need too much host memory; {plan.num_predicted} predicted in full; "
        f"{max(0, plan.num_by_prediction):,} miss the limit by these{rest}"
    )


def facts_of(plan: Plan, files: Sequence[Path] = ()) -> dict[str, Any]:
    """The plan as plain data, for JSON."""
    asked, nearest = plan.asked, plan.nearest
    return {
        "schema_version": SCHEMA_VERSION,
        "task": asked.task,
        "gpu": gpu_profile(asked.gpu).name,
        "gpu_source": gpu_profile(asked.gpu).source,
        "num_gpus": asked.num_gpus,
        "limit_bytes": asked.limit_bytes,
        "host_limit_bytes": asked.host_limit_bytes,
        "allows_inexact": asked.allows_inexact,
        "judged": {
            "legal": plan.num_legal,
            "over_by_weights": plan.num_by_weights,
            "over_by_bound": plan.num_by_bound,
            "over_host_memory": plan.num_by_host,
            "over_by_prediction": plan.num_by_prediction,
            "predicted": plan.num_predicted,
            "left": plan.num_left,
        },
        "rows": [
            _row_facts(plan, number, row, files[number - 1] if files else None)
            for number, row in enumerate(plan.rows, 1)
        ],
        "nearest": None if nearest is None else _nearest_facts(nearest),
    }


def _row_facts(plan: Plan, number: int, row: Row, file: Path | None) -> dict[str, Any]:
    predicted = row.predicted
    return {
        "row": number,
        "device_used_bytes": predicted.device_used_bytes,
        "headroom_bytes": plan.asked.limit_bytes - predicted.device_used_bytes,
        "stage": predicted.stage,
        "rank": predicted.rank,
        "step_s": predicted.step_s,
        "run_s": row.run_s,
        "host_bytes": row.bound.host_bytes,
        "bound_bytes": row.bound.floor_bytes,
        "is_inexact": row.choice.is_inexact,
        "levers": levers_text(row.choice),
        "set": row.choice.settings(),
        "flags": row.choice.flags(),
        "file": None if file is None else str(file),
    }


def _nearest_facts(nearest: Nearest) -> dict[str, Any]:
    cured = nearest.cured
    return {
        "levers": levers_text(nearest.choice),
        "set": nearest.choice.settings(),
        "misses_by_bytes": nearest.misses_by_bytes,
        "misses_host_by_bytes": nearest.misses_host_by_bytes,
        "stage": nearest.bound.stage,
        "step_s": nearest.bound.step_s,
        "would_fit_with": {}
        if cured is None
        else {KEY_OF[name]: getattr(cured, name) for name in nearest.cure},
    }


def check_folder(option: str, folder: Path | None) -> None:
    """Refuse a folder in which nothing can be written, before the search; None: nothing is written.

    Raises:
        ConfigError: it is no folder, or none that may be written.
        DiskFull: no room in it.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"{option} {folder}: it is no folder", hint="name a folder: it is made where it is missing"
        )
    check_target(folder / _row_file(1))


def _row_file(number: int) -> str:
    return f"plan-{number}.yaml"


def write_rows(plan: Plan, folder: Path) -> list[Path]:
    """A YAML file for each row; returns them in order. Raises ConfigError or DiskFull where one cannot be written."""
    files = []
    for number, row in enumerate(plan.rows, 1):
        name = f"plan-{number}"
        config_of(plan.asked, row.choice, name)  # it loads
        path = folder / _row_file(number)
        with whole_file(path) as temporary:
            text = _header(plan, number, row, path) + _body(plan.asked, row.choice, name)
            temporary.write_text(text, encoding="utf-8")
        files.append(path)
    return files


def _header(plan: Plan, number: int, row: Row, path: Path) -> str:
    asked, predicted = plan.asked, row.predicted
    return (
        f"# Row {number} of a plan for {_gpus(asked)}, {size_text(asked.limit_bytes)} each: "
        f"predicted {size_text(predicted.device_used_bytes)} in {predicted.stage},\n"
        f"# a step {seconds_text(predicted.step_s)}, host memory {size_text(row.bound.host_bytes)}.\n#\n"
        f"#     python -m ray_memprof.launch {path.name}\n"
    )


def _body(asked: Asked, choice: Choice, name: str) -> str:
    return yaml.safe_dump(mapping_of(asked, choice, name), sort_keys=False, allow_unicode=True)


def points_of(plan: Plan) -> list[dict[str, Any]]:
    """The configurations that are not rows, for the figure: those that differ in time or memory, thinned out."""
    asked = plan.asked
    found: dict[tuple[float, int], dict[str, Any]] = {}
    for choice, bound in plan.bounds.items():
        size = max(bound.floor_bytes, bound.used_bytes)
        key = (float(f"{bound.run_s:.3g}"), size // 2**26)
        found.setdefault(
            key,
            {
                "run_s": bound.run_s,
                "device_used_bytes": size,
                "levers": levers_text(choice),
                "fits": size <= asked.limit_bytes,
            },
        )
    every = -(-len(found) // MOST_POINTS) or 1
    return list(found.values())[::every]
