"""Redaction: what a run file took from the environment, written as it was written there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from st.errors import StError

SHORTEST = 6
"""Characters of the shortest value that is looked for inside of other texts: a shorter one is no secret, but a word."""

PLACES = frozenset({"path", "directory"})
"""Names of facts that programs read as places of files; they stay as they are."""

_ADDRESS = re.compile(r"(\w+://)(?:[^/@\s]+|[^@\s]*:[^@\s]*)@")
_QUERY = re.compile(r"([?&](?:[\w-]*(?:token|key|secret|signature)|sig|password)=)[^&\s#]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Redaction:
    """Puts ``{env:NAME}`` in place of what that variable holds. placeholders: by value."""

    placeholders: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Redaction:
        """For variables by name."""
        found = {value: f"{{env:{name}}}" for name, value in sorted(values.items()) if len(value) >= SHORTEST}
        # The longest first: one value may be part of another.
        return cls(dict(sorted(found.items(), key=lambda item: -len(item[0]))))

    def text(self, text: str) -> str:
        """A text without those values."""
        for value, placeholder in self.placeholders.items():
            text = text.replace(value, placeholder)
        return text

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Inside, errors of the user's say nothing of those values."""
        try:
            yield
        except StError as error:
            error.reword(self.text)
            raise

    def data(self, data: Any) -> Any:
        """Plain data without those values, in texts and in keys; facts named as in PLACES are left alone."""
        if not self.placeholders:
            return data
        if isinstance(data, str):
            return self.text(data)
        if isinstance(data, Mapping):
            return {
                self.text(key) if isinstance(key, str) else key: value if key in PLACES else self.data(value)
                for key, value in data.items()
            }
        if isinstance(data, (list, tuple)):
            return [self.data(item) for item in data]
        return data


PLAIN = Redaction()
"""Of runs that took nothing from the environment."""


def holds_credentials(address: str) -> bool:
    """Whether an address (``https://KEY:SECRET@host``, ``https://x/y?token=...``) says who it is that asks."""
    return without_credentials(address) != address


def without_credentials(text: str) -> str:
    """A text whose addresses have stars in place of credentials."""
    return _QUERY.sub(r"\1***", _ADDRESS.sub(r"\1***@", text))
