"""Commands about a reward model by itself, outside of any run: score, measure-rm."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.shared import JsonOption, call, print_json
from posttrain.settings.engines import ScorerSettings

ModelArgument = Annotated[Path, typer.Argument(help="Folder of a reward model.")]
EngineOption = Annotated[
    Literal["transformers", "vllm"], typer.Option("--engine", help="What computes the scores.")
]
PythonOption = Annotated[
    Path | None, typer.Option("--python", help="Interpreter that has vLLM; else the running one.")
]
TemplateOption = Annotated[
    Path | None, typer.Option("--template", help="Chat template; else the tokenizer's own.")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where transformers computes.")
]
ShareOption = Annotated[
    float,
    typer.Option("--reject-share", min=0, max=1, help="Share of malformed rows to put up with."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("score")(score_command)
    app.command("measure-rm")(measure_command)


def score_command(
    model: ModelArgument,
    rows: Annotated[Path, typer.Argument(help="Dialogs: id and messages, JSONL or Parquet.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL to write: id and score.")],
    engine: EngineOption = "transformers",
    python: PythonOption = None,
    template: TemplateOption = None,
    device: DeviceOption = "auto",
    reject_share: ShareOption = 0.05,
) -> None:
    """Score dialogs with a reward model, in their order; what does not fit is told beside."""
    settings = ScorerSettings(
        model=model,
        template=template,
        device=device,
        engine=engine,
        python=python,
        reject_share=reject_share,
    )
    typer.echo(call("posttrain.reward_files:score_file", settings, rows, out), err=True)


def measure_command(
    model: ModelArgument,
    pairs: Annotated[
        Path, typer.Argument(help="Preference rows, or RewardBench's; JSONL or Parquet.")
    ],
    engine: EngineOption = "transformers",
    python: PythonOption = None,
    template: TemplateOption = None,
    device: DeviceOption = "auto",
    reject_share: ShareOption = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Measure a reward model on pairs: accuracy by what they are, calibration, liking of length."""
    settings = ScorerSettings(
        model=model,
        template=template,
        device=device,
        engine=engine,
        python=python,
        reject_share=reject_share,
    )
    result = call("posttrain.reward_files:measure_file", settings, pairs)
    if as_json:
        print_json(result)
        return
    call("posttrain.reward_files:print_measures", result)
