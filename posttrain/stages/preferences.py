"""Reads the answers to the last round's tasks, and the plan's own files, into checked preferences.

Ties and skips stay in `judgments.jsonl` and become no preference. A judged dialog becomes one
preference a turn (section 4.2.1). The first message of a dialog decides whether it belongs to
`train`, `dev` or `test`; responses that are nearly alike to a better one are left out, and a
preference of which nothing else is left is dropped; both are counted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from posttrain.annotation import people_from, preference_of, simulate
from posttrain.curation.decontaminate import held_out_in, index_heldout
from posttrain.embedding import CACHE, Embedder, embedder_folder
from posttrain.errors import BadInput, WaitingForPeople
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.preference_rows import JudgedRow
from posttrain.prompt_sources import held_out_prompts
from posttrain.recipes import StepHandle, open_recipes, verify_all
from posttrain.rows import Candidate, Judgment, Preference, Prompt, Split, Task, split_of
from posttrain.settings.plan import FileAnnotator, SimulatedAnnotator
from posttrain.settings.stages import PreferencesStage
from posttrain.similarity import Distinct, Encode, Measure, by_cosine, by_edits, without_alike
from posttrain.steps.output import Inputs, Output
from posttrain.tables import complaint, load_rows, read_table
from posttrain.workspace import load_functions


class _Stated(NamedTuple):
    """Preferences before any is dropped."""

    found: list[Preference]
    rows_in: int
    """Rows that were read for them, of any kind."""
    unchanged: int
    """Edits that change nothing."""


UNCHANGED = "edited equals chosen"
"""Why an edit is left out of its preference."""
TOO_SIMILAR = "responses too similar"
"""Why a preference is dropped of whose ranking nothing is left to compare."""
LEFT_OUT = "a response too similar to a better one left out"
"""What happened to a preference of whose ranking enough is left."""


def run(inputs: Inputs, settings: PreferencesStage, out: Output) -> None:
    """Write `train.jsonl`, `dev.jsonl`, `test.jsonl`, and `judgments.jsonl` where there are any."""
    tokenizer = load_tokenizer(inputs["base"])
    stated = [_of_files(inputs, control_tokens(tokenizer), out)]
    if "tasks" in inputs.paths:
        stated.append(_of_tasks(inputs, settings, control_tokens(tokenizer), out))
    found = [row for one in stated for row in one.found]

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    heldout = index_heldout(held_out_prompts(inputs["heldout"]), settings.decontaminate.ngram)
    by_split: dict[Split, list[Preference]] = {"train": [], "dev": [], "test": []}
    known: set[str] = set()
    changes = Counter({UNCHANGED: sum(one.unchanged for one in stated)})
    for row, distinct in zip(found, _distinct(found, inputs, settings, encode, out), strict=True):
        split = split_of(row.prompt, settings.splits.dev, settings.splits.test)
        reason, details = _reason_to_drop(row, known, settings), {}
        if not reason and distinct.row is None:
            reason, details = TOO_SIMILAR, distinct.alike[-1]._asdict()
        if not reason and split == "train":
            hit = held_out_in(row.prompt, heldout, settings.decontaminate)
            reason = f"{hit.reason}: {hit.heldout}" if hit is not None else None
        if reason:
            out.drop(row.id, reason, **details, row=row.to_json())
            continue
        known.add(row.id)
        changes[LEFT_OUT] += len(distinct.alike)
        row = distinct.row or row
        row = row if row.batch else row.model_copy(update={"batch": f"round-{settings.round}"})
        by_split[split].append(row)
    for name, rows in by_split.items():
        out.write(name, rows)
    rows_in = sum(one.rows_in for one in stated)
    out.part("preferences", rows_in, sum(map(len, by_split.values())), +changes)


def _of_files(inputs: Inputs, forbidden: Iterable[str], out: Output) -> _Stated:
    """What the plan's own files state."""
    found: list[Preference] = []
    num_rejects = unchanged = 0
    for path in inputs.named("preferences:").values():
        table = read_table(path, JudgedRow, forbidden)
        table.check_share(inputs.resources.reject_share)
        out.reject(table.rejects)
        found += [preference for row in table.rows for preference in row.preferences]
        num_rejects += len(table.rejects)
        unchanged += sum(row.unchanged_edits for row in table.rows)
    return _Stated(found, len(found) + num_rejects, unchanged)


def _of_tasks(
    inputs: Inputs, settings: PreferencesStage, forbidden: Iterable[str], out: Output
) -> _Stated:
    """What people's answers to the last round's tasks state."""
    tasks = {task.id: task for task in load_rows(inputs["tasks"] / "tasks.jsonl", Task)}
    judgments, malformed = _answers(inputs, settings, list(tasks.values()), forbidden, out)
    out.write("judgments", judgments)
    found: list[Preference] = []
    unchanged = 0
    for judgment in judgments:
        task = tasks[judgment.task]
        try:
            row = preference_of(task, judgment)
        except ValueError as error:
            out.drop(judgment.id, f"no ranking: {complaint(error)}", parents=[task.id])
            continue
        if row is None:
            out.drop(judgment.id, f"{judgment.choice}: a judgment, no preference")
        else:
            found.append(row)
            unchanged += judgment.edited is not None and row.edited is None
    return _Stated(found, len(judgments) + malformed, unchanged)


def _reason_to_drop(row: Preference, known: set[str], settings: PreferencesStage) -> str | None:
    if row.id in known:
        return f"duplicate id: {row.id}"
    if row.capability not in settings.recipes:
        return f"unknown capability: {row.capability}"
    return None


def _distinct(
    rows: Sequence[Preference],
    inputs: Inputs,
    settings: PreferencesStage,
    encode: Encode,
    out: Output,
) -> list[Distinct]:
    """Each row without responses that are more alike than the plan allows."""
    limits = settings.similarity
    measures: list[list[Measure]] = [[] for _ in rows]
    if limits.max_edit is not None:
        for row, own in zip(rows, measures, strict=True):
            own.append(by_edits(row, limits.max_edit, encode))
    if limits.max_cosine is not None and settings.embedder is not None:
        folder = embedder_folder(settings.embedder, inputs.workspace.root)
        embed = Embedder(folder, inputs.machine.parent / CACHE).embed
        cosines = by_cosine(rows, limits.max_cosine, embed)
        for measure, own in zip(cosines.measures, measures, strict=True):
            own += [measure] if measure is not None else []
        out.metrics(rankings_unread_by_embedder=cosines.num_unread)
    return [without_alike(row, own) for row, own in zip(rows, measures, strict=True)]


def _answers(
    inputs: Inputs,
    settings: PreferencesStage,
    tasks: Sequence[Task],
    forbidden: Iterable[str],
    out: Output,
) -> tuple[list[Judgment], int]:
    """The judgments, and how many rows were read that are none."""
    if not isinstance(settings.annotator, SimulatedAnnotator):
        return _answers_of_people(inputs, settings.annotator, tasks, forbidden, out)
    recipes = open_recipes(inputs.workspace, settings.recipes)
    handle = StepHandle(inputs.resources.sandbox, settings.seed)

    def verify(pairs: Sequence[tuple[Candidate, Prompt]]) -> list[bool]:
        verdicts = verify_all(recipes, pairs, handle, inputs.resources.sandbox_workers)
        return [verdict is not None and verdict.passed for verdict in verdicts]

    people = people_from(load_functions(inputs["people"]), settings.annotator)
    return simulate(tasks, people, verify, settings.seed), 0


def _answers_of_people(
    inputs: Inputs,
    annotator: FileAnnotator,
    tasks: Sequence[Task],
    forbidden: Iterable[str],
    out: Output,
) -> tuple[list[Judgment], int]:
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
