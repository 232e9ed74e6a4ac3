"""Loader: batches for one rank, for ever, from a position that can be saved and restored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from st.options import Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st.data.cache.cache import Cache
    from st.data.cache.encoding import Encoded
    from st.data.feed.plan import Position, Unit
    from st.data.sets.words import Words
    from st.data.shape.buckets import BatchShape
    from st.diffusion.objective import Batch
    from st.notes import Notes
    from st.progress import Progress

    Collate = Callable[[Sequence[Mapping[str, Tensor]]], Mapping[str, Tensor]]


class LoaderOptions(Options):
    """How batches are put together."""

    prefetch: int = Field(4, ge=0)
    """Batches that are prepared while the denoiser works. 0 prepares each one when it is asked for."""

    keep_bytes: int = Field(1 << 30, ge=0)
    """Bytes of cache entries kept in memory by each rank, so that a small data set is read from the cache once."""

    mixture: Literal["length", "weight"] = "length"
    """What a data set's chance goes by: its number of samples times its weight, or its weight alone."""


class Loader:
    """Batches for one rank, for ever. All ranks iterate theirs at the same pace.

    The samples of a step, their order and what is drawn for them depend on the seed and on the samples of a step
    (batch x ranks x accumulate), and not on how they are split, as far as ``Plan`` says. Saved positions count batches
    that were handed out, not those prepared ahead. encoded: what ``fill`` gave; sets with role "evaluation" are kept
    for ``evaluation``.
    """

    def __init__(
        self,
        encoded: Encoded,
        cache: Cache,
        collate: Collate,
        shape: BatchShape,
        *,
        rank: int,
        seed: int,
        device: torch.device,
        report: Notes,
        options: LoaderOptions,
    ) -> None:
        from st.data.cache.mending import Mender
        from st.data.feed.batches import Assembler, Kept
        from st.data.feed.plan import Plan

        train = [one for one in encoded.sets if one.config.options.role == "train"]
        self._evaluated = [one for one in encoded.sets if one.config.options.role == "evaluation"]
        self.plan = Plan(train, shape, seed, by_length=options.mixture == "length")
        self._assembler = Assembler(
            encoded,
            Kept(cache, options.keep_bytes),
            collate,
            seed=seed,
            mender=Mender(encoded.origins, cache, report.warn),
            note=report.warn,
        )
        self._rank, self._device, self._report, self._depth = rank, device, report, options.prefetch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: deque[Future[tuple[Batch, _Place]]] = deque()
        self._handed = self._made = _Place(self.plan.start, 0)
        self._units: tuple[Unit, ...] = ()
        self._after: Position = self.plan.start

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next microbatch, on the device. Raises DataUnusable where no data set is in use any more."""
        from st.data.feed.batches import moved

        if not self._depth:
            batch, self._handed = self._make()
            return moved(batch, self._device)
        while len(self._ahead) < self._depth:
            self._ahead.append(self._pool.submit(self._make))
        batch, self._handed = self._ahead.popleft().result()
        self._ahead.append(self._pool.submit(self._make))
        return moved(batch, self._device)

    def _make(self) -> tuple[Batch, _Place]:
        """The batch after the last one made, and the place behind it. On the prefetching thread, one at a time."""
        from st.data.feed.batches import pinned

        place = self._made
        if not place.microbatch or not self._units:
            self._units, self._after = self.plan.next(place.position)
        unit = self.plan.share(self._units, place.microbatch, self._rank)
        batch = self._assembler.batch(
            self.plan.sets[unit.dataset], self.plan.buckets[unit.dataset][unit.bucket], unit.rows, unit.first
        )
        if place.microbatch + 1 < self.plan.shape.accumulate:
            self._made = _Place(place.position, place.microbatch + 1)
        else:
            self._made = _Place(self._after, 0)
        return pinned(batch) if self._device.type == "cuda" else batch, self._made

    @property
    def samples(self) -> int:
        """Samples handed out so far over all ranks: the next draw index."""
        return self._handed.position.samples + self._handed.microbatch * self.plan.shape.unit

    @property
    def epoch(self) -> int:
        """Completed epochs: those in which every sample of the data sets in use was handed out."""
        return self.plan.completed_epochs(self._handed.position)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the current epoch, with the data sets in use now."""
        position = self._handed.position
        return self.plan.epoch_steps(position.step + 1, position.epoch + 1)

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs from the start of a run."""
        return self.plan.steps(epochs)

    def consumed(self, progress: Progress) -> None:
        """Note in a run's progress how many epochs are complete."""
        progress.epoch = self.epoch

    def evaluation(self, select: Callable[[int], Sequence[int]]) -> dict[str, Iterator[Batch]]:
        """The evaluation sets by name as batches on the device, the same ones each time and on each rank.

        select: which rows of so many are used. Captions are each sample's first; none is dropped.
        """
        from st.data.feed.batches import fixed_batches, moved

        def batches(one: Any) -> Iterator[Batch]:
            rows = select(len(one.index))
            for batch in fixed_batches(self._assembler, one, rows, self.plan.shape.batch):
                yield moved(batch, self._device)

        return {one.name: batches(one) for one in self._evaluated}

    def encodings(self, wanted: Sequence[Words]) -> dict[Words, Mapping[str, Tensor]]:
        """What the text encoders gave for each, on the CPU. They were among the ``prompts`` of ``fill``."""
        return {words: self._assembler.conditions(words) for words in wanted}

    def state_dict(self) -> dict[str, Any]:
        """Where the batches handed out so far end, as JSON data; the same on every rank."""
        return {**self.plan.state(self._handed.position), "microbatches": self._handed.microbatch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batches that were handed out when ``state`` was taken, on whatever number of ranks.

        With as many samples in a step the order is the one begun. Where it is not, the report says why.
        """
        position, differences = self.plan.restore(state)
        done = state["microbatches"] * (state["effective_batch"] // max(state["accumulate"], 1))
        if done % self.plan.shape.unit or state["effective_batch"] != self.plan.shape.effective:
            differences += (
                f"the checkpoint is from within a step: its first {done} samples are trained on again",
            ) * bool(done)
            done = 0
        for text in differences:
            self._report.note(f"resumed: {text}", kind="warning")
        self._forget()
        self._units = ()
        self._handed = self._made = _Place(position, done // self.plan.shape.unit)

    def _forget(self) -> None:
        """Drop what was prepared ahead."""
        for future in self._ahead:
            future.cancel()
        while self._ahead:
            future = self._ahead.popleft()
            if not future.cancelled():
                future.exception()

    def close(self) -> None:
        """Stop preparing batches."""
        self._forget()
        self._pool.shutdown()
        self._assembler.close()


class _Place:
    """A position in the plan and the microbatches of its step that are done."""

    __slots__ = ("microbatch", "position")

    def __init__(self, position: Position, microbatch: int) -> None:
        self.position, self.microbatch = position, microbatch
