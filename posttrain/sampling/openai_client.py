"""Asks an HTTP server many things at a time, and again where it could not answer.

Knows HTTP, pauses between tries, and which refusals are final. Knows nothing of models: how an
answer is read comes with the question. The only file that imports httpx2.

    client = Client(OpenAIEngineSettings(url="http://localhost:8000/v1"))
    client.ask([Question("p1", "POST", "/completions", {"prompt": [1, 2]}, read)])
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

import httpx2

from posttrain.errors import BadInput, StepFailed
from posttrain.rows import stable_seed
from posttrain.settings.engines import OpenAIEngineSettings

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
CONNECT_SECONDS = 30.0
# Servers close a connection that rested for a few seconds, uvicorn after 5; closing it first saves
# the try that would meet a closed one.
IDLE_SECONDS = 2.0
SHOWN_CHARACTERS = 200
# Timeout, conflict, too early, too many; every status from 500 on as well.
RETRIED_STATUSES = frozenset({408, 409, 425, 429})
_KEY_HINT = "; name the variable that holds its key as engine.api_key_env"
HINTS = {
    401: _KEY_HINT,
    403: _KEY_HINT,
    404: "; vLLM's url ends in /v1, and engine.model is a name that it serves",
}

T = TypeVar("T")


class Unusable(Exception):
    """An answer that makes no sense, with the reason; asking again may help."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """One thing to ask, and how its answer is read."""

    name: str
    """What an error calls it."""
    method: str
    path: str
    """Below the settings' url, or a whole url."""
    body: Mapping[str, Any] | None
    read: Callable[[bytes], T]
    """Takes the body of an answer with status 200; raises Unusable to have it asked again."""


class Client:
    """Asks one server."""

    def __init__(self, settings: OpenAIEngineSettings) -> None:
        """Connects to nothing yet.

        Raises:
            BadInput: the url is none, or the variable of the key is not set or holds no key.
        """
        self._settings = settings
        self.url = settings.url.rstrip("/")
        self._headers = (
            {"Authorization": f"Bearer {_key(settings)}"} if settings.api_key_env else {}
        )
        try:
            httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise BadInput(f"engine.url: {settings.url} is no url ({error})") from None

    def ask(self, questions: Sequence[Question[T]]) -> list[T]:
        """The answers, in the questions' order; `concurrency` questions are out at a time.

        The first failure cancels every other question, which makes vLLM stop working on it.

        Raises:
            BadInput: the server refused a question.
            StepFailed: a question stayed without a usable answer after all tries.
        """
        return asyncio.run(self._ask_all(questions))

    async def _ask_all(self, questions: Sequence[Question[T]]) -> list[T]:
        settings = self._settings
        free = asyncio.Semaphore(settings.concurrency)
        async with httpx2.AsyncClient(
            headers=self._headers,
            # A whole try is timed below.
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(
                max_connections=settings.concurrency, keepalive_expiry=IDLE_SECONDS
            ),
        ) as http:

            async def one(question: Question[T]) -> T:
                async with free:
                    return await self._ask(http, question)

            tasks = [asyncio.create_task(one(question)) for question in questions]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, http: httpx2.AsyncClient, question: Question[T]) -> T:
        tries = 1 + self._settings.retries
        url = question.path if "://" in question.path else self.url + question.path
        reason = ""
        for number in range(tries):
            told = 0.0
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    answer = await http.request(question.method, url, json=question.body)
                if answer.status_code == 200:
                    return question.read(answer.content)
                if answer.status_code < 500 and answer.status_code not in RETRIED_STATUSES:
                    raise BadInput(f"{url} refused {question.name}: {_said(answer)}")
                reason, told = _said(answer), _retry_after(answer)
            except TimeoutError:
                reason = f"no answer within {self._settings.timeout_seconds:g} s"
            except httpx2.RequestError as error:
                reason = f"{type(error).__name__} {error}".strip()
            except Unusable as error:
                reason = str(error)
            if number + 1 < tries:
                told = min(told, self._settings.timeout_seconds)
                await asyncio.sleep(max(told, pause_seconds(question.name, number)))
        raise StepFailed(
            f"{url} did not answer {question.name} in {tries} tries; the last time: {reason}; "
            "what was answered before is kept: see to the server and run the same command again"
        )


def pause_seconds(name: str, number: int) -> float:
    """The pause after try `number` (from 0): doubling, spread by the question's name alone."""
    spread = 0.75 + stable_seed(name, number) / 2**32
    return spread * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(number, 32))


def shown(content: bytes) -> str:
    """The start of an answer, in one line."""
    return " ".join(content.decode(errors="replace").split())[:SHOWN_CHARACTERS] or "nothing"


def _said(answer: httpx2.Response) -> str:
    message = shown(answer.content)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        message = str(json.loads(answer.content)["error"]["message"])
    hint = HINTS.get(answer.status_code, "")
    return f"HTTP {answer.status_code}: {' '.join(message.split())}{hint}"


def _retry_after(answer: httpx2.Response) -> float:
    """Seconds that the server wants to be left alone; 0 where it does not say."""
    value = answer.headers.get("Retry-After", "")
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _key(settings: OpenAIEngineSettings) -> str:
    key = os.environ.get(settings.api_key_env or "", "").strip()
    # A key that no header can hold would end up in an error message.
    if not key.isascii() or not key.isprintable() or not key:
        raise BadInput(
            f"engine.api_key_env: the environment variable {settings.api_key_env} holds no key; "
            "export it before the command"
        )
    return key
