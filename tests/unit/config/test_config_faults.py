"""A fault in a configuration file becomes one line: what, where, the value, and a hint."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_memprof.config.load import load_config
from ray_memprof.errors import ConfigError

Write = Callable[[str], Path]
Refusal = Callable[..., tuple[str, str]]


def test_no_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert (str(caught.value), caught.value.hint) == (
        f"{path}: No such file or directory",
        "check the path; configs/ holds examples",
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing in it"),
        ("# name: x", "nothing in it"),
        ("- name: x", "[{'name': 'x'}] is not a section of keys"),
        ("name", "'name' is not a section of keys"),
    ],
)
def test_a_file_without_keys(refusal: Refusal, text: str, found: str) -> None:
    assert refusal(text) == (f"x.yaml: {found}", "configs/ holds examples")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(path)


def test_broken_yaml_is_told_with_its_place(refusal: Refusal) -> None:
    assert refusal("name: x\nray: {address: auto\nranks: 2\n")[0].startswith("x.yaml, line 3, column 6: ")


@pytest.mark.parametrize(
    ("text", "place"),
    [("name: x\nranks: 1\nranks: 2", "line 3, column 1: key 'ranks'"),
     ("name: x\nray: {address: auto, address: auto}", "line 2, column 22: key 'address'")],
)  # fmt: skip
def test_a_key_given_twice_is_refused(refusal: Refusal, text: str, place: str) -> None:
    assert refusal(text)[0] == f"x.yaml, {place} is given twice"


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("logging: {log_intervall: 3}", "logging.log_intervall", "did you mean logging.log_interval?"),
        ("ray: {timeouts: {stall: 3}}", "ray.timeouts.stall", "did you mean ray.timeouts.stall_s?"),
        ("logging: {sample_steps: 3}", "logging.sample_steps", "did you mean generation.sample_steps?"),
        ("ulysses_size: 4", "ulysses_size", "did you mean parallel.ulysses?"),
        ("model: {task: t2v-14B}", "model", "did you mean model_config?"),
        ("matrix: [{name: a}, {name: b, sets: {}}]", "matrix[1].sets", "did you mean matrix.set?"),
        ("script: {path: a.py, zzz: 1}", "script.zzz", "known here: script.path, script.module, script.args, "
         "script.module_spans, script.components, script.ranges"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_told_with_the_nearest_known_one(
    refusal: Refusal, text: str, key: str, hint: str
) -> None:
    assert refusal(f"name: x\n{text}") == (f"x.yaml: unknown key {key}", hint)


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("ranks: '4'", "ranks '4': must be a whole number", "YAML takes it for text: write 4 without quotes"),
        ("ranks: 1e3", "ranks '1e3': must be a whole number", "YAML takes it for text: write 1000 without quotes"),
        ("ranks: many", "ranks 'many': must be a whole number", ""),
        ("ranks: 2.0", "ranks 2.0: must be a whole number", ""),
        ("ranks: yes", "ranks true: must be a whole number", ""),
        ("ranks: 0", "ranks 0: must be at least 1", ""),
        ("logging: {sample_interval_s: 1e-1}", "logging.sample_interval_s '1e-1': must be a number",
         "YAML takes it for text: write 0.1 without quotes"),
        ("ray: {timeouts: {stop_s: 0}}", "ray.timeouts.stop_s 0: must be more than 0", ""),
        ("logging: {sample_interval_s: 0.009}", "logging.sample_interval_s 0.009: must be at least 0.01", ""),
        ("ray: {timeouts: {stop_s: .inf}}", "ray.timeouts.stop_s inf: must be a finite number", ""),
        ("ray: {timeouts: {stop_s: 1e400}}", "ray.timeouts.stop_s '1e400': must be a number", ""),
        ("ray: {timeouts: {stop_s: 1.0e+300}}", "ray.timeouts.stop_s 1e+300: must be at most 31536000", ""),
        ("ranks: 1000000000000", "ranks 1000000000000: must be at most 1000000", ""),
        ("generation: {save_file: ~nobody-of-that-name/x}",
         "generation.save_file '~nobody-of-that-name/x': the home folder of this user is not known", ""),
        ('generation: {save_file: "a\\0b"}', "generation.save_file 'a\\x00b': must not hold a NUL character", ""),
        ("description: 12", "description 12: must be text", 'quote it: "12"'),
        ("description: off", "description false: must be text",
         "quote it; YAML takes yes, no, on and off for true or false"),
        ("parallel: {dit_fsdp: 1}", "parallel.dit_fsdp 1: must be true or false", ""),
        ("model_config: {precision: fp8}", "model_config.precision 'fp8': must be fp32, fp16 or bf16", ""),
        ("model_config: {precision: fp_16}", "model_config.precision 'fp_16': must be fp32, fp16 or bf16",
         "did you mean fp16?"),
        ("workload: 3", "workload 3: must be wan or script", ""),
        ("generation: {image: 3}", "generation.image 3: must be a path", ""),
        ("generation: {src_ref_images: a.png}", "generation.src_ref_images 'a.png': must be a list", ""),
        ("generation: {src_ref_images: [1]}", "generation.src_ref_images[0] 1: must be a path", ""),
        ("logging: event", "logging 'event': must be a section of keys", ""),
        ("matrix: [{name: a, set: 3}]", "matrix[0].set 3: must be a section of keys", ""),
        ("matrix: []", "matrix []: must hold at least 1", ""),
        ("ray: {1: 2}", "ray[1] 1: keys must be text", ""),
        ("workload: script\nscript: {args: []}", "script.path is missing, or script.module",
         "script: {path: train.py, args: []}"),
        ("workload: script\nscript: {module: a b.c}",
         "script.module 'a b.c': must be the name of a module, such as pkg.train", ""),
        ("workload: script\nscript: {path: a.py, args: [-x, null]}", "script.args[1] null: must be text",
         'quote it: "null" for the word, "" for an empty text'),
        ("workload: script\nscript: {path: a.py, args: [~]}", "script.args[0] null: must be text",
         'quote it: "null" for the word, "" for an empty text'),
        ("workload: script\nscript: {path: a.py, args: [[1]]}", "script.args[0] [1]: must be text", ""),
        ("workload: script\nscript: {path: a.py, args: --x}", "script.args '--x': must be a list", ""),
        ('workload: script\nscript: {path: a.py, args: ["a\\0"]}',
         "script.args[0] 'a\\x00': must not hold a NUL character", ""),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_told_in_one_line(
    refusal: Refusal, text: str, line: str, hint: str
) -> None:
    assert refusal(f"name: x\n{text}") == (f"x.yaml: {line}", hint)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "", "-x"])
def test_a_name_must_do_as_a_folder(refusal: Refusal, name: str) -> None:
    assert refusal(f"name: '{name}'") == (
        f"x.yaml: name '{name}': must be letters from A to Z, digits, dots, _ and -, with a letter or digit first: "
        "it names a folder",
        "",
    )


def test_a_name_is_not_the_word_for_the_newest_run(refusal: Refusal) -> None:
    message, _ = refusal("name: latest")
    assert message.startswith("x.yaml: name 'latest': ")
    assert "stands for the newest run" in message


def test_a_name_must_be_there_and_must_fit(refusal: Refusal) -> None:
    assert refusal("ranks: 1") == ("x.yaml: name is missing", "")
    assert refusal(f"name: {'x' * 121}")[0].endswith("must be at most 120 characters long")


def test_a_long_value_is_cut(refusal: Refusal) -> None:
    message, _ = refusal(f"name: x\nranks: {'9' * 100}x")
    assert message == f"x.yaml: ranks '{'9' * 56}...: must be a whole number"


def test_every_fault_has_its_line_and_says_where_it_came_from(refusal: Refusal) -> None:
    assert refusal("nam: x\nray: {placment: pack}", "ranks=two", "ray.timeouts={stop: 1}") == (
        "x.yaml: name is missing\n"
        "--set: ranks 'two': must be a whole number\n"
        "--set: unknown key ray.timeouts.stop\n"
        "x.yaml: unknown key ray.placment\n"
        "x.yaml: unknown key nam",
        "did you mean ray.timeouts.stop_s?; did you mean ray.placement?; did you mean name?",
    )
