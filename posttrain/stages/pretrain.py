"""Goes on pre-training the base on raw text: an expert's branch (section 4.3.1).

A document that holds a held-out prompt is never read.
"""

from posttrain.curation.decontaminate import held_out_in, index_heldout, worth_a_look
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.prompt_sources import held_out_prompts
from posttrain.rows import Document, Message
from posttrain.settings.stages import PretrainStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_table
from posttrain.training.circumstances import keep_books, training_job
from posttrain.training.launching import run_training
from posttrain.training.pretrain import train_text

CONTROL_TOKEN = "control token in the text"


def run(inputs: Inputs, settings: PretrainStage, out: Output) -> None:
    """Write `model/` and the training curve `metrics.jsonl`.

    Raises:
        BadInput: a larger share of a file is malformed than resources.reject_share allows, or a
            source has no document left.
    """
    documents = _documents(inputs, settings, out)
    job, model = training_job(inputs, out), out.path / "model"
    report = run_training(
        train_text, "pretrain", inputs.model("base"), documents, model, settings.pretrain, job
    )
    keep_books(report, len(documents), out)


def _documents(inputs: Inputs, settings: PretrainStage, out: Output) -> list[Document]:
    """Every usable document, each with its source."""
    forbidden = control_tokens(load_tokenizer(inputs["base"]))
    searched = settings.decontaminate
    heldout = index_heldout(held_out_prompts(inputs["heldout"]), searched.ngram)
    kept: dict[str, Document] = {}
    rows_in = 0
    for source in settings.pretrain.sources:
        for path in inputs.named(f"text:{source}:").values():
            table = read_table(path, Document)
            table.check_share(inputs.resources.reject_share)
            out.reject(table.rejects)
            rows_in += len(table.rows) + len(table.rejects)
            dialogs = [(Message(role="user", content=row.text),) for row in table.rows]
            looks = worth_a_look(dialogs, heldout, searched.ngram)
            for row, dialog, look in zip(table.rows, dialogs, looks, strict=True):
                hit = held_out_in(dialog, heldout, searched) if look else None
                if any(token in row.text for token in forbidden):
                    out.drop(row.id, CONTROL_TOKEN)
                elif hit is not None:
                    out.drop(row.id, hit.reason, heldout=hit.heldout, share=hit.share)
                elif row.id in kept:
                    out.drop(row.id, "duplicate id")
                else:
                    kept[row.id] = row.model_copy(update={"source": source})
    out.part("documents", rows_in, len(kept))
    return list(kept.values())
