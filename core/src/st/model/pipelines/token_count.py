"""How many tokens of a caption a pipeline reads, with the template or system prompt that it puts around them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from st.model.checkpoint.quiet import left_out, quietly

if TYPE_CHECKING:
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder

UNBOUNDED = 1 << 20
"""Tokenizers without a limit of their own say so with a number beyond this one."""

PROBE = "qzx"
"""A caption that no template holds, in letters that pipelines leave as they are."""

FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What a pipeline raises once it looks at embeddings that are not there. It has asked its tokenizers by then."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a pipeline asks one tokenizer: with text around the caption, and up to a number of tokens in all."""

    tokenizer: Any
    before: str = ""
    after: str = ""
    limit: int = UNBOUNDED
    special: bool = True

    def tokens(self, caption: str) -> int:
        """Tokens of a caption and of what is around it, none cut off."""
        text = f"{self.before}{caption}{self.after}"
        asked = self.tokenizer(text, truncation=False, verbose=False, add_special_tokens=self.special)
        return len(asked.input_ids)


def readings(
    pipeline: Any, folder: CheckpointFolder, components: Sequence[str], arguments: Mapping[str, Any]
) -> list[Reading]:
    """How a pipeline asks each of its tokenizers. Networks are built without weights, so that it takes a moment.

    components: those that have to do with text. arguments: of ``encode_prompt``, beside the prompt.
    """
    from st.model.checkpoint.networks import load_tokenizer

    names = [name for name in components if name.startswith("tokenizer")]
    tokenizers: dict[str, Any] = {name: load_tokenizer(folder, name) for name in names}
    calls: list[tuple[Any, str, Mapping[str, Any]]] = []
    with quietly(), _heard(tokenizers.values(), calls):
        _ask(pipeline, folder, components, tokenizers, arguments)
    longest = arguments.get("max_sequence_length") or UNBOUNDED
    return [_reading(tokenizer, calls, longest) for tokenizer in tokenizers.values()]


def _ask(
    pipeline: Any,
    folder: CheckpointFolder,
    components: Sequence[str],
    tokenizers: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> None:
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    parts: dict[str, Any] = dict(tokenizers)
    nowhere = torch.device("meta")
    classes = folder.components()
    try:
        for name in components:
            kind: Any = getattr(transformers, classes[name], None)
            if name not in parts and getattr(kind, "config_class", None) is not None:
                with nowhere:
                    parts[name] = kind(kind.config_class(**folder.config(name)))
        parameters = inspect.signature(pipeline.__init__).parameters
        wanted = [name for name, one in parameters.items() if one.default is one.empty or name in parts]
        given = {name: parts.get(name) for name in wanted if name != "self"}
        made = pipeline(**given, **left_out(pipeline, [name for name in given if name not in parts]))
        asked = dict(arguments)
        if "device" in inspect.signature(made.encode_prompt).parameters:
            asked["device"] = nowhere
        with torch.no_grad():
            made.encode_prompt(prompt=[PROBE], **asked)
    except (*FAILURES, StrictDataclassError):
        return


@contextmanager
def _heard(tokenizers: Any, calls: list[tuple[Any, str, Mapping[str, Any]]]) -> Iterator[None]:
    """Note every text that these tokenizers are given, with how."""
    classes = [(tokenizer, type(tokenizer)) for tokenizer in tokenizers]
    for tokenizer, kind in classes:
        tokenizer.__class__ = _noting(kind, calls)
    try:
        yield
    finally:
        for tokenizer, kind in classes:
            tokenizer.__class__ = kind


def _noting(kind: Any, calls: list[tuple[Any, str, Mapping[str, Any]]]) -> Any:
    def call(self: Any, text: Any = None, *more: Any, **given: Any) -> Any:
        texts = [text] if isinstance(text, str) else list(text or ())
        calls.extend((self, one, given) for one in texts if isinstance(one, str))
        return kind.__call__(self, text, *more, **given)

    # A special method is looked up on the class, so that the instance gets a class of its own.
    return type(kind.__name__, (kind,), {"__call__": call})


def _reading(tokenizer: Any, calls: Sequence[tuple[Any, str, Mapping[str, Any]]], longest: int) -> Reading:
    """How this one was asked; as if alone with the caption where nothing is known."""
    own = tokenizer.model_max_length
    plain = Reading(tokenizer, limit=min(longest, own))
    asked = [(text, given) for one, text, given in calls if one is tokenizer and PROBE in text]
    # Pipelines ask a second time without a limit, to say what they cut off.
    cutting = [(text, given) for text, given in asked if given.get("truncation")]
    if not asked:
        return plain
    text, given = (cutting or asked)[0]
    before, _, after = text.partition(PROBE)
    around = Reading(tokenizer, before, after, special=given.get("add_special_tokens", True))
    # What is around a caption is often cut out of the embeddings before they are.
    room = longest + around.tokens("") - plain.tokens("")
    limit = given.get("max_length") or own if cutting else UNBOUNDED
    return Reading(tokenizer, before, after, min(limit, room), around.special)
