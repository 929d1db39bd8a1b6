"""Who answers a judge's questions: a local model, or a server's chat; what was said is remembered.

Knows questions with a bounded answer, and how engines and servers are asked. Knows no rubric.

    asker = remembered(EngineAsker(folder, settings, None), Path("runs/my/.judgments"))
    asker.ask([Question("Answer 1, 2 or 3: …", choices=("1", "2", "3"))])
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from posttrain.generation import Engine, Request
from posttrain.models.chat import load_tokenizer, render_prompt
from posttrain.models.devices import Device
from posttrain.models.files import context_length
from posttrain.rows import Message, content_id
from posttrain.sampling.openai_client import Client, Unusable, shown
from posttrain.sampling.openai_client import Question as HttpQuestion
from posttrain.sampling.service import open_engine
from posttrain.settings.engines import EngineSettings, OpenAIEngineSettings
from posttrain.settings.judges import EndpointJudge
from posttrain.steps.fingerprint import ContentHashes
from posttrain.tables import json_lines, write_rows

JUDGMENTS = ".judgments"
"""Folder beside the rounds of a run in which answers are remembered."""
AT_ONCE = 512
"""Questions whose answers are committed together."""


class Question(NamedTuple):
    """A question, and the form of its answer: one of some choices, or JSON of a schema."""

    text: str
    choices: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 16


class Asker(Protocol):
    """Answers questions; None where it has no answer."""

    @property
    def identity(self) -> object:
        """What answers depend on, beside the question."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """The answers, in order.

        Raises:
            BadInput: questions of this kind cannot be asked.
            StepFailed: no answer comes any more.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class EngineAsker:
    """A model in an engine of ours; its answers have the form that was asked for."""

    def __init__(
        self, model: Path, settings: EngineSettings, hashes: ContentHashes, device: Device = "auto"
    ) -> None:
        """Nothing is loaded before the first question."""
        decides = settings.model_dump(mode="json", include={"type", "dtype", "quantization"})
        self.identity = [hashes.of(model), decides]
        self._model, self._settings, self._device = model, settings, device
        self._engine: Engine | None = None

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """The answers; None where a question is too long for the model."""
        tokenizer, context = load_tokenizer(self._model), context_length(self._model)
        if not isinstance(self._settings, OpenAIEngineSettings):
            context = min(context, getattr(self._settings, "max_model_len", None) or context)
        requests = []
        for place, one in enumerate(questions):
            messages = (Message(role="user", content=one.text),)
            if len(render_prompt(tokenizer, messages)) + one.max_tokens <= context:
                requests.append(
                    Request(
                        id=str(place),
                        messages=messages,
                        seed=0,
                        temperature=0.0,
                        max_tokens=one.max_tokens,
                        choices=one.choices,
                        json_schema=None if one.schema is None else dict(one.schema),
                    )
                )
        answers: list[str | None] = [None] * len(questions)
        if requests:
            self._engine = self._engine or open_engine(
                self._settings, self._model, None, self._device
            )
            found = self._engine.generate(requests)
            for request, (sample,) in zip(requests, found, strict=True):
                answers[int(request.id)] = sample.text
        return answers

    def close(self) -> None:
        """Give the engine back."""
        if self._engine is not None:
            self._engine.close()


class ChatAsker:
    """A server's chat route; a server that knows no schemas may answer in any form."""

    def __init__(self, settings: EndpointJudge) -> None:
        """Connects to nothing yet.

        Raises:
            BadInput: the url is none, or the variable of the key holds no key.
        """
        self.identity = [settings.url, settings.model]
        self._model = settings.model
        self._client = Client(
            OpenAIEngineSettings(
                type="openai",
                url=settings.url,
                api_key_env=settings.api_key_env,
                concurrency=settings.concurrency,
                timeout_seconds=settings.timeout_seconds,
                retries=settings.retries,
            )
        )

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """What the server says."""
        return self._client.ask(
            [
                HttpQuestion(
                    f"question {place}", "POST", "/chat/completions", self._body(one), _content
                )
                for place, one in enumerate(questions)
            ]
        )

    def close(self) -> None:
        """Nothing to give back."""

    def _body(self, question: Question) -> dict[str, Any]:
        schema = question.schema or {"type": "string", "enum": list(question.choices)}
        form = {"name": "answer", "schema": _object(schema), "strict": True}
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": 0,
            "max_tokens": question.max_tokens + 16,
            "response_format": {"type": "json_schema", "json_schema": form},
        }


class _Remembered:
    """An asker that is asked the same question once."""

    def __init__(self, asker: Asker, folder: Path) -> None:
        self._asker, self._folder = asker, folder
        self.identity = asker.identity
        files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
        self._known = {row["key"]: row["answer"] for file in files for row in json_lines(file)}

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        keys = [content_id([self.identity, one]) for one in questions]
        fresh = {
            key: one for key, one in zip(keys, questions, strict=True) if key not in self._known
        }
        for start in range(0, len(fresh), AT_ONCE):
            part = list(fresh)[start : start + AT_ONCE]
            answers = self._asker.ask([fresh[key] for key in part])
            found = dict(zip(part, answers, strict=True))
            rows = [{"key": key, "answer": answer} for key, answer in found.items()]
            write_rows(self._folder / f"{content_id(part)}.jsonl", rows)
            self._known |= found
        return [self._known[key] for key in keys]

    def close(self) -> None:
        self._asker.close()


def remembered(asker: Asker, folder: Path) -> Asker:
    """The same asker; what it answered lies in a folder, under the question's content."""
    return _Remembered(asker, folder)


def _object(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object, which is all that some servers take."""
    if schema.get("type") == "object":
        return dict(schema)
    return {
        "type": "object",
        "properties": {"answer": dict(schema)},
        "required": ["answer"],
        "additionalProperties": False,
    }


def _content(body: bytes) -> str | None:
    """The text of a chat answer; what was wrapped in an object is unwrapped."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise Unusable(f"no chat completion: {shown(body)}") from None
    if not isinstance(text, str):
        return None
    try:
        data = json.loads(text)
    except ValueError:
        return text
    inner = data.get("answer") if isinstance(data, dict) and set(data) == {"answer"} else None
    return inner if isinstance(inner, str) else text
