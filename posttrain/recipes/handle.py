"""The handles that hooks get: of a step without an engine, of a row whose questions are batched.

Knows how a question becomes a request with a seed. Who answers, the step knows.

    services = Services(limits, seed=7, answers={"generate": …})
    gather([(row.id, lambda live: hook(prompt, services.handle(live, recipe)))], …)
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

from posttrain.errors import BadInput
from posttrain.generation import Request
from posttrain.hooks import Grade, Passage, Reply, RunResult
from posttrain.recipes.corpora import Corpora
from posttrain.recipes.gathering import Row
from posttrain.recipes.opened import Recipe
from posttrain.rows import Message, content_id, stable_seed
from posttrain.sandbox import Sandbox
from posttrain.settings.engines import SandboxLimits

GENERATE, JUDGE, EMBED = "generate", "judge", "embed"
"""Kinds of questions that are answered in batches."""


@dataclass
class StepHandle:
    """The handle of a step that verifies and measures: it runs code, and says what it cannot do."""

    limits: SandboxLimits
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    _opened: list[Sandbox] = field(default_factory=list)

    @property
    def sandbox(self) -> Sandbox:
        """Opened at the first program, so that recipes without code need no bubblewrap."""
        if not self._opened:
            self._opened.append(Sandbox(self.limits))
        return self._opened[0]

    def of(self, recipe: Recipe) -> "StepHandle":
        """The same for the hooks of a recipe, with its own settings."""
        return replace(self, options=recipe.settings.options)

    def generate(self, messages: Sequence[Message], **settings: Any) -> list[Reply]:
        """No model runs here."""
        _lacking("generate", "an engine")

    def judge(self, rubric: str, variables: Mapping[str, Any]) -> Grade | None:
        """No judge runs here."""
        _lacking(f"judge({rubric})", "a judge model")

    def run_code(
        self,
        source: str,
        *,
        stdin: str = "",
        seconds: float | None = None,
        language: str = "python",
        check: bool = False,
    ) -> RunResult:
        """Run a program in the sandbox, or only check its syntax."""
        return self.sandbox.run(source, stdin, seconds, language, check)

    def retrieve(self, corpus: str, query: str, k: int = 4) -> list[Passage]:
        """No corpus is open here."""
        _lacking(f"retrieve({corpus})", "a corpus")

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """No embedder runs here."""
        _lacking("embed", "an embedder")


def _lacking(call: str, what: str) -> NoReturn:
    raise BadInput(f"handle.{call}: this step has not {what}; only synthesize and revise have one")


@dataclass
class Services:
    """What a step's rows share."""

    limits: SandboxLimits
    seed: int
    programs: int
    """Programs that run side by side."""

    def __post_init__(self) -> None:
        self.sandbox_is_free = threading.Semaphore(self.programs)

    @cached_property
    def sandbox(self) -> Sandbox:
        """Opened at the first program."""
        return Sandbox(self.limits)


@dataclass
class RowHandle:
    """The handle of one row of one hook."""

    row: Row
    services: Services
    corpora: Corpora
    options: Mapping[str, Any]
    temperature: float = 1.0
    max_tokens: int = 512
    """Of a response, where a hook does not say."""
    _asked: Counter[str] = field(default_factory=Counter)

    def generate(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
        json_schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Reply]:
        """N responses of the recipe's policy.

        Asked for the same twice, a row gets other responses the second time.

        Raises:
            BadInput: the engine cannot do what is asked, or the prompt is too long for it.
        """
        request = Request(
            id=self.row.row_id,
            messages=tuple(messages),
            n=n,
            seed=0,
            temperature=self.temperature if temperature is None else temperature,
            max_tokens=max_tokens or self.max_tokens,
            stop=tuple(stop),
            choices=tuple(choices),
            json_schema=dict(json_schema) if json_schema is not None else None,
            tools=tuple(dict(tool) for tool in tools),
        )
        content = content_id(request.model_dump(mode="json"))
        turn = self._asked[content]
        self._asked[content] += 1
        seed = stable_seed(self.services.seed, self.row.row_id, content, turn)
        found = self.row.ask(GENERATE, request.model_copy(update={"seed": seed}))
        return [Reply(text, finished) for text, finished in found]

    def judge(self, rubric: str, variables: Mapping[str, Any]) -> Grade | None:
        """The judge's grade on a rubric; None when it gave none.

        Raises:
            BadInput: the plan has no judge model, or the rubric cannot be filled in.
        """
        found = self.row.ask(JUDGE, (rubric, dict(variables)))
        return None if found is None else Grade(*found)

    def run_code(
        self,
        source: str,
        *,
        stdin: str = "",
        seconds: float | None = None,
        language: str = "python",
        check: bool = False,
    ) -> RunResult:
        """Run a program in the sandbox, or only check its syntax."""
        with self.row.elsewhere(), self.services.sandbox_is_free:
            return self.services.sandbox.run(source, stdin, seconds, language, check)

    def retrieve(self, corpus: str, query: str, k: int = 4) -> list[Passage]:
        """The k best passages of a corpus that the recipe names.

        Raises:
            BadInput: the recipe names no such corpus.
        """
        return self.corpora[corpus].retrieve(query, k)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors of the plan's embedder."""
        found: list[list[float]] = self.row.ask(EMBED, tuple(texts))
        return found
