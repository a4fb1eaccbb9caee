"""The encoding function against the tokenizer's own, and its rules of truncation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cappy_lightning.errors import InputError
from cappy_lightning.records import Pool
from cappy_lightning.scorer.encoding import PairEncoder
from cappy_lightning.scorer.model import resolve_base

TOKENIZER: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(resolve_base("embedded"))


def encoder(max_length: int = 64, side: str = "left") -> PairEncoder:
    return PairEncoder(TOKENIZER, max_length, side, use_segments=True)


def test_short_pairs_are_encoded_as_the_tokenizer_does(pools: list[Pool]) -> None:
    instructions = [pool.example.instruction for pool in pools[:200]]
    responses = [pool.candidates[0].response for pool in pools[:200]]
    mine = encoder(512).pad(encoder(512).encode(instructions, responses))
    theirs = TOKENIZER(instructions, responses, padding="longest", truncation=False, return_tensors="pt")
    assert mine.keys() == theirs.keys()
    assert all((mine[name] == theirs[name]).all() for name in mine)


def test_pairs_in_the_format_of_roberta_are_encoded_as_its_tokenizer_does(pools: list[Pool]) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [pool.example.instruction for pool in pools[:20]]
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    own = PairEncoder(tokenizer, 512, "left", use_segments=False)
    answers = ["an answer", "", "other", *texts[3:]]
    pairs = own.encode(texts, answers)
    assert [pair.ids for pair in pairs] == tokenizer(texts, answers)["input_ids"]
    assert pairs[1].ids[-3:] == [2, 2, 2]


def test_equal_texts_are_read_once_and_give_equal_pairs() -> None:
    words = " ".join(str(n) for n in range(100))
    pairs = encoder(32).encode([words, "a", words, words], ["yes", "yes", "no", "yes"])
    assert pairs[0] == pairs[3]
    assert pairs == [
        encoder(32).encode([one], [other])[0]
        for one, other in ((words, "yes"), ("a", "yes"), (words, "no"), (words, "yes"))
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_instructions_give_way_at_the_named_end(side: str) -> None:
    words = " ".join(str(n) for n in range(300))
    (pair,) = encoder(32, side).encode([words], ["the answer"])
    text = TOKENIZER.decode(pair.ids)
    assert len(pair.ids) == 32
    assert text.endswith("[SEP] the answer [SEP]")
    assert ("299" in text, " 0 1 2" in text) == ((True, False) if side == "left" else (False, True))


def test_truncation_equals_only_first_of_the_tokenizer() -> None:
    words = " ".join(str(n) for n in range(300))
    for side in ("left", "right"):
        TOKENIZER.truncation_side = side
        theirs = TOKENIZER(words, "the answer", truncation="only_first", max_length=40)["input_ids"]
        assert encoder(40, side).encode([words], ["the answer"])[0].ids == theirs


def test_a_response_too_long_alone_is_cut_at_its_end_and_takes_all_the_room() -> None:
    (pair,) = encoder(16).encode(["question"], [" ".join(str(n) for n in range(100))])
    assert TOKENIZER.decode(pair.ids).startswith("[CLS] [SEP] 0 1 2 3")
    assert len(pair.ids) == 16
    assert pair.cut == len(TOKENIZER.tokenize("question " + " ".join(str(n) for n in range(100)))) - 13


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.text(max_size=100), st.integers(8, 40), st.sampled_from(["left", "right"]))
def test_the_response_is_whole_whenever_it_fits_alone(a: str, b: str, max_length: int, side: str) -> None:
    (pair,) = encoder(max_length, side).encode([a], [b])
    first, second = (
        TOKENIZER(a, add_special_tokens=False)["input_ids"],
        TOKENIZER(b, add_special_tokens=False)["input_ids"],
    )
    room = max_length - 3
    kept = second[:room]
    left = max(0, room - len(kept))
    head = (first[max(0, len(first) - left) :] if side == "left" else first[:left]) if left else []
    assert pair.ids == [TOKENIZER.cls_token_id, *head, TOKENIZER.sep_token_id, *kept, TOKENIZER.sep_token_id]
    assert pair.cut == len(first) + len(second) - len(head) - len(kept)
    assert pair.first == len(head) + 2


def test_a_maximum_length_without_room_is_refused() -> None:
    with pytest.raises(InputError, match=r"scorer.max_length: is 4"):
        encoder(4)
