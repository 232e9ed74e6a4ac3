"""Story: a run's events put together, without the steps that were taken again after a resume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st.report.log.events import Event, Tail
from st.report.page.columns import Columns

WORST_CAPTIONS = 10
UNLISTED = frozenset({"dataset", "caption", "checkpoint", "checkpoint_removed"})
"""Kinds of notes that have a place of their own."""


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence that was said."""

    time: float
    kind: str
    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One validation picture. path: as it was written; label: prompt, size and weights."""

    step: int
    path: str
    prompt: str
    label: str


@dataclass(slots=True)
class Story:
    """What happened in a run, in the order in which it counts.

    losses: ``loss`` of every step. reads: the means of each reading at its last step; covered: its ``steps``, how many
    they are; pauses: seconds that the loop paused for meanwhile. These three have the same rows.
    metrics: by name, (step, value), evaluation losses and what else was logged.
    dropped: samples by data set and reason; dropped_keys: some of their keys. resumes: steps that the run went on from.
    """

    name: str = ""
    directory: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    total: int = 0
    losses: Columns = field(default_factory=Columns)
    reads: Columns = field(default_factory=Columns)
    covered: Columns = field(default_factory=Columns)
    pauses: Columns = field(default_factory=Columns)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    pictures: list[Shown] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    datasets: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    dropped_keys: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    captions: list[Mapping[str, Any]] = field(default_factory=list)
    stages: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    outcome: str = "running"
    why: str = ""
    began: float = 0.0
    latest: float = 0.0
    """When the run was last heard of, in seconds since 1970."""
    alive_before: float = 0.0
    """Seconds that the starts of the run before the latest one were alive for."""
    alive_from: float = 0.0
    """When the latest start began."""

    @property
    def step(self) -> int:
        return self.reads.last_step or (self.resumes[-1] if self.resumes else 0)

    @property
    def seconds(self) -> float:
        """Time that the run was alive, without the time between a stop and a resume."""
        return self.alive_before + self.latest - self.alive_from

    def hear(self, event: Event) -> None:
        """One more event. Unknown events and facts are passed over."""
        now = float(event.get("time") or self.latest)
        if event["event"] == "open":
            self.alive_before += self.latest - self.alive_from
            self.alive_from = now
            self.began = self.began or now
        self.latest = now
        take = _TAKERS.get(event["event"])
        if take is not None:
            take(self, event)


def tell(events: Iterable[Event]) -> Story:
    """Put a run's events together."""
    story = Story()
    for event in events:
        story.hear(event)
    return story


class Following:
    """The story of a log that grows: what was put together once is kept. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._tail, self._story = Tail(path), Story()

    def so_far(self) -> Story:
        """The same story again, with what was appended since; a new one where the file is another one."""
        if self._tail.begins_anew():
            self._story = Story()
        for event in self._tail.fresh():
            self._story.hear(event)
        return self._story


def _open(story: Story, event: Event) -> None:
    story.name, story.directory = str(event.get("name", "")), str(event.get("directory", ""))
    story.config, story.versions = event.get("config") or {}, event.get("versions") or {}
    story.outcome, story.why = "running", ""
    # The data sets are looked at again by each start of the run.
    story.datasets, story.dropped, story.dropped_keys, story.captions = {}, {}, {}, []


def _train(story: Story, event: Event) -> None:
    step = int(event.get("step") or 0)
    story.total = int(event.get("total") or 0)
    _rewind(story, step)
    if step:
        story.resumes.append(step)


def _step(story: Story, event: Event) -> None:
    step, steps = int(event["step"]), int(event.get("steps") or 1)
    first = step - steps + 1
    if story.reads.last_step >= first:
        _rewind(story, first - 1)
    losses = event.get("losses") or []
    for at, loss in enumerate(losses, start=step - len(losses) + 1):
        story.losses.add(at, {"loss": loss})
    story.reads.add(step, event.get("metrics") or {})
    story.covered.add(step, {"steps": steps})
    story.pauses.add(step, event.get("paused") or {})


def _metrics(story: Story, event: Event) -> None:
    for name, value in (event.get("metrics") or {}).items():
        if value is not None:
            story.metrics.setdefault(name, []).append((int(event["step"]), float(value)))


def _pictures(story: Story, event: Event) -> None:
    for one in event.get("pictures") or []:
        story.pictures.append(Shown(int(event["step"]), str(one["path"]), str(one["prompt"]), str(one["label"])))


def _note(story: Story, event: Event) -> None:
    kind, step = str(event.get("kind", "note")), int(event.get("step") or 0)
    if kind == "checkpoint":
        story.checkpoints.append(step)
    elif kind == "dataset":
        story.datasets[str(event.get("dataset"))] = event
    elif kind == "caption":
        story.captions.append(event)
        story.captions.sort(key=lambda one: int(one.get("read") or 0) - int(one.get("tokens") or 0))
        del story.captions[WORST_CAPTIONS:]
    if kind not in UNLISTED:
        story.notes.append(Note(float(event.get("time") or 0), kind, step, str(event.get("text", ""))))


def _dropped(story: Story, event: Event) -> None:
    group = (str(event["dataset"]), str(event["reason"]).partition(":")[0])
    story.dropped[group] = story.dropped.get(group, 0) + 1
    keys = story.dropped_keys.setdefault(group, [])
    if len(keys) < 5:
        keys.append(str(event["key"]))


def _dropped_total(story: Story, event: Event) -> None:
    story.dropped[str(event["dataset"]), str(event["reason"])] = int(event["count"])


def _stage(story: Story, event: Event) -> None:
    story.stages.append(event)


def _finish(story: Story, event: Event) -> None:
    story.outcome, story.why = str(event.get("outcome", "")), str(event.get("why", ""))


_TAKERS = {
    "open": _open,
    "train": _train,
    "step": _step,
    "metrics": _metrics,
    "pictures": _pictures,
    "note": _note,
    "dropped": _dropped,
    "dropped_total": _dropped_total,
    "stage": _stage,
    "finish": _finish,
}


def _rewind(story: Story, step: int) -> None:
    """Forget what came after a step: the run took another way from there."""
    for columns in (story.losses, story.reads, story.covered, story.pauses):
        columns.cut(step)
    story.pictures = [one for one in story.pictures if one.step <= step]
    story.checkpoints = [one for one in story.checkpoints if one <= step]
    story.resumes = [one for one in story.resumes if one < step]
    kept = {name: [one for one in points if one[0] <= step] for name, points in story.metrics.items()}
    story.metrics = {name: points for name, points in kept.items() if points}
