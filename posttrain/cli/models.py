"""Commands about models outside of any run: sample, score, measure-rm, average, push."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.shared import JsonOption, call, print_json
from posttrain.settings.average_options import AverageSettings
from posttrain.settings.base import from_options
from posttrain.settings.engines import ScorerSettings
from posttrain.settings.sample_options import read_options

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
    app.command("sample")(sample_command)
    app.command("score")(score_command)
    app.command("measure-rm")(measure_command)
    app.command("average")(average_command)
    app.command("push")(push_command)


def sample_command(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    prompts: Annotated[Path, typer.Argument(help="Prompts: id and prompt, JSONL or Parquet.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL to write: one response a row.")],
    k: Annotated[int, typer.Option("-k", help="Responses to each prompt.")] = 10,
    engine: Annotated[
        str, typer.Option("--engine", help="What samples: transformers, vllm or openai.")
    ] = "transformers",
    python: PythonOption = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Endpoint of engine openai, e.g. http://host:8000/v1."),
    ] = None,
    served_model: Annotated[
        str | None, typer.Option("--served-model", help="The endpoint's name of the model.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of the engine, e.g. tensor_parallel_size=4."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Share of probability kept.")] = 1.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest response.")] = 1024,
    seed: Annotated[int, typer.Option("--seed", help="All randomness follows from it.")] = 0,
    system: Annotated[
        list[Path] | None,
        typer.Option("--system", help="System prompt to steer with, text or .jinja; repeatable."),
    ] = None,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="Log-probability of each token in the rows.")
    ] = False,
    template: TemplateOption = None,
    device: DeviceOption = "auto",
    shard_size: Annotated[
        int, typer.Option("--shard-size", help="Requests committed to disk together.")
    ] = 64,
    reject_share: ShareOption = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Sample K responses to each prompt of a file; killed and run again, it goes on."""
    options = {
        "model": model,
        "k": k,
        "engine": engine,
        "python": python,
        "url": url,
        "served_model": served_model,
        "set": overrides,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "system": tuple(system or ()),
        "logprobs": logprobs,
        "template": template,
        "device": device,
        "shard_size": shard_size,
        "reject_share": reject_share,
    }
    result = call("posttrain.sample_files:sample_file", read_options(options), prompts, out)
    typer.echo(call("posttrain.sample_files:summary_line", result), err=True)
    if as_json:
        print_json(result)


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


def average_command(
    members: Annotated[list[Path], typer.Argument(help="Model folders, or LoRA adapters.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; it appears whole.")],
    method: Annotated[
        Literal["uniform", "weighted", "greedy"] | None,
        typer.Option("--method", help="uniform; weighted with --weights; greedy with --dev."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="One a member, e.g. 0.7,0.3.")
    ] = None,
    dev: Annotated[
        Path | None, typer.Option("--dev", help="Dialogs that a greedy soup is measured by.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Model of the adapters; else what they name.")
    ] = None,
    template: TemplateOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Average models' weights, streamed: summed in float64, divided once, rounded once."""
    implied = "weighted" if weights else "greedy" if dev else "uniform"
    settings = from_options(
        AverageSettings,
        {
            "members": members,
            "method": method or implied,
            "weights": weights.split(",") if weights else (),
            "dev": dev,
            "base": base,
            "template": template,
            "device": device,
        },
    )
    module = "soup_files" if settings.method == "greedy" else "average_files"
    summary = call(f"posttrain.{module}:{module}", settings, out)
    if as_json:
        print_json(summary)
        return
    typer.echo(
        f"{out}: the {summary['method']} average of {len(summary['members'])} models, "
        f"{summary['parameters']:,} parameters",
        err=True,
    )
    for label, nll in sorted(summary.get("nll", {}).items(), key=lambda one: one[1]):
        typer.echo(f"  {nll:.4f} nats a token: {label}", err=True)


def push_command(
    folder: Annotated[
        Path, typer.Argument(help="Model folder with its card, from export or average.")
    ],
    repo: Annotated[str, typer.Argument(help="user/name on the Hugging Face Hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone see it; else it is private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch; else the main one.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list the files, and stop.")
    ] = False,
) -> None:
    """Upload a model folder to the Hugging Face Hub, private unless told otherwise."""
    if dry_run:
        files = call("posttrain.hub:listed", folder)
        seen = "everyone" if public else "you alone"
        typer.echo(f"{repo}, seen by {seen}: {', '.join(files)}")
        return
    typer.echo(call("posttrain.hub:push_folder", folder, repo, public, revision))
