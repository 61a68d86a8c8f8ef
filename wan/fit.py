"""--fit: the levers that let a video fit on the GPU at hand, as `ray-memprof plan` finds them in a process of its own.

    argv = fitted(["--task", "t2v-14B", "--fit", "True"])      # the same flags, and those of the plan's first row

Nothing of ray_memprof is imported: it is asked as any program would ask it. What the user gives stays.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wan.errors import InputError
from wan.flags import flag_parser
from wan.host import memory_bytes
from wan.options import parse
from wan.parallel.environment import Place

_PLANNER = "ray_memprof"
_NEEDED = (
    _PLANNER, "pydantic", "yaml", "rich", "typer", "duckdb", "jinja2", "numpy", "pyarrow", "pynvml", "psutil",
)  # fmt: skip
"""What a plan imports besides what wan does, by the names of the modules: ray_memprof may lie here as mere files."""
_FIXED = (
    "precision", "vae_dtype", "rope_chunks", "gradient_checkpointing", "sample_guide_scale", "sample_solver", "image",
    "first_frame", "last_frame", "src_video", "src_mask", "src_ref_images",
)  # fmt: skip
"""Flags besides the levers that decide how much memory is needed."""
_LEVERS = (
    "load_strategy", "offload_model", "t5_cpu", "weights_dtype", "matmul", "attention_slicing", "ffn_chunks",
    "vae_slabs", "fused_kernels", "expandable_segments",
)  # fmt: skip
"""Flags that a plan sets, on one GPU."""


def fitted(argv: Sequence[str]) -> list[str]:
    """The flags, and behind them those that a plan sets; without --fit, the flags alone.

    Raises:
        InputError: ray_memprof is not installed, there are several ranks or no GPU, or nothing fits.
    """
    values = vars(flag_parser().parse_args(argv))
    if not values["fit"]:
        if values["fit_limit"] is not None:
            raise InputError("--fit_limit is given without --fit", hint="add --fit")
        return list(argv)
    _check(values)
    given = {name for name in values if any(arg.partition("=")[0] == f"--{name}" for arg in argv)}
    row = _first_row(_command(values, given))
    found = {name: row["flags"][name] for name in _LEVERS if name not in given}
    plain = parse(argv)
    before = {name: getattr(plain, name, getattr(plain.levers, name, None)) for name in found}
    changed = [f"--{name} {value}" for name, value in found.items() if value != before[name]]
    gib = row["device_used_bytes"] / 2**30
    sys.stderr.write(
        f"fit: {' '.join(changed) or 'no lever is needed'} (predicted: {gib:.1f} GiB of the device)\n"
    )
    return [*argv, *(f"--{name}={value}" for name, value in found.items())]


def _check(values: Mapping[str, Any]) -> None:
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        be = "is" if len(missing) == 1 else "are"
        needs = "" if _PLANNER in missing else f" needs {', '.join(missing)}, which {be}"
        raise InputError(
            f"--fit asks ray_memprof for a plan, which{needs or ' is'} not installed here",
            hint="pip install 'ray-memprof[run]'",
        )
    if Place.of(os.environ).num_ranks > 1:
        raise InputError(
            "--fit is for one GPU, and there are several ranks",
            hint="ray-memprof plan --gpus N --write DIR finds what fits on several",
        )
    if not str(values["device"]).startswith("cuda"):
        raise InputError(f"--fit is for a GPU, --device is {values['device']}", hint="leave --fit out")


def _command(values: Mapping[str, Any], given: set[str]) -> list[str]:
    """What asks for the plan; `given` are the flags of the user."""
    command = [sys.executable, "-m", f"{_PLANNER}.plan", "--json", "--rows=1", "--gpu=here"]
    command.append(f"--task={values['task']}")
    for option, name in (("size", "size"), ("frames", "frame_num"), ("steps", "sample_steps")):
        if values[name] is not None:
            command.append(f"--{option}={values[name]}")
    if values["fit_limit"] is not None:
        command.append(f"--limit={values['fit_limit']}")
    command.append(f"--host-memory={memory_bytes()} B")
    command += [
        f"--flag={name}={json.dumps(values[name], default=_text)}"
        for name in (*_LEVERS, *_FIXED)
        if name in given and values[name] is not None
    ]
    # The plan proposes what is inexact only where the user has asked for it.
    return [*command, "--inexact"] if values["weights_dtype"] == "fp8" else command


def _text(value: object) -> str:
    assert isinstance(value, Path)
    return str(value)


def _first_row(command: Sequence[str]) -> dict[str, Any]:
    # Its progress and errors go where ours go.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        plan = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise InputError(
            f"--fit: the plan ended with exit code {done.returncode}",
            hint="its error is above; leave --fit out",
        ) from None
    if not plan["rows"]:
        nearest = plan["nearest"] or {}
        missing = nearest.get("misses_by_bytes", 0) or nearest.get("misses_host_by_bytes", 0)
        raise InputError(
            f"--fit: nothing fits under {plan['limit_bytes'] / 2**30:.1f} GiB; the nearest misses by "
            f"{missing / 2**30:.1f} GiB",
            hint="a smaller --size or --frame_num, or --weights_dtype fp8 (inexact)",
        )
    row: dict[str, Any] = plan["rows"][0]
    return row
