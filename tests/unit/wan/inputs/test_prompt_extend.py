"""wan.inputs.prompt_extend with a tiny Qwen2 made on the spot and a stub of the service."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from wan.errors import EXIT_SERVICE, InputError, MediaError, ServiceError
from wan.inputs import prompt_extend
from wan.inputs.prompt_extend import extend_prompt
from wan.spans import listening

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen2 of two layers and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny_qwen")
    alphabet = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(alphabet), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_extend, "MAX_NEW_TOKENS", 16)


def extend(prompt: str = "a cat surfs", **changes: Any) -> str:
    settings: dict[str, Any] = {"method": "local_qwen", "language": "en", "task": "t2v-14B", "seed": 1}
    return extend_prompt(prompt, **{**settings, **changes})


def test_local_model_answers_by_its_seed(tiny_qwen: Path) -> None:
    answers = [extend(model=str(tiny_qwen), seed=seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert answers[0] != "a cat surfs"


def test_random_state_outside_is_untouched(tiny_qwen: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    extend(model=str(tiny_qwen))
    assert torch.equal(torch.rand(3), expected)


def test_span_and_release(tiny_qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    heard, loaded = [], []
    listener = SimpleNamespace(
        enter=lambda name, attributes: heard.append((name, attributes)),
        exit=lambda name, failed: heard.append((name, failed)),
    )
    real_load = prompt_extend._load

    def watched_load(*arguments: Any) -> Any:
        model, tokenizer = real_load(*arguments)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(prompt_extend, "_load", watched_load)
    with listening(listener):
        extend(model=str(tiny_qwen))
    assert heard == [
        ("prompt_extend", {"method": "local_qwen", "model": str(tiny_qwen)}),
        ("prompt_extend", False),
    ]
    assert [reference() for reference in loaded] == [None]


def test_instructions_exist_and_reach_the_model(tiny_qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        (kind, language): prompt_extend._instruction(kind, language)
        for kind in ("t2v", "i2v")
        for language in ("zh", "en")
    }
    assert len(set(texts.values())) == 4
    for (_, language), text in texts.items():
        assert text.isascii() == (language == "en")
    seen = []
    monkeypatch.setattr(
        prompt_extend, "_generate", lambda name, messages, *rest: seen.append(messages) or "x"
    )
    extend(language="zh")
    assert seen == [
        [{"role": "system", "content": texts["t2v", "zh"]}, {"role": "user", "content": "a cat surfs"}]
    ]


@pytest.mark.parametrize(
    ("method", "task", "expected"),
    [
        ("local_qwen", "t2v-1.3B", "Qwen/Qwen2.5-14B-Instruct"),
        ("local_qwen", "vace-14B", "Qwen/Qwen2.5-14B-Instruct"),
        ("local_qwen", "i2v-14B", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("dashscope", "t2i-14B", "qwen-plus"),
        ("dashscope", "flf2v-14B", "qwen-vl-max"),
    ],
)
def test_default_models(monkeypatch: pytest.MonkeyPatch, method: str, task: str, expected: str) -> None:
    names = []
    for ask in ("_ask_local", "_ask_dashscope"):
        monkeypatch.setattr(prompt_extend, ask, lambda name, *rest: names.append(name) or "x")
    extend(method=method, task=task, image=Path("cat.png"))
    assert names == [expected]


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"prompt_extend_model: cannot use .*absent") as caught:
        extend(model=str(tmp_path / "absent"))
    assert caught.value.hint
    assert caught.value.exit_code == EXIT_SERVICE


def test_a_model_without_a_chat_template(tiny_qwen: Path, tmp_path: Path) -> None:
    for file in tiny_qwen.iterdir():
        if "chat_template" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ServiceError, match="chat_template"):
        extend(model=str(tmp_path))


def test_image_tasks(tiny_qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs the image"):
        extend(task="i2v-14B")
    with pytest.raises(MediaError, match="there is no file"):
        extend(task="i2v-14B", model=str(tiny_qwen), image=tmp_path / "absent.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    with pytest.raises(ServiceError, match="cannot see images"):
        extend(task="i2v-14B", model=str(tiny_qwen), image=tmp_path / "cat.png")


def test_large_images_are_made_small_for_the_model(tmp_path: Path) -> None:
    Image.new("RGB", (2016, 1000)).save(tmp_path / "cat.png")
    messages = prompt_extend._messages("do", "a cat", tmp_path / "cat.png")
    picture, text = messages[1]["content"]
    assert picture["image"].size == (1008, 500)
    assert text == {"type": "text", "text": "a cat"}


def test_empty_answers_and_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_extend, "_generate", lambda *arguments: "  \n")
    with pytest.raises(ServiceError, match="gave an empty answer"):
        extend()
    with pytest.raises(InputError, match="prompt_extend_method: 'gpt' is not known"):
        extend(method="gpt")
    with pytest.raises(InputError, match="prompt_extend_target_lang: 'fr' is not known"):
        extend(language="fr")


def stub_service(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    """A module `dashscope` whose calls are kept and answered with `answer` (raised, if an exception)."""
    calls: list[dict[str, Any]] = []

    def call_as(kind: str) -> Any:
        def call(**settings: Any) -> Any:
            calls.append({"kind": kind, **settings})
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(call=call)

    module = SimpleNamespace(Generation=call_as("text"), MultiModalConversation=call_as("image"))
    monkeypatch.setitem(sys.modules, "dashscope", module)
    monkeypatch.setenv("DASH_API_KEY", "secret")
    return calls


def reply(content: Any) -> SimpleNamespace:
    choice = SimpleNamespace(message=SimpleNamespace(content=content))
    return SimpleNamespace(status_code=200, message="", output=SimpleNamespace(choices=[choice]))


def test_service_success(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub_service(monkeypatch, reply(" A cat rides a wave. "))
    assert extend(method="dashscope", seed=2**40 + 3) == "A cat rides a wave."
    messages = [
        {"role": "system", "content": prompt_extend._instruction("t2v", "en")},
        {"role": "user", "content": "a cat surfs"},
    ]
    assert calls == [
        {
            "kind": "text",
            "model": "qwen-plus",
            "api_key": "secret",
            "seed": 3,
            "result_format": "message",
            "messages": messages,
        }
    ]


def test_service_with_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = stub_service(monkeypatch, reply([{"text": "A cat"}, {"text": " waits."}]))
    assert extend(method="dashscope", task="i2v-14B", image=tmp_path / "cat.png") == "A cat waits."
    assert (calls[0]["kind"], calls[0]["model"]) == ("image", "qwen-vl-max")
    assert calls[0]["messages"][1] == {
        "role": "user",
        "content": [{"text": "a cat surfs"}, {"image": (tmp_path / "cat.png").as_uri()}],
    }


def test_service_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_service(monkeypatch, SimpleNamespace(status_code=429, message="too many requests"))
    with pytest.raises(ServiceError, match="status 429: too many requests") as caught:
        extend(method="dashscope")
    assert "DASH_API_KEY" in caught.value.hint
    stub_service(monkeypatch, ConnectionError("no route"))
    with pytest.raises(ServiceError, match="ConnectionError: no route"):
        extend(method="dashscope")


def test_service_without_key_or_package(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_service(monkeypatch, reply("x"))
    monkeypatch.delenv("DASH_API_KEY")
    with pytest.raises(ServiceError, match="DASH_API_KEY is not set"):
        extend(method="dashscope")
    monkeypatch.setitem(sys.modules, "dashscope", None)  # what Python does for "not there"
    with pytest.raises(ServiceError, match="not installed") as caught:
        extend(method="dashscope")
    assert "pip install dashscope" in caught.value.hint


def test_the_seed_is_torch_s_alone(tiny_qwen: Path) -> None:
    random.seed(1)
    first = extend(model=str(tiny_qwen))
    random.seed(2)
    assert extend(model=str(tiny_qwen)) == first
