"""The settings base class, and how a wrong key or value becomes one readable line.

Knows pydantic and YAML values; knows no particular setting.

    parse(Plan, {"bse": "x"}, "rounds/tiny.yaml")   # BadInput: rounds/tiny.yaml: bse: unknown key …
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from posttrain.errors import BadInput


class Settings(BaseModel):
    """Frozen; unknown keys are errors; the string under a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def parse(kind: type[SettingsT], data: Mapping[str, Any], origin: str) -> SettingsT:
    """Validate data as `kind`.

    Raises:
        BadInput: one line for every wrong key or value: origin, path, what is allowed, what came.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = [f"{origin}: {_explain(kind, item)}" for item in _causes(error)]
        raise BadInput("\n".join(lines)) from None


def from_options(kind: type[SettingsT], options: Mapping[str, Any]) -> SettingsT:
    """The settings that a command line's options say.

    Raises:
        BadInput: one line for every option that is wrong.
    """
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        lines = []
        for item in _causes(error):
            option = f"--{str(item['loc'][0]).replace('_', '-')}: " if item["loc"] else ""
            came = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
            lines.append(f"{option}{str(item['msg']).removeprefix('Value error, ')}{came}")
        raise BadInput("\n".join(lines)) from None


def _causes(error: ValidationError) -> list[Mapping[str, Any]]:
    """The errors of a user: a list does not count as too short because its items are wrong."""
    found: list[Mapping[str, Any]] = list(error.errors())
    places = [tuple(item["loc"]) for item in found]

    def has_wrong_items(place: tuple[int | str, ...]) -> bool:
        return any(other != place and other[: len(place)] == place for other in places)

    return [i for i in found if i["type"] != "too_short" or not has_wrong_items(tuple(i["loc"]))]


def _explain(kind: type[BaseModel], item: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _keys(kind), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"{path}: unknown key{hint}"
    if item["type"] == "union_tag_not_found":
        return f"{path}.type: this key is required beside the others"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{path}: this key is required"
    came = repr(item["input"])
    if item["type"] == "value_error" or len(came) > 80:
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {came})"


def _keys(kind: type[BaseModel]) -> set[str]:
    """Every key that occurs anywhere below a settings class, for near matches."""
    found: set[str] = set()
    schema = kind.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        found.update(part.get("properties", {}))
    return found


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of data in which each `a.b=c` (or `a.0.b=c` in a list) is set; c is read as YAML.

    Raises:
        BadInput: an override without `=`, or a path through something that is no mapping or list.
    """
    result: dict[str, Any] = _copied(data)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise BadInput(f"--set {override}: expected key.path=value")
        *parents, last = path.split(".")
        place: Any = result
        for part in parents:
            place = _descend(place, part, override)
        value = _value(text, override)
        if isinstance(place, list):
            place[_index(place, last, override)] = value
        else:
            place[last] = value
    return result


def _copied(value: Any) -> Any:
    """A copy without shared parts: a YAML anchor used twice must not be overridden twice."""
    if isinstance(value, Mapping):
        return {key: _copied(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(child) for child in value]
    return value


def _value(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"--set {override}: the value is no valid YAML: {reason}") from error


def _descend(place: Any, part: str, override: str) -> Any:
    key: Any = _index(place, part, override) if isinstance(place, list) else part
    child = place[key] if isinstance(place, list) else place.setdefault(part, {})
    if child is None:
        child = place[key] = {}
    if not isinstance(child, dict | list):
        raise BadInput(f"--set {override}: {part} is {child!r}, which has no keys below it")
    return child


def _index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise BadInput(f"--set {override}: {part} is no index of a list of {len(items)}")
    return int(part)
