"""Which model a server answers with, and how vLLM's server is made to answer with another.

Knows the list of models and vLLM's development routes. A server tells the folder it was started
with, not whether other weights were loaded since: so `reload` loads them at every opening.

    served = find_model(client, settings, Path("runs/my/round-1/policy/model"))
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from posttrain.errors import BadInput, StepFailed
from posttrain.rows import content_id
from posttrain.sampling.openai_client import Client, Question, Unusable, shown
from posttrain.settings.engines import OpenAIEngineSettings


class ServedModel(BaseModel):
    """One entry of a server's list of models; vLLM's own keys may be missing elsewhere."""

    id: str
    root: str | None = None
    """What it was loaded from: a folder, or a name on the Hugging Face Hub."""
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[ServedModel]


class _Device(BaseModel):
    device: str | None = None


class _Config(BaseModel):
    device_config: _Device


class _ServerInfo(BaseModel):
    vllm_config: _Config


class _Reset(BaseModel):
    success: bool


AnswerT = TypeVar("AnswerT", bound=BaseModel)


def parse_answer(kind: type[AnswerT], content: bytes) -> AnswerT:
    """An answer's JSON.

    Raises:
        Unusable: it is something else, with its start.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError:
        raise Unusable(f"an answer that makes no sense: {shown(content)}") from None


def find_model(client: Client, settings: OpenAIEngineSettings, folder: Path) -> ServedModel:
    """The served model that requests are for, sure to be the one of a folder.

    Raises:
        BadInput: the server has no such model, serves another folder's, or does not say whose.
        StepFailed: it does not answer.
    """
    (models,) = client.ask(
        [Question("the list of models", "GET", "/models", None, _reader(_Models))]
    )
    names = [model.id for model in models.data]
    found = [m for m in models.data if settings.model is None or m.id == settings.model]
    if len(found) != 1:
        wanted = f"expected {settings.model}" if settings.model else "name one as engine.model"
        raise BadInput(f"{client.url} serves {', '.join(names) or 'no model'}; {wanted}")
    model = found[0]
    if settings.reload:
        return model
    start = f"{client.url} serves {model.root or model.id}"
    if model.root is None or not Path(model.root).is_absolute():
        if settings.trust_served_model:
            return model
        raise BadInput(
            f"{start} and does not say from which folder, but this step samples from {folder}; "
            "serve it by that path, or set trust_served_model: true"
        )
    if Path(model.root).resolve() != folder.resolve():
        raise BadInput(
            f"{start}, but this step samples from {folder}; serve that there, or set reload: true "
            "(vllm serve with VLLM_SERVER_DEV_MODE=1)"
        )
    return model


def load_weights(client: Client, folder: Path) -> None:
    """Load a folder's weights into a vLLM server, and forget every prompt it has cached.

    Raises:
        BadInput: the server was started without its development routes, or runs on a processor.
        StepFailed: the weights do not fit its model, or it is answering somebody else.
    """
    root = client.url.removesuffix("/v1")
    try:
        (info,) = client.ask(
            [
                Question(
                    "what it runs on",
                    "GET",
                    f"{root}/server_info?config_format=json",
                    None,
                    _reader(_ServerInfo),
                )
            ]
        )
    except BadInput as error:
        raise BadInput(
            f"{error}; reload: true needs a `vllm serve` started with VLLM_SERVER_DEV_MODE=1"
        ) from None
    # See `vllm_worker`: there a reload leaves a tied output layer as it was.
    if info.vllm_config.device_config.device == "cpu":
        raise BadInput(
            f"{client.url} runs on a processor, where vLLM cannot reload weights; serve {folder}"
        )
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}}
    client.ask([Question("reload_weights", "POST", f"{root}/collective_rpc", body, bytes)])
    # Cached prompts of the old weights would silently spoil the new samples.
    (reset,) = client.ask(
        [
            Question(
                "reset_prefix_cache", "POST", f"{root}/reset_prefix_cache", None, _reader(_Reset)
            )
        ]
    )
    if not reset.success:
        raise StepFailed(
            f"{client.url} could not empty its prefix cache after loading {folder}: it is "
            "answering somebody else; with reload: true it must serve this run alone"
        )


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Wait until no other process of this user and machine has its weights in the server."""
    name = f"posttrain-{os.getuid()}-{content_id(url)}.lock"
    with FileLock(Path(tempfile.gettempdir()) / name):
        yield


def _reader(kind: type[AnswerT]) -> Callable[[bytes], AnswerT]:
    return partial(parse_answer, kind)
