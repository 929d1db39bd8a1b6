"""The surface of a recipe: the functions its `hooks.py` may define, and the handle they get.

A recipe is a folder with `recipe.yaml`, `prompts/*.jinja` and, if it needs one, `hooks.py`. The
engine looks for the functions below **by name**; each is optional, typed and synchronous, sees one
row a call, and may be called from many threads at once. A hook never starts an engine: it asks
its handle.

    def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]
    def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict
    def revise(candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle) -> str | None
    def synthesize(prompt: Prompt, handle: Handle) -> Iterable[Example]
    def judge(candidate: Candidate, prompt: Prompt, handle: Handle) -> Grade | None
    def evaluate(candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle)
        -> Mapping[str, float]

* `prompts` seeds or generates prompts for a round, or for measuring.
* `verify` decides whether a response is right, and says why.
* `revise` gets a second try from the evidence: the new response, or None to give up.
* `synthesize` makes training examples in as many generation steps as it needs.
* `judge` grades a response on a rubric; None is *unscored*, never a default.
* `evaluate` turns the responses to held-out prompts into named measures of its own, beside the
  pass rate that the engine computes from `verify`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrain.rows import Candidate, Example, Message, Prompt

HOOK_NAMES = ("prompts", "verify", "revise", "synthesize", "judge", "evaluate")


@dataclass(frozen=True)
class PromptRequest:
    """What a plan asks of a `prompts` hook."""

    num: int
    """How many prompts to yield."""
    seed: int
    round: int
    """0 for held-out prompts."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Free settings from the plan, e.g. `{levels: [1, 2]}`."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's decision with the evidence that a `revise` hook or a person can read."""

    passed: bool
    evidence: str = ""


@dataclass(frozen=True)
class Grade:
    """A grade on a rubric's scale."""

    score: int
    maximum: int
    reason: str = ""


@dataclass(frozen=True)
class RunResult:
    """What a program did in the sandbox."""

    returncode: int
    """The program's exit status; negative for the signal that ended it."""
    stdout: str
    stderr: str
    seconds: float
    limit: str = ""
    """Which limit stopped it: `time`, `output` or empty."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.returncode == 0 and not self.limit


@dataclass(frozen=True)
class Passage:
    """A piece of a workspace's corpus."""

    id: str
    text: str
    score: float


class Handle(Protocol):
    """All that a hook may use beside its arguments. Every call is batched, cached and seeded."""

    def generate(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
        json_schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """N responses of the round's policy."""
        ...

    def judge(self, rubric: str, variables: Mapping[str, Any]) -> Grade | None:
        """The judge's grade on `data_quality/rubrics/<rubric>.jinja`; None when it gave none."""
        ...

    def run_code(self, source: str, *, stdin: str = "", seconds: float | None = None) -> RunResult:
        """Run a Python program in the sandbox."""
        ...

    def retrieve(self, corpus: str, query: str, k: int = 4) -> list[Passage]:
        """The k best passages of a corpus the workspace names."""
        ...

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors of the plan's embedder, one a text."""
        ...


class PromptsHook(Protocol):
    """Signature of `prompts`."""

    def __call__(self, request: PromptRequest, handle: Handle) -> Iterable[Prompt]: ...


class VerifyHook(Protocol):
    """Signature of `verify`."""

    def __call__(self, candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict: ...


class ReviseHook(Protocol):
    """Signature of `revise`."""

    def __call__(
        self, candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle
    ) -> str | None: ...


class SynthesizeHook(Protocol):
    """Signature of `synthesize`."""

    def __call__(self, prompt: Prompt, handle: Handle) -> Iterable[Example]: ...


class JudgeHook(Protocol):
    """Signature of `judge`."""

    def __call__(self, candidate: Candidate, prompt: Prompt, handle: Handle) -> Grade | None: ...


class EvaluateHook(Protocol):
    """Signature of `evaluate`."""

    def __call__(
        self, candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
    ) -> Mapping[str, float]: ...
