"""Completions with a scorer in front: the upstream answers several times, the client gets the best."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cappy_lightning.answering.stopping import abstains, plan_rounds
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.cappy import Cappy
from cappy_lightning.config import Config
from cappy_lightning.records import Candidate, Example, Pool, Selection
from cappy_lightning.scorer.inference import Pair
from cappy_lightning.selection.engine import select_by_logits
from cappy_lightning.serving.batching import BatchingScorer
from cappy_lightning.serving.refusals import Refusal, checked_text, invalid
from cappy_lightning.serving.upstream import Body, Reply, Upstream

#: Keys of a body that the service decides, or that are its own.
DECIDED = ("n", "best_of", "stream", "stream_options", "temperature", "top_p", "instruction")

#: Keys with which the answer is no text that a scorer could judge; such requests are passed on as they are.
NOT_JUDGED = ("tools", "functions", "audio", "echo", "suffix")


@dataclass
class Draft:
    """The candidates of a request so far.

    Attributes:
        replies: of the upstream.
        candidates: the texts in these.
        logits: of the candidates.
        choices: of the candidates, as the upstream gave them.
        blank: choices without a text.
    """

    replies: list[Reply] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)
    choices: list[Body] = field(default_factory=list)
    blank: list[Body] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, int]:
        """Of all prompts and all answers."""
        return sum(one.tokens[0] for one in self.replies), sum(one.tokens[1] for one in self.replies)


@dataclass(frozen=True)
class Question:
    """A request, understood.

    Attributes:
        body: as it came.
        instruction: what the scorer reads.
        wanted: how many choices the client gets, the best first.
        task: whose adapter scores.
    """

    body: Body
    instruction: str
    wanted: int
    task: str | None


class Completions:
    """Answers requests for completions, in a chat or plain.

    Args:
        cappy: who chooses.
        scorer: the same, for the event loop.
        upstream: who answers.
        config: whose sections `answer` and `serve` are used.
        decodings: of the candidates.

    Attributes:
        candidates: sampled so far.
        abstained: how many answers were not good enough.
    """

    def __init__(
        self, cappy: Cappy, scorer: BatchingScorer, upstream: Upstream, config: Config, decodings: Sequence[Decoding]
    ) -> None:
        self._cappy, self._scorer, self._upstream, self._config = cappy, scorer, upstream, config
        adaptive = config.answer.stop is not None or config.answer.budget_tokens is not None
        self._most = sum(decoding.n for decoding in decodings)
        self._rounds = plan_rounds(decodings, config.answer.step if adaptive else self._most)
        self.candidates = self.abstained = 0

    def understand(self, path: str, body: Body, task: str | None) -> Question | None:
        """What is asked; None where a scorer cannot judge the answers.

        Raises:
            Refusal: the request makes no sense.
        """
        if any(body.get(name) for name in NOT_JUDGED):
            return None
        wanted = body.get("n", 1)
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= self._most:
            raise invalid("n", f"is {json.dumps(wanted)[:40]}, expected 1 to {self._most}")
        instruction = body.get("instruction")
        if instruction is None:
            instruction = _last_message(body) if path.startswith("chat") else _prompt(body)
            if instruction is None:
                return None
        return Question(body, checked_text(instruction, "instruction"), wanted, task)

    async def answer(self, path: str, question: Question) -> Body:
        """The upstream's body with the best choices, and beside them `cappy`: scores and candidates.

        Raises:
            Refusal: no candidate could be had.
        """
        draft = await self._sample(path, question)
        self.candidates += len(draft.candidates)
        if not draft.candidates:  # only empty texts, or filtered ones: what the upstream says is the answer
            return _envelope(draft, draft.blank[: question.wanted], {"samples": len(draft.blank)})
        candidates = tuple(draft.candidates)
        pool = Pool(Example(question.task or "", "", question.instruction), candidates)
        selection, values = self._cappy.final(pool, select_by_logits(self._cappy, pool, draft.logits))
        order = sorted(range(len(candidates)), key=lambda i: -values[i])
        told = self._told(draft, selection, order)
        if abstains(selection.score, self._config.answer):
            self.abstained += 1
            return await self._unsure(path, question, draft, told)
        return _envelope(draft, [draft.choices[i] for i in order[: question.wanted]], told)

    async def _sample(self, path: str, question: Question) -> Draft:
        body = {name: value for name, value in question.body.items() if name not in DECIDED}
        draft, limits = Draft(), self._config.answer
        for asked in self._rounds:
            found = await asyncio.gather(
                *(self._upstream.sample(path, body, decoding) for decoding in asked), return_exceptions=True
            )
            failures = [one for one in found if isinstance(one, BaseException)]
            if any(not isinstance(one, Refusal) for one in failures):
                raise next(one for one in failures if not isinstance(one, Refusal))
            new: list[Pair] = []
            for decoding, replies in zip(asked, found, strict=True):
                for reply in () if isinstance(replies, BaseException) else replies:
                    draft.replies.append(reply)
                    for choice in reply.choices:
                        if text := _text(choice):
                            draft.candidates.append(Candidate(text, decoding.name))
                            draft.choices.append(choice)
                            new.append((question.instruction, text))
                        else:
                            draft.blank.append(choice)
            draft.logits += await self._scorer.logits(new, question.task)
            if failures and not draft.candidates:
                raise failures[0]
            if failures:  # what there is, is better than nothing
                break
            best = max(self._scorer.scores(draft.logits), default=0.0)
            enough = limits.stop is not None and best >= limits.stop
            spent = limits.budget_tokens is not None and sum(draft.tokens) >= limits.budget_tokens
            if (enough or spent) and len(draft.candidates) >= question.wanted:
                break
        return draft

    def _told(self, draft: Draft, selection: Selection, order: Sequence[int]) -> Body:
        return {
            "score": selection.score,
            "samples": len(draft.choices) + len(draft.blank),
            "candidates": [{"index": i, "score": selection.scores[i], **draft.candidates[i].to_row()} for i in order],
        }

    async def _unsure(self, path: str, question: Question, draft: Draft, told: Body) -> Body:
        serve = self._config.serve
        if serve.fallback_model:
            body = {name: value for name, value in question.body.items() if name not in ("stream", "stream_options")}
            reply = await self._upstream.ask(path, body, serve.fallback_model)
            draft.replies.append(reply)
            return _envelope(draft, reply.choices, told | {"abstained": True, "fallback": serve.fallback_model})
        choice: Body = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if path.startswith("chat"):
            choice["message"] = {"role": "assistant", "content": serve.unsure}
        else:
            choice["text"] = serve.unsure
        return _envelope(draft, [choice], told | {"abstained": True})


def _last_message(body: Body) -> str | None:
    """The text of the last message of the user; None where it is not text alone."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise invalid("messages", "expected a list of objects with 'role' and 'content'")
    last = next((one for one in reversed(messages) if one.get("role") == "user"), None)
    if last is None:
        raise invalid("messages", "have none of the role user, expected one")
    content = last.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(str(part.get("text")) for part in parts) if len(parts) == len(content) else None
    if not isinstance(content, str):
        raise invalid("messages", "the last one of the user has no content, expected a text")
    return content


def _prompt(body: Body) -> str | None:
    """The prompt; None where there are several, or tokens."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return prompt[0] if len(prompt) == 1 and isinstance(prompt[0], str) else None
    if not isinstance(prompt, str):
        raise invalid("prompt", "is no text, expected one")
    return prompt


def _text(choice: Body) -> str:
    """What a scorer judges of a choice; empty where there is nothing."""
    if choice.get("finish_reason") == "content_filter":
        return ""
    if "message" in choice:
        message = choice["message"]
        content = message.get("content") if isinstance(message, dict) else None
        text = content if isinstance(content, str) else ""
    else:
        text = str(choice["text"])
    return text.strip().encode(errors="replace").decode()  # a lone surrogate is nothing that a tokenizer takes


def _envelope(draft: Draft, choices: Sequence[Body], told: Body) -> Body:
    prompt, written = draft.tokens
    return {
        **draft.replies[0].body,
        "choices": [choice | {"index": place} for place, choice in enumerate(choices)],
        # What it has cost, not what is shown.
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
        "cappy": told,
    }


async def as_stream(path: str, body: Body, usage: bool) -> AsyncIterator[str]:
    """A finished answer as the events that a client of a stream expects.

    Args:
        path: `chat/completions` or `completions`.
        body: the answer.
        usage: whether the client wants to know the tokens.
    """
    chat = path.startswith("chat")
    rest: Body = {name: body[name] for name in ("id", "created", "model", "system_fingerprint") if name in body}
    rest["object"] = "chat.completion.chunk" if chat else "text_completion"

    def event(choices: Sequence[Body], **more: Any) -> str:
        return f"data: {json.dumps(rest | {'choices': list(choices)} | more)}\n\n"

    for choice in body["choices"]:
        index = {"index": choice["index"], "logprobs": choice.get("logprobs"), "finish_reason": None}
        end = {"index": choice["index"], "finish_reason": choice.get("finish_reason")}
        if chat:
            message = choice["message"]
            yield event([index | {"delta": {"role": message.get("role", "assistant"), "content": ""}}])
            yield event([index | {"delta": {"content": message.get("content")}}])
            yield event([end | {"delta": {}}], cappy=body["cappy"])
        else:
            yield event([index | {"text": choice["text"]}])
            yield event([end | {"text": ""}], cappy=body["cappy"])
    if usage:
        yield event([], usage=body["usage"])
    yield "data: [DONE]\n\n"
