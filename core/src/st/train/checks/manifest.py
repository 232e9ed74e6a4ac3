"""The manifest of a run's folder: what it was made of, and whether a resumed run is made of the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.data.source.contents import contents_digest
from st.errors import Problem, ProblemsFound
from st.model.quantize.quantizer import text_encoders

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from st.data.cache.encoding import Encoded
    from st.data.sets.prepare import PreparedSet
    from st.model.family import ModelFamily
    from st.report.report import Report
    from st.settings.config import RunConfig
    from st.train.saving.output import OutputFolder

DATA, ENCODERS, WEIGHTS = "data", "encoders", "weights"


def data_facts(encoded: Encoded) -> dict[str, Any]:
    """By data set: how many samples, a digest of them, and what the backend says of where they came from."""
    return {one.config.name: _facts_of(one) for one in encoded.sets}


def encoder_facts(config: RunConfig, family: ModelFamily[Any]) -> dict[str, str]:
    """What the frozen parts are that samples and prompts are encoded with: their fingerprints, by name."""
    return {one.name: one.fingerprint for one in (family.codec(), *text_encoders(config.quantizer, family))}


def require_same(folder: OutputFolder, facts: Mapping[str, Any], accepted: Sequence[str], report: Report) -> None:
    """Compare what a resumed run is made of with the folder's manifest. A change that was accepted is noted.

    facts: parts of the manifest. Data sets that are only evaluated may change. Raises ProblemsFound.
    """
    before, problems = folder.manifest(), []
    for key, what in _changes(before, facts):
        if key.partition(".")[0] in accepted or key in accepted:
            report.note(f"{what}: accepted at this resume")
        else:
            why = "a resumed run continues exactly only with what it was started with"
            problems.append(Problem(key, what, why, f"put back what was there, or accept the change: --accept {key}"))
    if problems:
        raise ProblemsFound(problems)


def _changes(before: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    old = before.get(DATA)
    for name, now in facts.get(DATA, {}).items():
        then = old.get(name) if isinstance(old, dict) else None
        if isinstance(then, dict) and now["role"] == "train" and then.get("digest") != now["digest"]:
            what = f"data set {name!r} holds other files or captions than when the run began"
            yield f"{DATA}.{name}", f"{what} ({then.get('samples')} samples then, {now['samples']} now)"
    old = before.get(ENCODERS)
    for name, now in facts.get(ENCODERS, {}).items():
        if isinstance(old, dict) and old.get(name) not in (None, now):
            yield ENCODERS, f"the encoder {name!r} is another than when the run began"
    if WEIGHTS in facts and before.get(WEIGHTS) not in (None, facts[WEIGHTS]):
        yield WEIGHTS, "the denoiser's own weights are others than when the run began"


def _facts_of(one: PreparedSet) -> dict[str, Any]:
    role, digest = one.config.options.role, contents_digest(one.index)
    return {"samples": len(one.index), "role": role, "digest": digest, **one.backend.facts()}
