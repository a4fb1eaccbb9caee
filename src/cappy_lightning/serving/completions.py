"""Completions with a scorer in front: the upstream answers several times, the client gets the best."""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cappy_lightning.answering.stopping import NOTHING, abstains, enough, plan_rounds
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.cappy import Cappy
from cappy_lightning.config import Config
from cappy_lightning.records import Candidate, Example, Pool, Selection
from cappy_lightning.selection.engine import select_by_logits
from cappy_lightning.serving.batching import BatchingScorer
from cappy_lightning.serving.refusals import Refusal, checked_text, invalid
from cappy_lightning.serving.upstream import Body, Reply, Upstream, all_that_come

#: Keys of a body that the service decides.
DECIDED = ("n", "best_of", "stream", "stream_options", "temperature", "top_p")

#: Keys with which the answer is no text that a scorer could judge; such requests are passed on as they are.
NOT_JUDGED = ("tools", "functions", "audio", "echo", "suffix")


@dataclass
class Draft:
    """The candidates of a request so far.

    Attributes:
        replies: of the upstream.
        candidates: the texts in these.
        choices: of the candidates, as the upstream gave them.
        blank: choices without a text.
        known: the logit of each distinct text.
    """

    replies: list[Reply] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    choices: list[Body] = field(default_factory=list)
    blank: list[Body] = field(default_factory=list)
    known: dict[str, float] = field(default_factory=dict)

    def add(self, reply: Reply, decoding: Decoding) -> None:
        """Take the choices of a reply."""
        self.replies.append(reply)
        for choice in reply.choices:
            if text := _text(choice):
                self.candidates.append(Candidate(text, decoding.name))
                self.choices.append(choice)
            else:
                self.blank.append(choice)

    @property
    def logits(self) -> list[float]:
        """Of the candidates."""
        return [self.known[candidate.response] for candidate in self.candidates]

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Of all prompts and all answers; None where the upstream does not say them."""
        known = [reply.tokens for reply in self.replies if reply.tokens]
        if len(known) < len(self.replies):
            return None
        return sum(prompt for prompt, _ in known), sum(written for _, written in known)


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
        chat = path.startswith("chat")
        _check_asked(body, chat)
        if any(body.get(name) for name in NOT_JUDGED):
            return None
        instruction = body.get("instruction")
        if instruction is None:
            instruction = _last_message(body["messages"]) if chat else _prompt(body["prompt"])
            if instruction is None:
                return None
        wanted = 1 if body.get("n") is None else body["n"]
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= self._most:
            raise invalid("n", f"is {json.dumps(wanted)[:40]}, expected 1 to {self._most}")
        return Question(body, checked_text(instruction, "instruction"), wanted, task)

    async def answer(self, path: str, question: Question) -> Body:
        """The upstream's body with the best choices, and beside them `cappy`: scores and candidates.

        Raises:
            Refusal: no candidate could be had.
        """
        draft = await self._sample(path, question)
        self.candidates += len(draft.candidates)
        if not draft.candidates:  # only empty texts, or filtered ones: what the upstream says is the answer
            told: Body = {"score": None, "samples": len(draft.blank), "candidates": []}
            return _envelope(draft.replies[0], draft.blank[: question.wanted], told, draft)
        candidates = tuple(draft.candidates)
        pool = Pool(Example(question.task or "", "", question.instruction), candidates)
        selection, values = await self._scorer.final(pool, select_by_logits(self._cappy, pool, draft.logits))
        order = sorted(range(len(candidates)), key=lambda i: -values[i])
        told = self._told(draft, selection, order)
        if abstains(selection.score, self._config.answer):
            self.abstained += 1
            return await self._unsure(path, question, draft, told)
        return _envelope(draft.replies[0], [draft.choices[i] for i in order[: question.wanted]], told, draft)

    async def _sample(self, path: str, question: Question) -> Draft:
        body = {name: value for name, value in question.body.items() if name not in DECIDED}
        draft = Draft()
        for asked in self._rounds:
            found = await all_that_come(self._upstream.sample(path, body, decoding) for decoding in asked)
            failures = [one for one in found if isinstance(one, Refusal)]
            for decoding, replies in zip(asked, found, strict=True):
                for reply in () if isinstance(replies, Refusal) else replies:
                    draft.add(reply, decoding)
            if failures and not draft.candidates:
                raise failures[0]
            new = [text for text in dict.fromkeys(one.response for one in draft.candidates) if text not in draft.known]
            logits = await self._scorer.logits([(question.instruction, text) for text in new], question.task)
            draft.known |= zip(new, logits, strict=True)
            if failures:  # what there is, is better than nothing
                break
            best = max(self._scorer.scores(draft.logits), default=NOTHING)
            tokens = sum(draft.tokens or ())
            if enough(self._config.answer, best, tokens) and len(draft.candidates) >= question.wanted:
                break
        return draft

    def _told(self, draft: Draft, selection: Selection, order: Sequence[int]) -> Body:
        return {
            "score": selection.score,
            "samples": len(draft.choices) + len(draft.blank),
            "candidates": [{"index": i, "score": selection.scores[i], **draft.candidates[i].to_row()} for i in order],
        }

    async def _unsure(self, path: str, question: Question, draft: Draft, told: Body) -> Body:
        serve, told = self._config.serve, told | {"abstained": True}
        if serve.fallback_model:
            body = {name: value for name, value in question.body.items() if name not in ("stream", "stream_options")}
            with contextlib.suppress(Refusal):  # then it is still known that the answers are not good enough
                reply = await self._upstream.ask(path, body, serve.fallback_model)
                draft.replies.append(reply)
                return _envelope(reply, reply.choices, told | {"fallback": serve.fallback_model}, draft)
        choice: Body = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if path.startswith("chat"):
            choice["message"] = {"role": "assistant", "content": serve.unsure}
        else:
            choice["text"] = serve.unsure
        return _envelope(draft.replies[0], [choice], told, draft)


def _check_asked(body: Body, chat: bool) -> None:
    """Refuse a body without messages or a prompt."""
    if not chat:
        if not isinstance(body.get("prompt"), str | list):
            raise invalid("prompt", "is no text, expected one")
        return
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise invalid("messages", "expected a list of objects with 'role' and 'content'")


def _last_message(messages: Sequence[Body]) -> str | None:
    """The text of the last message of the user; None where it is not text alone."""
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


def _prompt(prompt: str | list[Any]) -> str | None:
    """The text of the prompt; None where there are several, or tokens."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else None


def _text(choice: Body) -> str:
    """What a scorer judges of a choice; empty where there is nothing."""
    if choice.get("finish_reason") == "content_filter":
        return ""
    if "message" in choice:
        content = choice["message"].get("content")
        text = content if isinstance(content, str) else ""
    else:
        text = choice["text"]
    return text.strip().encode(errors="replace").decode()  # a lone surrogate is nothing that a tokenizer takes


def _envelope(reply: Reply, choices: Sequence[Body], told: Body, draft: Draft) -> Body:
    """The body of a reply with other choices, what they have cost all together, and what is told of them."""
    found = reply.body | {"choices": [choice | {"index": place} for place, choice in enumerate(choices)]}
    found.pop("usage", None)
    if tokens := draft.tokens:
        prompt, written = tokens
        found["usage"] = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return found | {"cappy": told}


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
        place = {"index": choice["index"], "logprobs": None, "finish_reason": None}
        content = place | {"logprobs": choice.get("logprobs")}
        end = place | {"finish_reason": choice.get("finish_reason")}
        if chat:
            message = choice["message"]
            said = {name: value for name, value in message.items() if name != "role" and value is not None}
            yield event([place | {"delta": {"role": message.get("role", "assistant"), "content": ""}}])
            yield event([content | {"delta": said}])
            yield event([end | {"delta": {}}], cappy=body["cappy"])
        else:
            yield event([content | {"text": choice["text"]}])
            yield event([end | {"text": ""}], cappy=body["cappy"])
    if usage and "usage" in body:
        yield event([], usage=body["usage"])
    yield "data: [DONE]\n\n"
