"""The surface of a recipe: the functions its `hooks.py` may define, and the handle they get.

A recipe is a folder with `recipe.yaml`, `prompts/*.jinja` and, if it needs one, `hooks.py`. The
engine looks for the functions below **by name**; each is optional, typed and synchronous, sees one
row a call, and may be called from many threads at once. A hook never starts an engine: it asks
its handle.

    def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]
    def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict | None
    def revise(candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle) -> str | None
    def synthesize(prompt: Prompt, handle: Handle) -> Iterable[Example | Rejected]
    def judge(candidate: Candidate, prompt: Prompt, handle: Handle) -> Grade | None
    def evaluate(candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle)
        -> Mapping[str, float]

* `prompts` seeds or generates prompts for a round, or for measuring.
* `verify` decides whether a response is right, and says why; None where the row has nothing to
  check it by, and the reward model alone decides.
* `revise` gets a second try from the evidence: the new response, or None to give up.
* `synthesize` makes training examples in as many generation steps as it needs, and says what it
  made and threw away.
* `judge` grades a response on a rubric; None is *unscored*, never a default.
* `evaluate` turns the responses to held-out prompts into named measures of its own, beside the
  pass rate that the engine computes from `verify`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from posttrain.errors import BadInput
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
class Rejected:
    """What a `synthesize` hook made and does not keep: counted by reason, and in the books."""

    reason: str
    """A few words, the same for all rows of a kind: `tests fail`."""
    detail: str = ""
    """What somebody who looks into it wants to see."""


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
    """What stopped it: `time`, `output`, `missing` (no interpreter of its language) or empty."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.returncode == 0 and not self.limit


class Reply(str):
    """A model's response: its text, and whether the model ended it."""

    finished: bool
    """False where it was cut at `max_tokens`; such a text is nothing to train on."""

    def __new__(cls, text: str, finished: bool = True) -> Self:
        """A text like any other."""
        made = super().__new__(cls, text)
        made.finished = finished
        return made


@dataclass(frozen=True)
class Passage:
    """A piece of a workspace's corpus."""

    id: str
    text: str
    score: float


class Handle(Protocol):
    """All that a hook may use beside its arguments. Every call is batched, cached and seeded."""

    options: Mapping[str, Any]
    """The recipe's own settings, `options` in its recipe.yaml or the plan."""

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
        """N responses of the recipe's policy, at its temperature and of at most its max_tokens
        unless others are given.
        """
        ...

    def judge(self, rubric: str, variables: Mapping[str, Any]) -> Grade | None:
        """The judge's grade on `data_quality/rubrics/<rubric>.jinja`; None when it gave none."""
        ...

    def run_code(
        self,
        source: str,
        *,
        stdin: str = "",
        seconds: float | None = None,
        language: str = "python",
        check: bool = False,
    ) -> RunResult:
        """Run a program in the sandbox, or only check its syntax.

        Languages: python, and of bash, javascript, perl, php and ruby those whose interpreter is
        there.
        """
        ...

    def retrieve(self, corpus: str, query: str, k: int = 4) -> list[Passage]:
        """The k best passages of a corpus the workspace names."""
        ...

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors of the plan's embedder, one a text."""
        ...


def fill(hooks_file: str, name: str, /, **variables: Any) -> str:
    """A template of the recipe, `prompts/NAME.jinja` beside its hooks.py, with variables filled in.

    Args:
        hooks_file: `__file__` of the hooks.
        name: Of the template, without `.jinja`.
        **variables: What it names; one that is missing is an error.

    Raises:
        BadInput: there is no such template, or it cannot be filled in; says which and why.
    """
    path = Path(hooks_file).parent / "prompts" / f"{name}.jinja"
    # Autoescape stays off: the text goes to a model, where `&lt;` would be noise.
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        return environment.from_string(path.read_text()).render(variables).strip()
    except (OSError, TemplateError) as error:
        raise BadInput(
            f"prompts/{name}.jinja: the template cannot be filled in ({error})"
        ) from error


def user_turn(handle: Handle, hooks_file: str, name: str, /, **variables: Any) -> Message:
    """A template of the recipe as a user turn, in the dialect that its `options` name; see `ask`.

    Raises:
        BadInput: there is no such template, or it cannot be filled in.
    """
    dialect = handle.options.get("dialect")
    text = fill(hooks_file, f"{dialect}/{name}" if dialect else name, **variables)
    return Message(role="user", content=text)


def ask(
    handle: Handle,
    hooks_file: str,
    name: str,
    /,
    *,
    n: int = 1,
    temperature: float | None = None,
    max_tokens: int | None = None,
    choices: Sequence[str] = (),
    before: Sequence[Message] = (),
    **variables: Any,
) -> list[Reply]:
    """What the policy says to a template of the recipe as a user turn.

    Args:
        handle: Of the hook. Where the recipe's `options` name a `dialect`, the template is
            `prompts/DIALECT/NAME.jinja`: the same step in words that another model understands.
        hooks_file: `__file__` of the hooks.
        name: Of the template.
        n: Replies.
        temperature: Of sampling; None is the recipe's.
        max_tokens: Of a reply.
        choices: The only replies there may be.
        before: Turns of the dialog before this one.
        **variables: What the template names.

    Raises:
        BadInput: there is no such template, or it cannot be filled in.
    """
    turn = user_turn(handle, hooks_file, name, **variables)
    return handle.generate(
        [*before, turn], n=n, temperature=temperature, max_tokens=max_tokens, choices=choices
    )


class PromptsHook(Protocol):
    """Signature of `prompts`."""

    def __call__(self, request: PromptRequest, handle: Handle) -> Iterable[Prompt]: ...


class VerifyHook(Protocol):
    """Signature of `verify`."""

    def __call__(self, candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict | None: ...


class ReviseHook(Protocol):
    """Signature of `revise`."""

    def __call__(
        self, candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle
    ) -> str | None: ...


class SynthesizeHook(Protocol):
    """Signature of `synthesize`."""

    def __call__(self, prompt: Prompt, handle: Handle) -> Iterable[Example | Rejected]: ...


class JudgeHook(Protocol):
    """Signature of `judge`."""

    def __call__(self, candidate: Candidate, prompt: Prompt, handle: Handle) -> Grade | None: ...


class EvaluateHook(Protocol):
    """Signature of `evaluate`."""

    def __call__(
        self, candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
    ) -> Mapping[str, float]: ...
