"""Reads and checks the human-written examples that join in a round.

One whose prompt belongs to dev or test by its hash is never trained on, whatever file it stands in.
"""

from posttrain.curation.decontaminate import held_out_in, index_heldout
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.prompt_sources import held_out_prompts
from posttrain.rows import Example, split_of
from posttrain.settings.stages import HumanStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_table


def run(inputs: Inputs, settings: HumanStage, out: Output) -> None:
    """Write `train.jsonl`.

    Raises:
        BadInput: a larger share of a file is malformed than resources.reject_share allows.
    """
    forbidden = control_tokens(load_tokenizer(inputs["base"]))
    heldout = index_heldout(held_out_prompts(inputs["heldout"]), settings.decontaminate.ngram)
    kept: dict[str, Example] = {}
    rows_in = 0
    for path in inputs.named("human:").values():
        table = read_table(path, Example, forbidden)
        table.check_share(inputs.resources.reject_share)
        out.reject(table.rejects)
        rows_in += len(table.rows) + len(table.rejects)
        for row in table.rows:
            split = split_of(row.messages[:-1], settings.splits.dev, settings.splits.test)
            hit = held_out_in(row.messages, heldout, settings.decontaminate)
            if split != "train":
                out.drop(row.id, f"belongs to {split}")
            elif hit is not None:
                out.drop(row.id, hit.reason, heldout=hit.heldout, share=hit.share)
            elif row.id in kept:
                out.drop(row.id, "duplicate id")
            else:
                kept[row.id] = row
    out.write("train", kept.values())
    out.part("human", rows_in, len(kept))
