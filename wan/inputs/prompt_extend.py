"""Lets a language model turn a short prompt into a detailed one, like those that Wan was trained on.

    extend_prompt("a cat surfs", method="local_qwen", task="t2v-14B", language="en", seed=7, device="cuda")

local_qwen runs a Qwen model here, and frees it before returning; dashscope asks Alibaba's service (package `dashscope`,
key in DASH_API_KEY). The instructions to the model are in prompts/<kind>.<language>.txt. A call that fails raises an
error: the original prompt is never returned as an extended one. Nothing is written to disk.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from wan.config import Language, Method
from wan.errors import InputError, ServiceError
from wan.inputs.media import open_image
from wan.spans import span

Kind = Literal["t2v", "i2v"]

API_KEY = "DASH_API_KEY"
MAX_NEW_TOKENS = 512
# A vision model makes a token of every 28 x 28 pixels: an image with sides of this length makes at most 1,296 tokens.
MAX_IMAGE_SIDE = 1008

DEFAULT_MODELS: dict[tuple[Method, Kind], str] = {
    ("local_qwen", "t2v"): "Qwen/Qwen2.5-14B-Instruct",
    ("local_qwen", "i2v"): "Qwen/Qwen2.5-VL-7B-Instruct",
    ("dashscope", "t2v"): "qwen-plus",
    ("dashscope", "i2v"): "qwen-vl-max",
}


def extend_prompt(
    prompt: str,
    *,
    method: Method,
    model: str | None = None,
    language: Language = "zh",
    task: str,
    image: Path | None = None,
    seed: int,
    device: torch.device | str = "cpu",
) -> str:
    """The prompt to use instead of `prompt`, in `language`.

    Args:
        prompt: what the user wrote.
        method: who extends it.
        model: a folder, a hub name or a service model; None takes DEFAULT_MODELS.
        language: of the answer.
        task: name of the task; i2v and flf2v describe what they see in `image`, the others ignore it.
        image: the first frame.
        seed: same model, prompt and seed give the same answer (local_qwen; the service does not promise it).
        device: where a local model runs; all of its memory is given back.

    Raises:
        InputError: unknown method or language, or an image task without an image.
        ServiceError: model, package, key or service missing or failing, or an empty answer.
    """
    kind: Kind = "i2v" if task.startswith(("i2v", "flf2v")) else "t2v"
    _check(method, language, kind, image)
    name = model or DEFAULT_MODELS[method, kind]
    picture = image if kind == "i2v" else None
    instruction = _instruction(kind, language)
    with span("prompt_extend", method=method, model=name):
        if method == "dashscope":
            answer = _ask_dashscope(name, instruction, prompt, picture, seed)
        else:
            answer = _ask_local(name, instruction, prompt, picture, seed, torch.device(device))
    if not answer.strip():
        raise ServiceError(f"{method}: model {name} gave an empty answer", hint="try another seed or model")
    return answer.strip()


def _check(method: str, language: str, kind: Kind, image: Path | None) -> None:
    for key, value, known in (
        ("prompt_extend_method", method, get_args(Method)),
        ("prompt_extend_target_lang", language, get_args(Language)),
    ):
        if value not in known:
            raise InputError(f"{key}: {value!r} is not known", hint=f"use one of {', '.join(known)}")
    if kind == "i2v" and image is None:
        raise InputError(
            "prompt extension of an image task needs the image",
            hint="give the image, or do not extend the prompt",
        )


def _instruction(kind: Kind, language: Language) -> str:
    folder = Path(__file__).parent / "prompts"
    return (folder / f"{kind}.{language}.txt").read_text(encoding="utf-8").strip()


# --- a model on this machine


def _ask_local(
    name: str, instruction: str, prompt: str, image: Path | None, seed: int, device: torch.device
) -> str:
    messages = _messages(instruction, prompt, image)
    try:
        # A function of its own: when it has returned, its model is gone and the memory can be given back.
        return _generate(name, messages, image is not None, seed, device)
    except (OSError, ValueError) as error:
        # transformers raises these for a name it cannot find or reach, and for a folder it cannot use.
        first_line = str(error).strip().partition("\n")[0]
        raise ServiceError(
            f"prompt_extend_model: cannot use {name}: {first_line}",
            hint="give a folder with a Qwen instruct model, or a hub name and a connection",
        ) from error
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _messages(instruction: str, prompt: str, image: Path | None) -> list[dict[str, Any]]:
    if image is None:
        return [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]
    picture = open_image(image)
    picture.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    return [
        {"role": "system", "content": [{"type": "text", "text": instruction}]},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]},
    ]


def _generate(
    name: str, messages: list[dict[str, Any]], with_image: bool, seed: int, device: torch.device
) -> str:
    model, tokenizer = _load(name, with_image)
    model.to(device).eval()
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(device)
    with _seeded(seed, device), torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=True)
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def _load(name: str, with_image: bool) -> tuple[Any, Any]:
    """The model, on the CPU in its file's precision, and its tokenizer (a vision model's: its processor)."""
    import transformers

    sees = hasattr(transformers.AutoConfig.from_pretrained(name), "vision_config")
    if with_image and not sees:
        raise ServiceError(
            f"prompt_extend_model: {name} cannot see images, which this task extends from",
            hint=f"use a vision model such as {DEFAULT_MODELS['local_qwen', 'i2v']}",
        )
    if sees:
        model = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        return model, transformers.AutoProcessor.from_pretrained(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    return transformers.AutoModelForCausalLM.from_pretrained(name, dtype="auto"), tokenizer


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Sampling inside the block depends on `seed` alone; random generators outside are not changed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


# --- Alibaba's service


def _ask_dashscope(name: str, instruction: str, prompt: str, image: Path | None, seed: int) -> str:
    dashscope = _import_dashscope()
    key = os.environ.get(API_KEY)
    if not key:
        raise ServiceError(
            f"dashscope: the environment variable {API_KEY} is not set", hint=f"export {API_KEY}=..."
        )
    settings = {"model": name, "api_key": key, "seed": seed % 2**31, "result_format": "message"}
    call = dashscope.Generation.call if image is None else dashscope.MultiModalConversation.call
    try:
        response = call(messages=_service_messages(instruction, prompt, image), **settings)
    except Exception as error:  # the package's network and argument errors share no base class
        raise ServiceError(
            f"dashscope: the call to {name} failed: {type(error).__name__}: {error}",
            hint="check the connection, or use method local_qwen",
        ) from error
    if response.status_code != HTTPStatus.OK:
        raise ServiceError(
            f"dashscope: {name} answered status {response.status_code}: {response.message}",
            hint=f"check {API_KEY}, the model name and the quota of the account",
        )
    return _text_of(response.output.choices[0].message.content)


def _import_dashscope() -> Any:
    try:
        import dashscope
    except ImportError as error:
        raise ServiceError(
            "dashscope: the package is not installed", hint="pip install dashscope, or use method local_qwen"
        ) from error
    return dashscope


def _service_messages(instruction: str, prompt: str, image: Path | None) -> list[dict[str, Any]]:
    if image is None:
        return _messages(instruction, prompt, None)
    user = [{"text": prompt}, {"image": image.resolve().as_uri()}]
    return [{"role": "system", "content": [{"text": instruction}]}, {"role": "user", "content": user}]


def _text_of(content: str | list[dict[str, str]]) -> str:
    """A text model answers with a string, a vision model with a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
