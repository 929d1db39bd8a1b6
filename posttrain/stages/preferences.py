"""Reads the answers to the last round's tasks, and the plan's own files, into checked preferences.

Ties and skips stay in `judgments.jsonl` and become no preference. Pairs are split by prompt into
`train`, `dev` and `test`; pairs whose responses are nearly alike are dropped and counted.
"""

from collections.abc import Sequence

from pydantic import ValidationError

from posttrain.annotation import people_from, preference_of, similarity, simulate
from posttrain.curation.decontaminate import held_out_in, index_heldout
from posttrain.errors import BadInput, WaitingForPeople
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.prompt_sources import held_out_prompts
from posttrain.recipes import StepHandle, open_recipes, verify_all
from posttrain.rows import Candidate, Judgment, Preference, Prompt, Split, Task, split_of
from posttrain.settings.plan import FileAnnotator, SimulatedAnnotator
from posttrain.settings.stages import PreferencesStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows, read_table
from posttrain.workspace import load_functions


def run(inputs: Inputs, settings: PreferencesStage, out: Output) -> None:
    """Write `train.jsonl`, `dev.jsonl`, `test.jsonl`, and `judgments.jsonl` where there are any."""
    forbidden = control_tokens(load_tokenizer(inputs["base"]))
    found: list[Preference] = []
    rows_in = 0
    for path in inputs.named("preferences:").values():
        table = read_table(path, Preference, forbidden)
        table.check_share(inputs.resources.reject_share)
        out.reject(table.rejects)
        found += table.rows
        rows_in += len(table.rows) + len(table.rejects)
    if "tasks" in inputs.paths:
        tasks = {task.id: task for task in load_rows(inputs["tasks"] / "tasks.jsonl", Task)}
        judgments, malformed = _answers(inputs, settings, list(tasks.values()), out)
        out.write("judgments", judgments)
        rows_in += len(judgments) + malformed
        found += _from_judgments(tasks, judgments, out)
    heldout = index_heldout(held_out_prompts(inputs["heldout"]), settings.decontaminate.ngram)
    by_split: dict[Split, list[Preference]] = {"train": [], "dev": [], "test": []}
    known: set[str] = set()
    for row in found:
        reason = _reason_to_drop(row, known, settings)
        split = split_of(row.prompt, settings.splits.dev, settings.splits.test)
        hit = held_out_in(row.prompt, heldout, settings.decontaminate)
        if not reason and split == "train" and hit is not None:
            reason = f"{hit.reason}: {hit.heldout}"
        if reason:
            out.drop(row.id, reason, row=row.to_json())
            continue
        known.add(row.id)
        row = row if row.batch else row.model_copy(update={"batch": f"round-{settings.round}"})
        by_split[split].append(row)
    for name, rows in by_split.items():
        out.write(name, rows)
    out.part("preferences", rows_in, sum(map(len, by_split.values())))


def _reason_to_drop(row: Preference, known: set[str], settings: PreferencesStage) -> str | None:
    if row.id in known:
        return f"duplicate id: {row.id}"
    if row.capability not in settings.recipes:
        return f"unknown capability: {row.capability}"
    best_first = row.ranking()
    likeness = similarity(best_first[0], best_first[-1])
    if likeness > settings.max_similarity:
        return f"responses too similar: {likeness:.3f}"
    return None


def _answers(
    inputs: Inputs, settings: PreferencesStage, tasks: Sequence[Task], out: Output
) -> tuple[list[Judgment], int]:
    if not isinstance(settings.annotator, SimulatedAnnotator):
        return _answers_of_people(inputs, settings.annotator, tasks, out)
    recipes = open_recipes(inputs.workspace, settings.recipes)
    handle = StepHandle(inputs.resources.sandbox, settings.seed)

    def verify(pairs: Sequence[tuple[Candidate, Prompt]]) -> list[bool]:
        verdicts = verify_all(recipes, pairs, handle, inputs.resources.sandbox_workers)
        return [verdict is not None and verdict.passed for verdict in verdicts]

    people = people_from(load_functions(inputs["people"]), settings.annotator)
    return simulate(tasks, people, verify, settings.seed), 0


def _answers_of_people(
    inputs: Inputs, annotator: FileAnnotator, tasks: Sequence[Task], out: Output
) -> tuple[list[Judgment], int]:
    forbidden = control_tokens(load_tokenizer(inputs["base"]))
    table = read_table(inputs["answers"], Judgment, forbidden)
    table.check_share(inputs.resources.reject_share)
    out.reject(table.rejects)
    known = {task.id for task in tasks}
    for row in table.rows:
        if row.task not in known:
            raise BadInput(
                f"judgment {row.id} answers task {row.task}, which this run never published; do "
                "the answers belong to another plan or round?"
            )
    answered = {row.task for row in table.rows}
    missing = [task.id for task in tasks if task.id not in answered]
    if len(missing) > (1 - annotator.min_answered) * len(tasks):
        raise WaitingForPeople(
            f"{inputs['answers']} answers {len(tasks) - len(missing)} of {len(tasks)} tasks, "
            f"annotator.min_answered asks for {annotator.min_answered:.0%}; the next without an "
            f"answer is {missing[0]}"
        )
    for task_id in missing:
        out.drop(task_id, "unanswered")
    return table.rows, len(table.rejects) + len(missing)


def _from_judgments(
    tasks: dict[str, Task], judgments: Sequence[Judgment], out: Output
) -> list[Preference]:
    found = []
    for judgment in judgments:
        task = tasks[judgment.task]
        try:
            row = preference_of(task, judgment)
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            out.drop(judgment.id, f"no ranking: {reason}", parents=[task.id])
            continue
        if row is None:
            out.drop(judgment.id, f"{judgment.choice}: a judgment, no preference")
        else:
            found.append(row)
    return found
