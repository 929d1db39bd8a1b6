"""Long contexts: questions about a whole document, summaries, a repository with a file missing.

Knows how a short piece of work becomes an example with a long context: the part is asked about, the
whole stands in the prompt. A document is cut to a bucket of lengths.

    posttrain recipes test long_context --model MODEL
"""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from posttrain.hooks import Handle, PromptRequest, Rejected, Verdict, ask
from posttrain.ladders import measures, needed
from posttrain.rows import Candidate, Example, Message, Prompt

from .ladder import questions
from .repository import importers


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """Values to look up in a list, of six lengths (`options: {levels: [1, 2]}`)."""
    return questions(request)


def synthesize(prompt: Prompt, handle: Handle) -> Iterator[Example | Rejected]:
    """What `options.makes` names, of a document or a repository (section 4.3.4)."""
    if "text" not in prompt.reference:
        yield Rejected("no document", prompt.prompt[-1].content)
        return
    makes = handle.options.get("makes", ["questions", "summary", "repository"])
    files = prompt.reference.get("files")
    if files:
        if "repository" in makes:
            yield _with_a_file_missing(prompt.id, files, handle)
        return
    size, document = _in_bucket(str(prompt.reference["text"]), handle)
    if not size:
        yield Rejected("shorter than every bucket", prompt.reference["text"][:80])
        return
    chunks = _chunks(document, handle)
    if "questions" in makes:
        yield from _questions(prompt.id, document, chunks, size, handle)
    if "summary" in makes:
        yield _summary(document, chunks, size, handle)


def _in_bucket(text: str, handle: Handle) -> tuple[str, str]:
    """The name of the longest bucket that a text fills, and the text cut to it; empty: none."""
    letters = int(handle.options.get("characters_per_token", 4))
    filled = [b for b in handle.options.get("buckets", (16000,)) if len(text) >= b * letters]
    return (f"{max(filled) // 1000}k", text[: max(filled) * letters]) if filled else ("", "")


def _chunks(document: str, handle: Handle) -> list[str]:
    """Parts of about equal length, cut between lines."""
    letters = int(handle.options.get("characters_per_token", 4))
    most = int(handle.options.get("chunk", 8000)) * letters
    chunks = [""]
    for line in document.splitlines(keepends=True):
        for start in range(0, len(line), most):
            if len(chunks[-1]) + len(line) > most and chunks[-1]:
                chunks.append("")
            chunks[-1] += line[start : start + most]
    return chunks


def _questions(
    row_id: str, document: str, chunks: Sequence[str], size: str, handle: Handle
) -> Iterator[Example | Rejected]:
    """Questions about some parts, each with the whole document as its context."""
    num = min(len(chunks), int(handle.options.get("questions", 3)))
    for chunk in random.Random(f"long_context/{row_id}").sample(list(chunks), num):
        (question,) = ask(handle, __file__, "question", text=chunk)
        if not question.finished or not question.strip():
            yield Rejected("no whole question", question)
            continue
        (answer,) = ask(handle, __file__, "answer", text=chunk, question=question)
        if not answer.finished or not answer.strip():
            yield Rejected("no whole answer", answer)
            continue
        yield _example(f"{document}\n\n{question.strip()}", answer, f"questions/{size}")


def _summary(document: str, chunks: Sequence[str], size: str, handle: Handle) -> Example | Rejected:
    """A summary of the summaries of a document's parts."""
    words = int(handle.options.get("summary_words", 300))
    parts = []
    for number, chunk in enumerate(chunks, 1):
        (said,) = ask(handle, __file__, "summary", text=chunk, part=number, words=words)
        if not said.finished:
            return Rejected("no whole summary of a part", said)
        parts.append(f"{number}. {said.strip()}")
    (whole,) = ask(handle, __file__, "summary", text="\n\n".join(parts), part=None, words=words)
    if not whole.finished or not whole.strip():
        return Rejected("no whole summary", whole)
    return _example(f"{document}\n\nSummarize this document.", whole, f"summary/{size}")


def _with_a_file_missing(
    row_id: str, files: Mapping[str, str], handle: Handle
) -> Example | Rejected:
    """A repository without a file that others import: which they are, and what it must hold."""
    least = int(handle.options.get("importers", 5))
    graph = importers(files)
    wanted = sorted(path for path, others in graph.items() if len(others) >= least)
    if not wanted:
        return Rejected(f"no file that {least} others import", ", ".join(sorted(files)[:5]))
    missing = random.Random(f"repository/{row_id}").choice(wanted)
    shown = "\n\n".join(
        f"### {path}\n```python\n{code}\n```"
        for path, code in sorted(files.items())
        if path != missing
    )
    size, _ = _in_bucket(shown, handle)
    if not size:
        return Rejected("repository shorter than every bucket", f"{len(shown)} characters")
    asked = (
        f"{shown}\n\nThe file {missing} of this repository is missing. Which files depend on it? "
        "Write it again."
    )
    told = "\n".join(f"- {path}" for path in graph[missing])
    said = f"These files import {missing}:\n{told}\n\n```python\n{files[missing]}\n```"
    return _example(asked, said, f"repository/{size}")


def _example(asked: str, said: str, how: str) -> Example:
    turns = (
        Message(role="user", content=asked),
        Message(role="assistant", content=str(said).strip()),
    )
    return Example(messages=turns, capability="long_context", source=how)


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict | None:
    """Whether the last word or number of the first line is `reference.answer`.

    None of a free dialog.
    """
    if not prompt.reference:
        return None
    expected = str(needed(prompt, "answer", "long_context"))
    stated = last_word(candidate.response)
    return Verdict(stated == expected, f"the response says {stated!r}, expected {expected!r}")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Share of answers that are nowhere in the prompt, filler, length, pass rate by level."""

    def invented(response: str, prompt: Prompt) -> bool:
        return last_word(response) not in re.findall(r"\w+", prompt.prompt[-1].content)

    return measures(candidates, prompts, {"invented_share": invented})


def last_word(text: str) -> str:
    """The last word of the first line that has one; empty if there is none."""
    for line in text.splitlines():
        words = re.findall(r"\w+", line)
        if words:
            return str(words[-1])
    return ""
