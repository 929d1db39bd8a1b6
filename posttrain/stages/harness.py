"""Runs tasks of lm-evaluation-harness on a model: GSM8K, IFEval, MMLU and what a recipe brings.

Only ever reported: no choice looks at these. A task that would run model-written code is refused.
"""

import os
from collections.abc import Mapping
from typing import Any

from posttrain.errors import BadInput, StepFailed
from posttrain.models.devices import pick_device
from posttrain.settings.stages import HarnessStage
from posttrain.steps.output import Inputs, Output
from posttrain.workspace import find_recipe

TASKS = "tasks"
"""Folder of a recipe with tasks of its own, a YAML file each."""


def run(inputs: Inputs, settings: HarnessStage, out: Output) -> None:
    """Write `results.json`: capability → task → metric → value, with `… stderr` beside each.

    Raises:
        BadInput: lm-evaluation-harness is not installed, or knows no such task.
        StepFailed: a task cannot be run, for want of its data for example.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise BadInput(
            f"recipes with harness tasks need lm-evaluation-harness: pip install "
            f"'posttrain[eval]' ({error})"
        ) from error
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folders = [find_recipe(inputs.workspace, name).folder / TASKS for name in settings.tasks]
    manager = TaskManager(include_path=[str(one) for one in folders if one.is_dir()])
    known = set(manager.all_tasks)
    for name, tasks in settings.tasks.items():
        unknown = [task for task in tasks if task not in known]
        if unknown:
            raise BadInput(
                f"recipes.{name}.harness: lm-evaluation-harness has no task {unknown[0]}; "
                "`lm_eval ls tasks` lists them, and a recipe's own stand in its folder tasks/"
            )
    wanted = list(dict.fromkeys(task for tasks in settings.tasks.values() for task in tasks))
    model: dict[str, Any] = {
        "pretrained": str(inputs.model("model")),
        "trust_remote_code": False,
        "dtype": settings.harness.dtype,
    }
    try:
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args=model,
            tasks=wanted,
            num_fewshot=settings.harness.few_shot,
            limit=settings.harness.limit,
            batch_size=settings.harness.batch_size,
            device=pick_device(inputs.resources.device),
            apply_chat_template=True,
            task_manager=manager,
            log_samples=False,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
            bootstrap_iters=1000,
        )
    # The library reports a missing data set, a network that is not there or a task's own mistake
    # with whatever its own libraries raise.
    except Exception as error:
        raise StepFailed(
            f"lm-evaluation-harness: {', '.join(wanted)}: {type(error).__name__}: {error}"
        ) from error
    results = {
        name: {task: _named(found["results"][task]) for task in tasks}
        for name, tasks in settings.tasks.items()
    }
    out.write_json("results", results)
    out.metrics(harness=results, versions={t: found["versions"].get(t) for t in wanted})
    out.part("harness", len(wanted), len(wanted))


def _named(result: Mapping[str, Any]) -> dict[str, float]:
    """Metrics without the name of the filter where that says nothing."""
    named = {}
    for key, value in result.items():
        metric, _, kind = key.partition(",")
        if isinstance(value, int | float) and not isinstance(value, bool) and kind:
            metric = metric.replace("_stderr", " stderr")
            named[metric if kind == "none" else f"{metric} ({kind})"] = float(value)
    return named
