"""Options: the base of every setting in a run file."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Settings of a plugin or of a part of the core.

    Plain data, so that checking a run file never imports torch. Each field's docstring is its help text, its entry in
    the reference and its description in the JSON schema; it ends with a period.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
