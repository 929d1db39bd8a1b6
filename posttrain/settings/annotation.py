"""Which pairs are judged, who judges them, and when a judge or a person is heeded (section 4.2.1).

parse(FileAnnotator, {"min_answered": 0.9, "quality": {"leave_out": True}}, "my.yaml")
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from posttrain.rows import Strength
from posttrain.settings.base import Settings
from posttrain.settings.sources import Name

Share = Annotated[float, Field(ge=0, le=1)]


class GoldTasks(Settings):
    """Tasks with a known answer, mixed among the others to see how well somebody judges."""

    path: str
    """A file of preferences: the chosen response is the answer that is expected."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Of the tasks that an annotator gets, until all of the file are judged."""


class Tasks(Settings):
    """Preference tasks for the next round: two responses from two different models."""

    models: Annotated[
        tuple[Literal["variants", "previous", "expert"], ...], Field(min_length=1)
    ] = ("variants", "previous")
    """Where the pair's models come from, prompt by prompt in turn: two variants of this round,
    this round's policy beside the last one's, or beside the expert that the prompt's recipe samples
    from (where it does)."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    order: Literal["hardest", "given"] = "hardest"
    """Which prompts come first: those of a capability and level of which the policy passes least
    on dev; or as their sources give them. Levels that it has mastered so move to the end."""
    num: Annotated[int, Field(ge=1)] | None = None
    """Most prompts that become tasks; those that come first are taken. None takes all."""
    mix: dict[Name, Share] = {}
    """Capability → share of the tasks; one that is not named has none. Empty: as many as the
    sources give."""
    twice: Share = 0.0
    """Share of the tasks that two annotators judge, to see how well they agree."""
    gold: GoldTasks | None = None

    @model_validator(mode="after")
    def _mix_is_whole(self) -> Self:
        if self.mix and abs(sum(self.mix.values()) - 1) > 0.005:
            raise ValueError(f"mix: shares sum to {sum(self.mix.values()):.4f}, expected 1")
        return self


class Quality(Settings):
    """What is asked of an annotator, by tasks with a known answer."""

    min_accuracy: Share = 0.7
    """Share of gold tasks judged as expected (a tie is not) below which an annotator is flagged."""
    min_gold: Annotated[int, Field(ge=1)] = 5
    """Gold tasks that somebody must have judged before that is said of them."""
    leave_out: bool = False
    """Whether what flagged annotators judged makes no preference; it stays in the judgments."""


class JudgeHelp(Settings):
    """The plan's judge (`judge:`) judges the tasks too, each in both orders."""

    rubric: str = "pair"
    """The rubric of `data_quality/rubrics/` by which two responses are compared."""
    labels: Literal["none", "agreeing", "all"] = "none"
    """Which tasks without any judgment of people its verdicts stand for: none; those of
    capabilities in which it agrees with people; or all."""
    min_agreement: Share = 0.8
    """Share of people's choices that it must have made too, in a capability. Ties count as a
    choice of their own."""
    min_shared: Annotated[int, Field(ge=1)] = 30
    """Tasks of a capability that both must have judged."""


class FileAnnotator(Settings):
    """People: their answers come as a file; until it is there the round waits (exit code 3)."""

    type: Literal["file"] = "file"
    min_answered: Share = 1.0
    """Share of the wanted judgments, skips and ties included, with which a round goes on though
    its collection has not been closed."""
    quality: Quality = Quality()
    judge: JudgeHelp | None = None


class SimulatedAnnotator(Settings):
    """Simulated people, for tests and the tiny plan."""

    type: Literal["simulated"]
    rules: str
    """A Python file with `utility` and `edit`."""
    people: Annotated[int, Field(ge=1)] = 1
    """How many of them share the tasks; they differ in their mistakes alone."""
    flip: Share | dict[Strength, Share] = 0.1
    """Share of judgments that are turned around, of all or by strength: people err most where
    responses are close. A strength that is not named is never turned around."""
    edit: Share = 0.3
    """Share of chosen responses that get an edit, where the rules offer one."""
    strengths: tuple[float, float, float] = (0.05, 1.0, 5.0)
    """Differences in utility from which a person says slightly better, better, significantly
    better; below the first it is marginally better."""
    quality: Quality = Quality()
    judge: JudgeHelp | None = None


class JudgeAnnotator(Settings):
    """Nobody but the plan's judge (`judge:`): its verdicts are the judgments."""

    type: Literal["judge"]
    rubric: str = "pair"


Annotator = Annotated[
    FileAnnotator | SimulatedAnnotator | JudgeAnnotator, Field(discriminator="type")
]
