"""Commands about a file of rows by itself, outside of any run: curate, dedup."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.models import ShareOption
from posttrain.cli.shared import JsonOption, call, print_json
from posttrain.settings.base import from_options
from posttrain.settings.data_options import CurateFileSettings, DedupFileSettings


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("curate")(curate_command)
    app.command("dedup")(dedup_command)


OutOption = Annotated[Path, typer.Option("--out", help="Folder for kept.jsonl and dropped.jsonl.")]


def curate_command(
    rows: Annotated[Path, typer.Argument(help="Dialogs: id and messages, JSONL or Parquet.")],
    out: OutOption,
    pipeline: Annotated[
        Path | None, typer.Option("--pipeline", help="pipeline.yaml; else the workspace's or ours.")
    ] = None,
    heldout: Annotated[
        list[Path] | None,
        typer.Option("--heldout", help="Evaluation prompts no row may hold; repeatable."),
    ] = None,
    mix: Annotated[
        list[str] | None, typer.Option("--mix", help="Wanted share, e.g. math=0.3; repeatable.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Key of the pipeline, e.g. dedup.mode=ivf.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Breaks ties.")] = 0,
    reject_share: ShareOption = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Clean, deduplicate, balance and decontaminate dialogs; each dropped one has its reason."""
    settings = from_options(
        CurateFileSettings,
        {
            "pipeline": pipeline,
            "overrides": tuple(overrides or ()),
            "heldout": tuple(heldout or ()),
            "mix": dict(one.partition("=")[::2] for one in mix or ()),
            "seed": seed,
            "reject_share": reject_share,
        },
    )
    summary = call("posttrain.curate_files:curate_file", settings, rows, out)
    if as_json:
        print_json(summary)
        return
    call("posttrain.curate_files:print_summary", summary)


def dedup_command(
    rows: Annotated[Path, typer.Argument(help="Rows with messages or text, JSONL or Parquet.")],
    out: OutOption,
    vectors: Annotated[
        Path | None, typer.Option("--vectors", help="Unit vectors of the rows, .npy; else embed.")
    ] = None,
    embedder: Annotated[
        str, typer.Option("--embedder", help="minilm, or a sentence-transformers folder.")
    ] = "minilm",
    threshold: Annotated[
        float, typer.Option("--threshold", help="Cosine from which a row is a duplicate.")
    ] = 0.95,
    mode: Annotated[
        Literal["auto", "exact", "ivf", "clustered"],
        typer.Option("--mode", help="auto is exact up to 100,000 rows, then ivf."),
    ] = "auto",
    rule: Annotated[
        Literal["kept", "seen"],
        typer.Option("--rule", help="Rows before that count."),
    ] = "kept",
    probes: Annotated[int, typer.Option("--probes", help="ivf: clusters to compare with.")] = 8,
    passes: Annotated[int, typer.Option("--passes", help="clustered: clusterings.")] = 1,
    jaccard: Annotated[
        float, typer.Option("--jaccard", help="Shared wording of a copy; 0 leaves this out.")
    ] = 0.8,
    max_loss: Annotated[
        float, typer.Option("--max-loss", help="Stop past this loss of a source or capability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the clusters.")] = 0,
    reject_share: ShareOption = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Drop equal rows, rows of the same wording and near-equal ones; each names its keeper."""
    settings = from_options(
        DedupFileSettings,
        {
            "vectors": vectors,
            "embedder": embedder,
            "threshold": threshold,
            "mode": mode,
            "rule": rule,
            "probes": probes,
            "passes": passes,
            "jaccard": jaccard,
            "max_loss": max_loss,
            "seed": seed,
            "reject_share": reject_share,
        },
    )
    summary = call("posttrain.dedup_files:dedup_file", settings, rows, out)
    if as_json:
        print_json(summary)
        return
    call("posttrain.dedup_files:print_summary", summary)
