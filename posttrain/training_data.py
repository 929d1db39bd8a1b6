"""What training reads of people: their examples and preferences, never one that is held out.

rows = human_examples(inputs, out)
"""

from collections.abc import Iterable
from pathlib import Path

from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.rows import Example, Preference, Prompt, Strength, prompt_hash
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows, read_table


def human_examples(inputs: Inputs, out: Output) -> list[Example]:
    """The rows of every input file named `human:…`, what was dropped in the books.

    Raises:
        BadInput: a larger share of a file is malformed than resources.reject_share allows.
    """
    forbidden = control_tokens(load_tokenizer(inputs["base"]))
    held_out = held_out_hashes(inputs)
    kept: dict[str, Example] = {}
    rows_in = 0
    for path in inputs.named("human:").values():
        table = read_table(path, Example, forbidden)
        table.check_share(inputs.resources.reject_share)
        out.reject(table.rejects)
        rows_in += len(table.rows) + len(table.rejects)
        for row in table.rows:
            if prompt_hash(row.messages[:-1]) in held_out:
                out.drop(row.id, "belongs to dev or test")
            elif row.id in kept:
                out.drop(row.id, "duplicate id")
            else:
                kept[row.id] = row
    out.part("human", rows_in, len(kept))
    return list(kept.values())


def strong_preferences(
    folders: Iterable[Path], min_strength: Strength, out: Output
) -> list[Preference]:
    """Training pairs of preference steps that are strong enough; weaker ones in the books.

    The reward model and DPO train on *better* and *significantly better* only (section 4.2.1).
    """
    rows = [row for folder in folders for row in load_rows(folder / "train.jsonl", Preference)]
    strong = []
    for row in rows:
        if row.strength.level >= min_strength.level:
            strong.append(row)
        else:
            out.drop(row.id, "too weak", strength=str(row.strength))
    out.part("strength", len(rows), len(strong))
    return strong


def held_out_prompts(inputs: Inputs) -> list[Prompt]:
    """Every dev and test prompt."""
    return [
        prompt
        for split in ("dev", "test")
        for prompt in load_rows(inputs["heldout"] / f"{split}.jsonl", Prompt)
    ]


def held_out_hashes(inputs: Inputs) -> frozenset[str]:
    """Hashes of every dev and test prompt."""
    return frozenset(prompt_hash(prompt.prompt) for prompt in held_out_prompts(inputs))
