"""Candidates from a model in this process: sequence-to-sequence (T0, FLAN-T5, BART) or causal."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from cappy_lightning.backbones.backbone import ONLY_EMPTY, Answer, CutAnswers, Request, candidate
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.backbones.prompts import Prompt, stops
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError, first_line
from cappy_lightning.progress import say
from cappy_lightning.records import Candidate
from cappy_lightning.scorer.model import named_failures

#: What a model's own generation config may say beside us: which tokens begin, end and fill.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")


class TransformersBackbone:
    """A Hugging Face model that answers `batch_size` prompts together.

    The model's own decoding defaults (such as top-k 50) are set aside: `sampling` is from the whole
    distribution. Log-likelihoods are those of the model itself, whatever the decoding did to its
    distribution, with the end of the answer.

    Args:
        config: the section `backbone`.

    Raises:
        InputError: the model cannot be loaded, or has no chat template where one is needed.
    """

    def __init__(self, config: BackboneConfig) -> None:
        assert config.model is not None
        self._config, self.group, self._warned = config, config.batch_size, False
        device = config.device
        try:
            self._device = torch.device(
                ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
            )
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise InputError("backbone.device", f"is '{device}' ({first_line(error)})") from None
        self._load(config.model, config.revision)
        if config.chat and not self._tokenizer.chat_template:
            raise InputError("backbone.chat", f"{config.model} has no chat template, expected backbone.chat=false")

    def _load(self, name: str, revision: str | None) -> None:
        source: dict[str, Any] = {"revision": revision} if revision else {}
        path = Path(name)
        if path.suffix == ".gguf":
            name, source = str(path.parent), {"gguf_file": path.name}
        with named_failures(f"backbone.model={self._config.model}"):
            encoder_decoder = AutoConfig.from_pretrained(name, **source).is_encoder_decoder
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, **source)
            kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
            model: Any = kind.from_pretrained(name, dtype="auto", **source)
        self._encoder_decoder = encoder_decoder
        self._tokenizer.padding_side = "right" if encoder_decoder else "left"
        self._tokenizer.truncation_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        own = model.generation_config
        model.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _TOKENS})
        model.generation_config.pad_token_id = self._tokenizer.pad_token_id
        eos = model.generation_config.eos_token_id
        self._last = {eos} if isinstance(eos, int) else set(eos or ())
        self._cut_answers = CutAnswers(self._config.max_tokens)
        self._model: Any = model.to(self._device).eval()

    def refuses(self, decoding: Decoding) -> str | None:
        """None: every decoding can be done."""
        return None

    def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
        """Answer every request with every decoding, a batch of requests at a time."""
        while batch := list(islice(requests, self.group)):
            encoded = self._tokenizer(
                [self._text(request.prompt) for request in batch],
                add_special_tokens=not self._config.chat,  # a chat template writes its own
                truncation=True,
                max_length=self._config.max_prompt_tokens,
                padding=True,
                return_tensors="pt",
            ).to(self._device)
            encoded.pop("token_type_ids", None)
            found: list[list[Candidate]] = [[] for _ in batch]
            lengths = encoded["attention_mask"].sum(dim=1).tolist()
            if max(lengths) >= self._config.max_prompt_tokens and not self._warned:
                self._warned = True
                say("warning: prompts longer than backbone.max_prompt_tokens lose their beginning")
            written = [0] * len(batch)
            for decoding in decodings:
                name = decoding.seed_text(self._config.seed, batch[0].example.id)
                for place, (one, tokens) in enumerate(self._generate(encoded, decoding, name)):
                    written[place // decoding.n] += tokens
                    found[place // decoding.n].append(one)
            for answers, read, made in zip(found, lengths, written, strict=True):
                candidates = tuple(one for one in answers if one.response)
                empty, problem = len(answers) - len(candidates), None if candidates else ONLY_EMPTY
                yield Answer(candidates, int(read) * len(decodings), made, empty, problem)

    def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        return str(self._tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))

    @torch.inference_mode()
    def _generate(self, encoded: Any, decoding: Decoding, seed: str) -> Iterator[tuple[Candidate, int]]:
        """`n` candidates for every prompt, prompt by prompt, each with the tokens that it took."""
        sampled = decoding.beams == 1 and decoding.temperature > 0
        settings: dict[str, Any] = {"do_sample": sampled, "num_beams": decoding.beams}
        if sampled:
            settings |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
        ends = stops(self._config)
        if ends:
            settings |= {"stop_strings": ends, "tokenizer": self._tokenizer}
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(random.Random(seed).randrange(2**31))
            made = self._model.generate(
                **encoded,
                **settings,
                num_return_sequences=decoding.n,
                max_new_tokens=self._config.max_tokens,
                min_new_tokens=self._config.min_tokens or None,
                return_dict_in_generate=True,
                output_logits=True,
            )
        # Of the raw logits: what temperature, top-k and top-p made of them is not the model's likelihood.
        scores = self._model.compute_transition_scores(
            made.sequences, made.logits, getattr(made, "beam_indices", None), normalize_logits=True
        )
        answers = made.sequences[:, made.sequences.shape[1] - scores.shape[1] :]
        for tokens, values in zip(answers.tolist(), scores.float().tolist(), strict=True):
            text, length = self._cut(tokens, ends)
            self._cut_answers.add(length == self._config.max_tokens and not self._ends(tokens, ends))
            yield candidate(text, decoding, values[:length]), length

    def _cut(self, tokens: list[int], ends: list[str]) -> tuple[str, int]:
        """The answer's text without its end, and how many tokens it took, the one that ends it included."""
        length = next((place for place, token in enumerate(tokens, start=1) if token in self._last), len(tokens))
        text = self._decode(tokens[:length])
        if ends and ends[0] in text:
            low, high = 1, length  # the fewest tokens whose text holds the end
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if ends[0] in self._decode(tokens[:middle]) else (middle + 1, high)
            return text.partition(ends[0])[0], low
        return text, length

    def _ends(self, tokens: list[int], ends: list[str]) -> bool:
        """Whether an answer came to its end."""
        return not self._last.isdisjoint(tokens) or bool(ends and ends[0] in self._decode(tokens))

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
