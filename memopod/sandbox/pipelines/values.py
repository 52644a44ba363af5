"""Values of parameters: their types, and their text on the command line, in files and in commands."""

import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from memopod.sandbox.pipelines.errors import PipelineError

if TYPE_CHECKING:
    from memopod.sandbox.pipelines.plan import Parameter

TYPES = ("NUMBER_INTEGER", "NUMBER_DOUBLE", "STRING", "BOOLEAN", "LIST", "STRUCT")
"""Types of parameters in IR (`ParameterType.ParameterTypeEnum`) that the sandbox knows."""


def from_text(text: str, kind: str) -> Any:
    """The value of a parameter, from a command line or from the file that a step wrote.

    Raises ValueError with what was expected; the text itself is not repeated.
    """
    if kind == "STRING":
        return text
    try:
        value = json.loads(text.strip().lower() if kind == "BOOLEAN" else text, parse_constant=_no_constant)
    except ValueError:
        raise ValueError(_expected(kind)) from None
    return typed(value, kind)


def typed(value: Any, kind: str) -> Any:
    """A decoded value as one of `kind`; whole numbers become integers or floats as the type wants.

    Raises ValueError with what was expected.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "NUMBER_INTEGER" and number and float(value).is_integer():
        return int(value)
    if kind == "NUMBER_DOUBLE" and number and math.isfinite(value):
        return float(value)
    wanted = {"STRING": str, "BOOLEAN": bool, "LIST": list, "STRUCT": dict}.get(kind)
    if wanted is not None and isinstance(value, wanted):
        return value
    raise ValueError(_expected(kind))


def as_text(value: Any) -> str:
    """A value as it stands in a command: text as it is, numbers without exponent, JSON for the rest.

    The same as Kubeflow's launcher does (backend/src/v2/component/launcher_v2.go, getPlaceholders).
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
        return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)
    return canonical(value)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values are equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse_parameters(given: Iterable[str], declared: "Mapping[str, Parameter]") -> dict[str, Any]:
    """The run's parameters from `name=value` words, defaults filled in; optional ones may be absent.

    Raises PipelineError for a word without `=`, an unknown, repeated, missing or mistyped parameter.
    """
    values: dict[str, Any] = {}
    for word in given:
        name, separator, text = word.partition("=")
        if not separator or not name:
            raise PipelineError(f"-p {name}", "expected name=value")
        if name not in declared:
            known = ", ".join(sorted(declared)) or "it has none"
            raise PipelineError(f"parameter {name!r}", f"the pipeline has no such parameter (known: {known})")
        if name in values:
            raise PipelineError(f"parameter {name!r}", "is given twice")
        try:
            values[name] = from_text(text, declared[name].kind)
        except ValueError as error:
            raise PipelineError(f"parameter {name!r}", str(error)) from None
    for name, parameter in declared.items():
        if name in values:
            continue
        if parameter.default is not None:
            values[name] = parameter.default
        elif not parameter.optional:
            raise PipelineError(
                f"parameter {name!r}", f"is missing: give it with -p {name}=VALUE ({parameter.kind})"
            )
    return values


def _expected(kind: str) -> str:
    return {
        "NUMBER_INTEGER": "expected a whole number (NUMBER_INTEGER)",
        "NUMBER_DOUBLE": "expected a number (NUMBER_DOUBLE)",
        "STRING": "expected text (STRING)",
        "BOOLEAN": "expected true or false (BOOLEAN)",
        "LIST": "expected a JSON list (LIST)",
        "STRUCT": "expected a JSON object (STRUCT)",
    }[kind]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
