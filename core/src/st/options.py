"""Options: the base of every setting in a run file."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError


class Options(BaseModel):
    """Settings of a plugin or of a part of the core.

    Plain data, so that checking a run file never imports torch. Each field's docstring is its help text, its entry in
    the reference and its description in the JSON schema; it ends with a period.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name is not None:
            kinds = _kinds(cls.model_fields[info.field_name].annotation)
            if bool not in kinds and {int, float} & kinds:
                raise PydanticKnownError("int_type" if float not in kinds else "float_type")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("it holds a NUL, which is in no name and no text")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation such as ``int | None``, not those that tables and lists hold."""
    members = get_args(annotation) if annotation is not None and not isinstance(annotation, type) else ()
    return set().union(*map(_kinds, members)) if members else {annotation}
