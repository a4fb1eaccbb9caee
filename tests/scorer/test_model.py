"""Building scorers: architectures, heads, activations and refusals."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from sentence_transformers import CrossEncoder
from small_models import ARCHITECTURES, SMALL, settings
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cappy_lightning import Cappy
from cappy_lightning.config import FinetuneConfig, ScorerConfig
from cappy_lightning.errors import InputError
from cappy_lightning.scorer.adapter import add_adapter, save_adapter
from cappy_lightning.scorer.architectures import depth, head_names, in_head
from cappy_lightning.scorer.model import begin_at_mean, build_scorer, resolve_base

PAIRS = [("what is this " * n, "an answer " * (n % 3 + 1)) for n in range(1, 12)]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_head_is_every_parameter_outside_the_encoder(model_type: str) -> None:
    scorer = build_scorer(settings(model_type))
    names = [name for name, _ in scorer.model.named_parameters()]
    head = {name for name in names if in_head(name, head_names(model_type))}
    encoder = {name for name in names if name.startswith(f"{scorer.model.base_model_prefix}.")}
    assert set(names) == head | encoder
    assert {name for name in head & encoder if ".pooler." not in name} == set()
    assert len(head) < len(names) / 2


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_new_head_begins_at_the_mean_score(model_type: str, activation: str) -> None:
    torch.manual_seed(0)
    scorer = build_scorer(settings(model_type, activation=activation))
    assert scorer.new_head
    before = Cappy(scorer).logits(PAIRS)
    begin_at_mean(scorer, 0.2)
    after = Cappy(scorer).logits(PAIRS)
    moved = np.log(0.25) if activation == "sigmoid" else 0.2
    assert np.allclose(after - before, moved, atol=1e-5)  # the bias was 0
    for extreme in (0.0, 1.0):
        begin_at_mean(scorer, extreme)
        assert np.isfinite(Cappy(scorer).logits(PAIRS)).all()


@pytest.mark.parametrize("mode", ["lora", "head", "layers"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_adapter_trains_the_head_whole_and_survives_a_reload(model_type: str, mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = Cappy(build_scorer(settings(model_type)))
    base.save_pretrained(tmp_path / "base")
    scorer = build_scorer(ScorerConfig(base=str(tmp_path / "base"), max_length=64))
    stored = add_adapter(scorer, FinetuneConfig(mode=mode, lora_rank=4, layers=1))
    trained = [name for name, p in scorer.model.named_parameters() if p.requires_grad]
    heads = head_names(model_type)
    assert not any("lora" in name and in_head(name, heads) for name in trained)
    whole = {name for name, _ in base.scorer.model.named_parameters() if in_head(name, heads)}
    if mode == "layers":
        whole |= {name for name, _ in base.scorer.model.named_parameters() if depth(name, scorer.config) == 1}
    assert len([name for name in trained if "lora" not in name]) == len(whole)
    assert any("lora" in name for name in trained) == (mode == "lora")
    with torch.no_grad():
        for name, parameter in scorer.model.named_parameters():
            if name in trained:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(scorer, stored, tmp_path / "adapter")
    loaded = Cappy.from_pretrained(tmp_path / "adapter")
    assert np.abs(loaded.score(PAIRS) - Cappy(scorer).score(PAIRS)).max() <= 1e-5
    assert np.abs(loaded.score(PAIRS) - base.score(PAIRS)).max() > 1e-3
    bare = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    plain = PeftModel.from_pretrained(bare, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    with torch.inference_mode():
        logits = [float(plain(**tokenizer(*pair, return_tensors="pt")).logits) for pair in PAIRS]
    assert np.abs(loaded.logits(PAIRS) - logits).max() <= 1e-5
    loaded.save_pretrained(tmp_path / "merged")
    assert np.abs(Cappy.from_pretrained(tmp_path / "merged").score(PAIRS) - loaded.score(PAIRS)).max() <= 1e-5
    assert np.abs(loaded.score(PAIRS) - CrossEncoder(str(tmp_path / "merged")).predict(PAIRS)).max() <= 1e-5


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_scores_do_not_depend_on_the_batch(model_type: str) -> None:
    cappy = Cappy(build_scorer(settings(model_type)))
    together = cappy.logits(PAIRS)
    alone = np.concatenate([cappy.logits([pair]) for pair in PAIRS])
    assert np.abs(together - alone).max() <= 1e-5


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_dropout_can_be_set_for_the_whole_model(model_type: str) -> None:
    def spread(share: float) -> float:
        scorer = build_scorer(settings(model_type, dropout=share))
        inputs = scorer.encoder.pad(scorer.encoder.encode(*map(list, zip(*PAIRS, strict=True))))
        scorer.model.train()
        with torch.no_grad():
            return float((scorer.logits(inputs) - scorer.logits(inputs)).abs().max())

    assert spread(0.0) == 0
    assert spread(0.5) > 0


def save_plain(directory: Path, **changes: object) -> Path:
    """A one-logit checkpoint as another library would leave it: nothing says how to read the logit."""
    config = AutoConfig.for_model("bert", **SMALL, max_position_embeddings=128, num_labels=1, **changes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(resolve_base("embedded")).save_pretrained(directory)
    return directory


def test_a_checkpoint_that_does_not_say_its_activation_must_be_told(tmp_path: Path) -> None:
    path = save_plain(tmp_path)
    with pytest.raises(InputError, match=r"scorer.activation: .* does not say how its logit is to be read"):
        Cappy.from_pretrained(path, max_length=64)
    linear = Cappy.from_pretrained(path, max_length=64, activation="identity")
    logits = linear.logits(PAIRS)
    assert (linear.score(PAIRS) == np.clip(logits, 0, 1)).all()
    sigmoid = Cappy.from_pretrained(path, max_length=64, activation="sigmoid")
    assert np.allclose(sigmoid.score(PAIRS), 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_the_saved_scorer_remembers_activation_and_encoding(tmp_path: Path) -> None:
    linear = Cappy.from_pretrained(save_plain(tmp_path / "plain"), max_length=40, activation="identity")
    linear.save_pretrained(tmp_path / "saved")
    loaded = Cappy.from_pretrained(tmp_path / "saved")
    assert loaded.scorer.encoding_settings() == linear.scorer.encoding_settings()
    assert loaded.scorer.activation == "identity"
    assert (loaded.logits(PAIRS) == linear.logits(PAIRS)).all()


def test_what_was_rounded_is_not_saved(tmp_path: Path) -> None:
    save_plain(tmp_path / "plain")
    rounded = Cappy.from_pretrained(tmp_path / "plain", max_length=40, activation="identity", dtype="bfloat16")
    with pytest.raises(InputError, match="plain: was loaded as bfloat16, expected float32 to be saved"):
        rounded.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_loading_leaves_the_loggers_of_the_program_as_they_were(tmp_path: Path) -> None:
    logger = logging.getLogger("huggingface_hub")
    before = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.INFO)
    transformers.utils.logging.enable_progress_bar()
    Cappy.from_pretrained(save_plain(tmp_path), max_length=40, activation="identity")
    assert (logger.level, transformers.utils.logging.is_progress_bar_enabled()) == (logging.INFO, True)
    logger.setLevel(before[0])
    if not before[1]:
        transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"device": "cuda:99"}, "device: cuda:99 cannot be used ("),
        ({"device": "abacus"}, "device: abacus cannot be used ("),
        ({"max_length": "12"}, "max_length: is '12', expected a whole number"),
        ({"max_length": 0}, "scorer.max_length: is 0, expected room for text"),
        ({"revision": "v1"}, "revision: is v1, but "),
        ({"adapter": {}}, "adapter: is empty, expected an adapter for each task"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as error:
        Cappy.from_pretrained(save_plain(tmp_path), **{"max_length": 40, "activation": "identity"} | settings)
    assert str(error.value).startswith(problem)


def test_a_classifier_of_three_classes_is_no_scorer(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bert", **SMALL, max_position_embeddings=128, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve_base("embedded")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no trained head of one output \(classifier\.bias has another shape\)"):
        Cappy.from_pretrained(tmp_path, max_length=40)


def test_pairs_can_come_in_whatever_form_programs_have_them(tmp_path: Path) -> None:
    cappy = Cappy.from_pretrained(save_plain(tmp_path), max_length=40, activation="sigmoid")
    pairs = [("a question", "yes"), ("a question", "no"), ("another", "yes")]
    expected = cappy.score(pairs)
    for form in ([list(pair) for pair in pairs], iter(pairs), np.array(pairs)):
        assert (cappy.score(form) == expected).all()
    assert cappy.score([]).shape == (0,)
    responses, best = ["yes", "no"], cappy.select("a question", ["yes", "no"])
    for some in (iter(responses), np.array(responses)):
        assert cappy.select("a question", some) == best
    assert cappy.rank("a question", iter(responses)) == cappy.rank("a question", responses)
    (found,) = cappy.classify(np.array(["a question"]), np.array(responses))
    assert (found.response, found.task) == (best.response, None)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda cappy: cappy.score(("yo", "no")), "pairs[0]: is 'yo', expected an instruction and a response"),
        (lambda cappy: cappy.score([("a", "b"), ("c",)]), "pairs[1]: is \"('c',)\", expected an instruction"),
        (lambda cappy: cappy.score([("a", None)]), "pairs[0]: None is NoneType, expected a text"),
        (lambda cappy: cappy.score([("a", "\ud800")]), "pairs[0]: is not Unicode text"),
        (lambda cappy: cappy.select("q", "yes"), "responses: are one text, expected a list of texts"),
        (lambda cappy: cappy.rank("q", "yes"), "responses: are one text, expected a list of texts"),
        (lambda cappy: cappy.select("q", ["a", 3]), "responses[1]: 3 is int, expected a text"),
        (lambda cappy: cappy.classify(["a", None], ["b"]), "texts[1]: None is NoneType, expected a text"),
        (lambda cappy: cappy.answer("q", shots=("ab", "cd")), "shots[0]: is 'ab', expected an instruction"),
    ],
)
def test_what_is_no_pair_of_texts_is_refused_by_its_place(
    tmp_path: Path, call: Callable[[Cappy], Any], problem: str
) -> None:
    cappy = Cappy.from_pretrained(save_plain(tmp_path), max_length=40, activation="sigmoid")
    with pytest.raises(InputError) as error:
        call(cappy)
    assert str(error.value).startswith(problem)


def test_a_bare_encoder_has_no_scores() -> None:
    with pytest.raises(InputError, match="embedded: has no trained head"):
        Cappy.from_pretrained("embedded")


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "electra", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=30522
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve_base("embedded")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is of the architecture 'electra', expected one of bert, deberta"):
        build_scorer(ScorerConfig(base=str(tmp_path), max_length=64))


def test_a_maximum_length_beyond_the_positions_is_refused() -> None:
    # 130 positions, of which RoBERTa's begin behind the padding index (0 with this tokenizer).
    assert build_scorer(settings("roberta", max_length=129)).encoder.max_length == 129
    with pytest.raises(InputError, match=r"scorer.max_length: is 130, expected at most 129"):
        build_scorer(settings("roberta", max_length=130))


def test_the_embedded_tokenizer_does_not_truncate_or_pad_by_itself() -> None:
    scorer = build_scorer(ScorerConfig(max_length=512))
    (short,), (long,) = scorer.encoder.encode(["a"], ["b"]), scorer.encoder.encode(["a " * 300], ["b"])
    assert len(short.ids) == 5
    assert len(long.ids) == 304


def test_select_and_rank_agree_and_ties_keep_their_order(lora_run: Path) -> None:
    cappy = Cappy.from_pretrained(lora_run / "adapter")
    responses = ["thank you: rug", "late delivery: rug", "thank you: rug", "cancel order: rug"]
    selection, ranking = (
        cappy.select("Message: where is my rug?\nSubject:", responses),
        cappy.rank("Message: where is my rug?\nSubject:", responses),
    )
    assert (selection.index, selection.response, selection.score) == (
        ranking[0].index,
        ranking[0].response,
        ranking[0].score,
    )
    assert sorted(r.index for r in ranking) == [0, 1, 2, 3]
    assert [r.index for r in ranking if r.response == "thank you: rug"] == [0, 2]
    assert [r.score for r in ranking] == sorted((r.score for r in ranking), reverse=True)
    with pytest.raises(InputError, match="responses: are empty"):
        cappy.select("x", [])
