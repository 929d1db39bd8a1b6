"""`posttrain check`: resolves everything a plan names and runs nothing.

check_run(run)   # {"steps": "118 steps in 6 rounds", …}
"""

import shutil

from posttrain.controller import Run
from posttrain.errors import BadInput
from posttrain.models.chat import control_tokens, load_tokenizer, render_dialog
from posttrain.models.folders import check_model_folder, context_length
from posttrain.recipes import open_recipes
from posttrain.responses import render_template
from posttrain.rows import Example, Message, Preference, Prompt
from posttrain.settings.plan import FileSource, Source
from posttrain.tables import Table, read_table
from posttrain.workspace import (
    find_recipe,
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
        "data": _check_data(run),
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
    for name, one in settings.items():
        for prompt in one.system_prompts:
            folder = find_recipe(run.workspace, name).folder
            render_template(folder / "prompts" / f"{prompt}.jinja")
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
    for path in sorted(run.workspace.find("data_quality/rubrics").glob("*.jinja")):
        path.read_text()
    return " → ".join(pipeline.order)


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
        count += _checked(read_table(run.workspace.find(path), Preference, forbidden), share)
    sources: list[Source] = [*plan.evaluation.sources, *plan.bootstrap.tasks]
    for one in plan.rounds:
        sources += [*one.prompts, *one.tasks]
    files = dict.fromkeys(s.path for s in sources if isinstance(s, FileSource))
    for path in files:
        count += _checked(read_table(run.workspace.find(path), Prompt, forbidden), share)
    return f"{count} rows in {len(files) + len(set(human))} files and more from hooks"


def _checked(table: Table[Example] | Table[Preference] | Table[Prompt], share: float) -> int:
    table.check_share(share)
    return len(table.rows)


def _check_disk(run: Run) -> str:
    place = run.folder.root if run.folder.root.exists() else run.workspace.root
    free = shutil.disk_usage(place).free / 2**30
    if free < run.plan.resources.min_free_gib:
        raise BadInput(
            f"disk: {free:.1f} GiB are free, resources.min_free_gib asks for "
            f"{run.plan.resources.min_free_gib}"
        )
    return f"{free:.0f} GiB free"
