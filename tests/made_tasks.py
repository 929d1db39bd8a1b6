"""Preference tasks for tests: two short answers to a short question.

task(3, times=2, a=[said("four")])
"""

from typing import Any

from posttrain.rows import Task


def said(text: str, role: str = "assistant") -> dict[str, Any]:
    """A turn of a dialog."""
    return {"role": role, "content": text}


def task(number: int, **fields: Any) -> Task:
    """Task `tNUMBER`, with these columns in place of its own."""
    return Task.model_validate(
        {
            "id": f"t{number}",
            "parents": [f"p{number}"],
            "prompt": [said(f"question {number}?", "user")],
            "a": [said(f"answer a{number}")],
            "b": [said(f"answer b{number}")],
            "model_a": "round-1/dpo-a",
            "model_b": "round-1/dpo-b",
            "capability": "math",
            "batch": "round-2",
            **fields,
        }
    )
