"""Runs a recipe's hook on rows side by side, with the model, judge and embedder of its step.

Knows which model a recipe samples from, who judges, and how misbehaving hooks are told: a row by
its reason, a recipe by the share of such rows. What is made of a row, a stage knows.

    with closing(HookRows(inputs, settings, out)) as hooks:
        for outcome in hooks.run("math", "synthesize", [(prompt.id, lambda handle: …)]):
            …
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from posttrain.embedding import CACHE, Embedder, embedder_folder
from posttrain.errors import BadInput
from posttrain.generation import Engine, Request
from posttrain.hooks import Handle
from posttrain.judging.askers import Asker, Question
from posttrain.judging.opening import open_asker
from posttrain.judging.rubrics import render_rubric
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.models.devices import pick_device
from posttrain.process_rewards import ProcessScorer
from posttrain.recipes.answers import Answers
from posttrain.recipes.corpora import Corpora
from posttrain.recipes.gathering import Outcome, Row, gather
from posttrain.recipes.handle import EMBED, GENERATE, JUDGE, RowHandle, Services
from posttrain.recipes.opened import open_recipes
from posttrain.responses import CONTROL_TOKEN, contains_any
from posttrain.rows import Message, stable_seed
from posttrain.sampling.service import KeptEngine
from posttrain.settings.judges import EndpointJudge, SimulatedJudge, VllmJudge
from posttrain.settings.recipe import Temperature, TemperatureRange
from posttrain.settings.stages import HookStage
from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output
from posttrain.workspace import Workspace, blamed, load_functions

ResultT = TypeVar("ResultT")
ANSWERS = "answers.jsonl"
STEPS = "steps"
"""The rubric that a process reward model answers."""
STOPPED = "not reached: the recipe stopped"
"""Why a row is dropped that comes after too many failures."""


class HookRows:
    """The hooks of a step, and who answers them."""

    def __init__(
        self,
        inputs: Inputs,
        settings: HookStage,
        out: Output,
        answers: Path | None = None,
        replay: bool = False,
    ) -> None:
        """Opens no model yet.

        Args:
            inputs: With the models `policy`, or `policy:` or `expert:` and a capability.
            settings: Of the step.
            out: Of the step.
            answers: Where answers are remembered; None keeps them among the step's work.
            replay: Whether nobody answers what is not remembered.

        Raises:
            BadInput: a hook is named but not defined.
        """
        self.recipes = open_recipes(inputs.workspace, settings.recipes)
        self._inputs, self._settings = inputs, settings
        resources = inputs.resources
        self._services = Services(resources.sandbox, settings.seed, resources.sandbox_workers)
        template = inputs.paths.get("template")
        self._kept = KeptEngine(settings.sampling.engine, template, resources.device)
        self._answers = Answers(out.path / WORK / ANSWERS if answers is None else answers)
        self._replay = replay
        self._held: tuple[str, Engine] | None = None
        self._embedder: Embedder | None = None
        self._asker: Asker | None = None
        self._process: tuple[Path, ProcessScorer] | None = None

    def run(
        self,
        capability: str,
        hook: str,
        tasks: Sequence[tuple[str, Callable[[Handle], ResultT]]],
    ) -> Iterator[Outcome[ResultT]]:
        """What becomes of each row, in order; past the recipe's share of failures no further row.

        Raises:
            StepFailed: the engine stopped answering.
        """
        settings = self._settings.recipes[capability]
        files = self._inputs.named(f"corpus:{capability}:")
        corpora = Corpora({name.rpartition(":")[2]: path for name, path in files.items()})
        model = policy_of(self._inputs, capability)
        engine = _Lazy(
            self._nobody if self._replay else partial(self._opened, model), self.forbidden
        )

        def task(work: Callable[[Handle], ResultT], row: Row) -> ResultT:
            temperature = _temperature(settings.temperature, row.row_id, self._settings.seed)
            own = settings.options, temperature, settings.max_tokens
            return work(RowHandle(row, self._services, corpora, *own))

        outcomes = gather(
            [(f"{hook}/{row_id}", partial(task, work)) for row_id, work in tasks],
            {
                GENERATE: self._answers.remembered(
                    f"{GENERATE} {model}", engine.generate, lambda one: one.model_dump(mode="json")
                ),
                JUDGE: self._answers.remembered(
                    f"{JUDGE} {model}", partial(self._judged, engine, capability), list
                ),
                EMBED: self._embedded,
            },
            live=self._settings.live,
            seconds=settings.hook_seconds,
        )
        failed = 0
        for place, outcome in enumerate(outcomes, 1):
            failed += bool(outcome.problem)
            yield outcome
            if failed > settings.max_failed * len(tasks) and place < len(tasks):
                return

    @cached_property
    def forbidden(self) -> tuple[str, ...]:
        """Control tokens, which no message of a dialog may hold; a model may write one all the
        same.
        """
        if "policy" not in self._inputs.paths:
            return ()
        template = self._inputs.paths.get("template")
        return control_tokens(load_tokenizer(self._inputs.model("policy"), template))

    def _opened(self, model: str) -> Engine:
        if self._held is None or self._held[0] != model:
            self._held = model, self._kept.holding(self._inputs.model(model))
        return self._held[1]

    def _nobody(self) -> Engine:
        raise BadInput("this question is not in the transcript; record it again with --model")

    def close(self) -> None:
        """Give the models back."""
        self._kept.close()
        if self._asker is not None:
            self._asker.close()

    def _judged(self, engine: "_Lazy", capability: str, questions: list[Any]) -> list[Any]:
        """Grades, or None where the judge gave none of the rubric's."""
        by_steps = [place for place, (name, _) in enumerate(questions) if name == STEPS]
        others = [question for question in questions if question[0] != STEPS]
        found: list[Any] = [None] * len(questions)
        for place in by_steps:
            found[place] = self._by_steps(capability, questions[place][1])
        graded = iter(self._graded(engine, others) if others else [])
        return [found[at] if at in by_steps else next(graded) for at in range(len(questions))]

    def _by_steps(self, capability: str, variables: Mapping[str, Any]) -> list[Any]:
        """The percent that a process reward model gives the step it believes least."""
        folder = self._inputs.paths.get(f"process:{capability}")
        if folder is None:
            raise BadInput(
                f"handle.judge({STEPS}): recipe {capability} names no process_reward model"
            )
        if self._process is None or self._process[0] != folder:
            scorer = ProcessScorer(folder, pick_device(self._inputs.resources.device))
            self._process = folder, scorer
        scores = self._process[1].score(str(variables["question"]), list(variables["steps"]))
        return [round(100 * min(scores)), 100, ""]

    def _graded(self, engine: "_Lazy", questions: list[Any]) -> list[Any]:
        """What the plan's judge, its simulated one or the policy itself says."""
        judge = self._settings.judge
        if isinstance(judge, SimulatedJudge):
            return self._simulated(questions)
        rubrics = [
            render_rubric(rubric_file(self._inputs.workspace, name), variables)
            for name, variables in questions
        ]
        asked = [Question(one.text, choices=tuple(map(str, one.scale))) for one in rubrics]
        if isinstance(judge, VllmJudge | EndpointJudge):
            if self._asker is None:
                self._asker = open_asker(self._inputs, judge)
            said = self._asker.ask(asked)
        else:
            said = self._asked_itself(engine, asked)
        return [
            [int(text), rubric.scale[-1], ""]
            if text is not None and text in map(str, rubric.scale)
            else None
            for text, rubric in zip(said, rubrics, strict=True)
        ]

    def _asked_itself(self, engine: "_Lazy", questions: list[Question]) -> list[str | None]:
        """Without a judge in the plan the recipe's own model is asked, as the paper's is."""
        requests = [
            Request(
                id=f"{place:06}",
                messages=(Message(role="user", content=one.text),),
                seed=self._settings.seed,
                temperature=0.0,
                max_tokens=one.max_tokens,
                choices=one.choices,
            )
            for place, one in enumerate(questions)
        ]
        return [replies[0][0] for replies in engine.generate(requests)]

    def _simulated(self, questions: list[Any]) -> list[Any]:
        functions = load_functions(self._inputs["judge"])
        if "judge" not in functions:
            raise BadInput(f"{self._inputs['judge'].name}: defines no judge() for hooks to ask")
        with blamed("judge() of the simulated judge"):
            said = [functions["judge"](name, variables) for name, variables in questions]
        return [None if one is None else [int(one[0]), int(one[1]), ""] for one in said]

    def _embedded(self, questions: list[tuple[str, ...]]) -> list[Any]:
        if self._embedder is None:
            folder = embedder_folder(self._settings.embedder, self._inputs.workspace.root)
            self._embedder = Embedder(folder, self._inputs.machine.parent / CACHE)
        vectors = self._embedder.embed([text for texts in questions for text in texts]).vectors_ND
        found, start = [], 0
        for texts in questions:
            found.append(vectors[start : start + len(texts)].tolist())
            start += len(texts)
        return found


class _Lazy:
    """An engine that is opened when it is first asked."""

    def __init__(self, opened: Callable[[], Engine], forbidden: Sequence[str]) -> None:
        self._open, self._forbidden = opened, forbidden
        self._engine: Engine | None = None

    def generate(self, requests: list[Request]) -> list[list[tuple[str, bool]]]:
        """Texts, and whether the model ended them.

        Raises:
            BadInput: a message holds a control token.
        """
        for request in requests:
            if any(contains_any(turn.content, self._forbidden) for turn in request.messages):
                raise BadInput(f"request {request.id}: {CONTROL_TOKEN}")
        if self._engine is None:
            self._engine = self._open()
        return [
            [(sample.text, sample.finish_reason == "stop") for sample in samples]
            for samples in self._engine.generate(requests)
        ]


def policy_of(inputs: Inputs, capability: str) -> str:
    """The input that holds the model to sample a capability from (section 4.2.2)."""
    own = (f"expert:{capability}", f"policy:{capability}")
    return next((name for name in own if name in inputs.paths), "policy")


def rubric_file(workspace: Workspace, name: str) -> Any:
    """The file of a rubric.

    Raises:
        BadInput: there is none of that name.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise BadInput(
            f"handle.judge({name}): expected the name of a rubric in data_quality/rubrics"
        )
    return workspace.find(f"data_quality/rubrics/{name}.jinja")


def _temperature(wanted: Temperature, row_id: str, seed: int) -> float:
    if not isinstance(wanted, TemperatureRange):
        return wanted
    place = stable_seed("temperature", seed, row_id) / 2**31
    return wanted.low + place * (wanted.high - wanted.low)
