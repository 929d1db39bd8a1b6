"""`posttrain check`: resolves everything a plan names and runs nothing.

Loads templates, hooks, rules and headers of weights; never a model.

    check_run(run)   # {"steps": "120 in 6 rounds", …}
"""

import shutil

from posttrain import sandbox
from posttrain.controller import Run
from posttrain.curation.filters import check_filters
from posttrain.embedding import embedder_folder
from posttrain.errors import BadInput
from posttrain.judging import simulated
from posttrain.judgments.simulated import people_from
from posttrain.models.chat import control_tokens, load_tokenizer, render_dialog
from posttrain.models.files import context_length
from posttrain.models.folders import check_model_folder
from posttrain.preference_rows import JudgedRow
from posttrain.recipes import open_recipes
from posttrain.responses import steering_prompts
from posttrain.rows import Example, Message, Prompt
from posttrain.settings.annotation import SimulatedAnnotator
from posttrain.settings.judges import SimulatedJudge, VllmJudge
from posttrain.settings.sources import FileSource, Source
from posttrain.tables import Table, read_table
from posttrain.workspace import (
    load_filters,
    load_functions,
    load_pipeline,
    load_recipe_settings,
)


def check_run(run: Run) -> dict[str, str]:
    """What was checked, with what was found.

    Raises:
        BadInput: the first thing that is wrong.
    """
    return {
        "steps": f"{len(run.steps)} in {len(run.plan.rounds)} rounds",
        "model": _check_model(run),
        "recipes": _check_recipes(run),
        "curation": _check_curation(run),
        "people": _check_people(run),
        "engine": _check_engine(run),
        "data": _check_data(run),
        "sandbox": _check_sandbox(run),
        "disk": _check_disk(run),
    }


def _check_model(run: Run) -> str:
    folder = run.workspace.find(run.plan.base)
    check_model_folder(folder)
    template = run.plan.chat.template
    tokenizer = load_tokenizer(folder, run.workspace.find(template) if template else None)
    turns = [("system", "Be brief."), ("user", "hello"), ("assistant", "hi"), ("user", "bye")]
    dialog = [Message.model_validate({"role": r, "content": c}) for r, c in turns]
    render_dialog(tokenizer, [*dialog, Message(role="assistant", content="bye")])
    return f"{run.plan.base}: context of {context_length(folder)} tokens, template renders"


def _check_recipes(run: Run) -> str:
    plan = run.plan
    settings = {
        name: load_recipe_settings(run.workspace, name, plan.recipes.get(name, {}))
        for name in plan.mix
    }
    opened = open_recipes(run.workspace, settings)
    for one in settings.values():
        steering_prompts(run.workspace, one)
    limit = context_length(run.workspace.find(plan.base))
    for name, one in settings.items():
        if one.max_tokens >= limit:
            raise BadInput(
                f"recipe {name}: max_tokens {one.max_tokens} leaves no room for a prompt in the "
                f"base's context of {limit} tokens"
            )
    return ", ".join(f"{n} ({', '.join(r.hooks) or 'no hooks'})" for n, r in opened.items())


def _check_curation(run: Run) -> str:
    pipeline = load_pipeline(run.workspace, run.plan.pipeline)
    functions = load_functions(run.workspace.find("data_quality/rules.py"))
    missing = [rule for rule in pipeline.clean.rules if rule not in functions]
    if missing:
        raise BadInput(f"data_quality/rules.py defines no {missing[0]}()")
    files = {n: run.workspace.find(f"data_quality/{file}") for n, file in pipeline.filters.items()}
    check_filters(pipeline.filters, load_filters(files))
    embedder_folder(pipeline.dedup.embedder, run.workspace.root)
    return " → ".join(pipeline.order)


def _check_people(run: Run) -> str:
    """Rules of simulated people and of a simulated judge define what they must."""
    annotator, judge = run.plan.annotator, run.plan.judge
    if isinstance(annotator, SimulatedAnnotator):
        people_from(load_functions(run.workspace.find(annotator.rules)), annotator)
    if isinstance(judge, SimulatedJudge):
        simulated.SimulatedJudge(run.workspace.find(judge.rules), load_functions)
    if isinstance(judge, VllmJudge):
        check_model_folder(run.workspace.find(judge.model))
    return f"annotator {annotator.type}, judge {judge.type}"


def _check_engine(run: Run) -> str:
    engine = run.plan.sampling.engine
    if engine.type == "vllm" and engine.python is not None and not engine.python.is_file():
        raise BadInput(f"sampling.engine.python: {engine.python} is no interpreter")
    return f"sampling with {engine.type}"


def _check_data(run: Run) -> str:
    plan = run.plan
    folder = run.workspace.find(plan.base)
    forbidden = control_tokens(load_tokenizer(folder))
    share = plan.resources.reject_share
    count = 0
    human = [*plan.bootstrap.human, *(p for r in plan.rounds for p in r.human)]
    for path in dict.fromkeys(human):
        count += _checked(read_table(run.workspace.find(path), Example, forbidden), share)
    for path in dict.fromkeys(p for r in plan.rounds for p in r.preferences):
        count += _checked(read_table(run.workspace.find(path), JudgedRow, forbidden), share)
    if plan.tasks.gold is not None:
        known = run.workspace.find(plan.tasks.gold.path)
        count += _checked(read_table(known, JudgedRow, forbidden), share)
    sources: list[Source] = [*plan.evaluation.sources, *plan.bootstrap.tasks]
    for one in plan.rounds:
        sources += [*one.prompts, *one.tasks]
    files = dict.fromkeys(s.path for s in sources if isinstance(s, FileSource))
    for path in files:
        count += _checked(read_table(run.workspace.find(path), Prompt, forbidden), share)
    return f"{count} rows in {len(files) + len(set(human))} files and more from hooks"


def _checked(table: Table[Example] | Table[JudgedRow] | Table[Prompt], share: float) -> int:
    table.check_share(share)
    return len(table.rows)


def _check_sandbox(run: Run) -> str:
    """Not an error: a plan whose recipes run no code needs none."""
    return "bubblewrap works" if sandbox.available() else "no bubblewrap: recipes cannot run code"


def _check_disk(run: Run) -> str:
    place = run.folder.root if run.folder.root.exists() else run.workspace.root
    free = shutil.disk_usage(place).free / 2**30
    if free < run.plan.resources.min_free_gib:
        raise BadInput(
            f"disk: {free:.1f} GiB are free, resources.min_free_gib asks for "
            f"{run.plan.resources.min_free_gib}"
        )
    return f"{free:.0f} GiB free"
