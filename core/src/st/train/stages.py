"""The stages of a run, one function each, in the order in which ``execute`` calls them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from st.data.shape.buckets import BatchShape
from st.errors import CheckpointDamaged, Interrupted, OutOfMemory, ProblemsFound, StError
from st.importing import quiet_libraries
from st.model.adapters.references import references_read, unsuited
from st.model.streams import streams_of
from st.progress import Outcome
from st.report.report import Report
from st.report.tracker import RunInfo
from st.train.checks.manifest import DATA, ENCODERS, WEIGHTS, data_facts, encoder_facts
from st.train.history import history
from st.train.preflight import check_files, check_shapes
from st.train.ranks.ranks import choose_device, engine_name
from st.train.saving.output import OutputFolder
from st.train.start import seed_generators

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from st.data.cache.cache import Cache
    from st.data.cache.encoding import Encoded
    from st.data.encoder import Encoder
    from st.data.feed.loader import Loader
    from st.data.sets.prepare import PreparedSet
    from st.data.store.store import Store
    from st.model.family import ModelFamily
    from st.plugins.activation import Plugins
    from st.settings.config import RunConfig
    from st.train.parts.run import Run
    from st.train.ranks.ranks import Ranks
    from st.train.session import Session


def start_ranks(config: RunConfig, plugins: Plugins) -> Ranks:
    """The engine of this process, with every source of random numbers seeded."""
    quiet_libraries()
    seed_generators(config.seed)
    device = choose_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise StError("precision = 'fp16': a CPU does not train in fp16", fix="set precision to 'bf16' or 'fp32'")
    if device.type not in {"cpu", "meta"} and device.index is not None:
        # What a library makes without naming a device belongs on this one too.
        torch.accelerator.set_device_index(device.index)
    if config.deterministic:
        # Read when cuBLAS is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    engine = plugins.registrar.lookup("engine", engine_name(config.ranks))
    ranks: Ranks = engine.build(device, config.ranks)
    return ranks


@contextmanager
def opened(
    config: RunConfig, plugins: Plugins, ranks: Ranks, *, resume: bool, accepted: Sequence[str]
) -> Iterator[tuple[OutputFolder, Report]]:
    """The output folder, claimed, and the report, open; both are closed whatever happens, and plugins are told of an
    error."""
    directory = Path(config.output)
    folder = OutputFolder(directory)
    changes: list[str] = []
    if ranks.main:
        folder.claim()
        free = [*accepted, *plugins.trackers, *(["plugins"] if _only_trackers_differ(config, folder, plugins) else [])]
        changes = folder.open(config.plain(), resume=resume, accepted=free)
    ranks.barrier("opening the output folder")
    info = RunInfo(config.redaction.text(config.name or directory.name), directory, config.plain())
    versions = {"st": _own_version(), "torch": torch.__version__}
    versions |= {name: facts["version"] for name, facts in plugins.versions().items() if facts["version"]}
    mean = ranks.mean if ranks.size > 1 else None
    report = Report.open(
        info, config.report, versions, rank=ranks.rank, mean=mean, doing=ranks.doing, redaction=config.redaction
    )
    report.note(f"running on {ranks.describe()}", kind="engine")
    for line in changes:
        report.note(line)
    clean = False
    try:
        yield folder, report
        clean = True
    except Interrupted as end:
        report.finish(Outcome.INTERRUPTED, str(end))
        raise
    except (RuntimeError, MemoryError) as error:
        if _is_of_memory(error):
            report.finish(Outcome.FAILED, str(error))
            raise _out_of_memory(config, error) from error
        lost = ranks.lost(error) if isinstance(error, RuntimeError) else None
        notes = getattr(error, "__notes__", ())
        report.finish(Outcome.FAILED, "\n".join([str(lost or error) or type(error).__name__, *notes]))
        if lost is None:
            raise
        raise lost from error
    except BaseException as error:
        report.finish(Outcome.FAILED, "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())]))
        raise
    finally:
        ranks.close(clean=clean)
        if ranks.main:
            folder.release()


def _is_of_memory(error: RuntimeError | MemoryError) -> bool:
    # The host's allocator has no error of its own.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def introduce(plugins: Plugins, report: Report) -> None:
    """Plugins that show a run hear of it from its first stage on."""
    plugins.answers("st_report_opened", report=report)


def newest_checkpoint(folder: OutputFolder, report: Report) -> int | None:
    """The step of the newest whole checkpoint; None where there is none. Damaged ones are named in the report.

    Raises CheckpointDamaged where none is whole, or nobody can tell which was the best.
    """

    def damaged(error: CheckpointDamaged) -> None:
        report.warn(f"{error}; looking for an older checkpoint")

    folder.vault.best()
    step = folder.vault.newest(damaged)
    if step is None and folder.vault.steps():
        raise CheckpointDamaged(
            f"no checkpoint in {folder.vault.directory} is whole",
            fix="start again in another folder: --output DIR",
        )
    if step is None:
        report.note("there is no checkpoint to resume from: starting at step 0")
    return step


def read_data(config: RunConfig, plugins: Plugins, report: Report) -> tuple[PreparedSet, ...]:
    """List, transform and bucket every data set, once the model's files are known to be there; what was dropped is in
    the report."""
    from st.data.sets.prepare import prepare
    from st.train.sources import data_parts

    check_files(plugins.family)
    parts = [data_parts(plugins, dataset) for dataset in config.datasets]
    backends, transforms = [backend for backend, _ in parts], [own for _, own in parts]
    store = open_cache_store(config)
    rule = plugins.family.geometry
    return prepare(
        config.datasets, backends, rule, seed=config.seed, transforms=transforms, report=report, cache_store=store
    )


def brought_encoders(config: RunConfig, plugins: Plugins, text_encoders: Sequence[Encoder]) -> tuple[Encoder, ...]:
    """What techniques have computed once of every sample. text_encoders: the family's. Raises PluginError."""
    from st.data.cache.features import feature_encoders

    family = plugins.family
    answers = plugins.answers("st_encoders", config=config, family=family)
    return feature_encoders([family.codec().name, *(encoder.name for encoder in text_encoders)], answers)


def open_cache_store(config: RunConfig) -> Store:
    """Where the cache lies: ``cache.url``, or ``cache`` in the output folder."""
    url = config.cache.url or str(Path(config.output) / "cache")
    store: Store = config.cache_store.build(url, config.cache_store.options)
    return store


def encode(
    config: RunConfig, plugins: Plugins, sets: Sequence[PreparedSet], ranks: Ranks, report: Report
) -> tuple[Encoded, Cache]:
    """Fill the cache with what training and validation need, one encoder in memory at a time.

    What would stop training later is looked for first: encoding may take hours.
    """
    from st.data.cache.cache import Cache
    from st.data.cache.encoding import fill
    from st.data.inspect.overlong import report_overlong
    from st.data.sets.remarks import report_rates
    from st.model.quantize.quantizer import text_encoders
    from st.report.rendering.asked import prompts_to_encode
    from st.report.rendering.prompts import check_facts
    from st.train.start import technique_texts

    check_shapes(sets, config, ranks.size)
    options = config.cache
    cache = Cache(
        open_cache_store(config),
        note=report.warn,
        shard_bytes=options.shard_bytes,
        shard_seconds=options.shard_seconds,
    )
    family = plugins.family
    adapter = config.adapter.build(config.adapter.options)
    read = references_read(family, adapter)
    for one in sets:
        if problem := unsuited(f"data set {one.name!r}", len(one.references), read):
            raise ProblemsFound([problem])
    encoders = text_encoders(
        config.quantizer, family, lambda done: report.note(done.sentence, kind="quantizer", kept=done.left)
    )
    check_facts(config.validation.wanted() if config.validation.every else (), encoders)
    if ranks.main:
        report_overlong(sets, encoders, report)
        report_rates(sets, family.codec(), report)
    encoded = fill(
        sets,
        family.codec(),
        encoders,
        cache,
        device=ranks.device,
        ranks=ranks,
        report=report,
        options=options,
        prompts=[*prompts_to_encode(config.validation), *technique_texts(config, plugins)],
        references=read.encoder if read else None,
        features=brought_encoders(config, plugins, encoders),
        streams=streams_of(family),
    )
    return encoded, cache


def build_loader(
    config: RunConfig, family: ModelFamily[Any], encoded: tuple[Encoded, Cache], ranks: Ranks, report: Report
) -> Loader:
    """Batches for this rank, in an order that does not depend on how many ranks there are."""
    from st.data.feed.loader import Loader

    found, cache = encoded
    check_shapes(found.sets, config, ranks.data)
    return Loader(
        found,
        cache,
        family.collate,
        shape=BatchShape(config.batch, ranks.data, config.accumulate),
        rank=ranks.share,
        seed=config.seed,
        device=ranks.device,
        options=config.loader,
        report=report,
    )


def made_of(run: Run, plugins: Plugins, encoded: Encoded) -> dict[str, Any]:
    """The run's manifest: settings, versions, seed, and digests of the data, the encoders and the weights.

    Empty on all ranks but the first.
    """
    if not run.ranks.main:
        return {}
    made: dict[str, Any] = {
        "settings": run.config.plain(),
        "plugins": plugins.versions(),
        "engine": run.ranks.describe(),
        "seed": run.config.seed,
        DATA: data_facts(encoded),
        ENCODERS: encoder_facts(run.config, run.family),
        WEIGHTS: run.weights,
    }
    plain: dict[str, Any] = run.config.redaction.data(made)
    return plain


def describe(folder: OutputFolder, config: RunConfig, made: Mapping[str, Any]) -> None:
    """Write the run's settings, which it has gone on with, and its manifest; ``made`` is empty on other ranks."""
    if made:
        folder.record(config.plain())
        folder.describe(made)


def export(session: Session, outcome: Outcome, encoded: Encoded) -> None:
    """Write what users load elsewhere: with a moving average, the averaged weights."""
    run = session.run
    if outcome is not Outcome.FINISHED:
        return
    with session.averaged(), run.ranks.doing("exporting"):
        with run.ranks.whole(run.denoiser, frozen=run.adapter.exports_base):
            if run.ranks.main:
                size, started = run.ranks.data, session.folder.started()
                metadata = history(
                    run.config, run.progress, encoded.sets, ranks=size, started=started, version=_own_version()
                )
                path = run.adapter.export(run.family, run.denoiser, run.directory, metadata)
                run.report.note(f"wrote {path}", kind="export", path=str(path))
                session.announce_exported(_files_of(path))
        run.ranks.barrier("the export")


def _files_of(exported: Path) -> list[Path]:
    """Every file of an export: those of a folder, or the file and its like in other formats beside it."""
    if exported.is_dir():
        return sorted(path for path in exported.rglob("*") if path.is_file())
    others = exported.parent.glob(f"{exported.stem}*{exported.suffix}")
    return [exported, *sorted(path for path in others if path != exported)]


def _only_trackers_differ(config: RunConfig, folder: OutputFolder, plugins: Plugins) -> bool:
    """Whether the plugin list is the folder's but for trackers, which show a run and do not change it."""
    before = folder.settings()
    trackers = set(plugins.trackers)
    known = set(config.plugins)
    old = [name for name in (before or {}).get("plugins", []) if name not in trackers and name in known]
    return before is not None and old == [name for name in config.plugins if name not in trackers]


def _own_version() -> str:
    from importlib.metadata import version

    return version("st-core")


def _out_of_memory(config: RunConfig, error: RuntimeError | MemoryError) -> OutOfMemory:
    """What to do, in the order of what costs least, leaving out what is done already."""
    remedies = []
    if not config.recompute.every:
        remedies.append("recompute.every = 1 (slower by about a third)")
    if config.batch > 1:
        remedies.append(f"batch = {max(config.batch // 2, 1)} with accumulate = {config.accumulate * 2}")
    if config.quantizer is None and config.adapter.kind != "full":
        remedies.append("a [quantizer]")
    remedies.append("a smaller resolution")
    said = str(error).splitlines()[0].rpartition("DefaultCPUAllocator: ")[2] if str(error) else "there is none left"
    return OutOfMemory(f"the device's memory is full: {said}", fix=f"try {'; '.join(remedies)}")
