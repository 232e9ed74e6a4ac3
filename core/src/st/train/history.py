"""History: what a saved adapter says of how it was made, in the words of kohya's tools and of modelspec."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from st.train.saving.output import now

if TYPE_CHECKING:
    from st.data.sets.prepare import PreparedSet
    from st.progress import Progress
    from st.registrar import Choice
    from st.settings.config import RunConfig

    Texts = dict[str, str]

PUBLISHED = frozenset(f"modelspec.{name}" for name in ("author", "description", "license", "tags", "trigger_phrase"))
"""Texts that are written for others to read."""

TAGS = 1000
"""How many tags of a data set are counted in a file: captions of whole sentences have as many as there are captions."""


def history(
    config: RunConfig, progress: Progress, sets: Sequence[PreparedSet], *, ranks: int, started: float, version: str
) -> Texts:
    """The header of a run's adapter; empty where the run file wants none. started: in seconds since 1970.

    The same run gives the same text, but for dates.
    """
    keep = config.metadata.keep
    if keep == "none":
        return {}
    trained = [one for one in sets if one.config.options.role == "train"]
    found = {
        "st_version": version,
        "st_steps": str(progress.step),
        **_settings(config),
        **_counts(config, progress, trained, ranks),
        **_titles(config, trained),
    }
    if keep == "all":
        found |= {"st_settings": json.dumps(config.plain()), **_of_data(config, trained)}
    # What [metadata] says is for everyone who gets the file, wherever it came from.
    own = {key: text for key, text in found.items() if key in PUBLISHED}
    plain: Texts = config.redaction.data(found)
    return plain | own | (_dates(started) if config.metadata.dates else {})


def _settings(config: RunConfig) -> Texts:
    optimizer, schedule = config.optimizer.options.model_dump(), config.schedule.options.model_dump()
    found: dict[str, object] = {
        "ss_seed": config.seed,
        "ss_learning_rate": optimizer.get("lr"),
        "ss_unet_lr": optimizer.get("lr"),
        "ss_optimizer": _called(config.optimizer),
        "ss_lr_scheduler": config.schedule.kind,
        "ss_lr_warmup_steps": schedule.get("warmup", 0),
        "ss_mixed_precision": {"fp32": "no"}.get(config.precision, config.precision),
        "ss_gradient_checkpointing": bool(config.recompute.every),
        "ss_max_grad_norm": config.clip.norm,
        "ss_loss_type": config.distance.kind,
        "ss_noise_offset": config.noise.offset or None,
        "ss_cache_latents": True,
        "ss_enable_bucket": True,
    }
    return {name: str(value) for name, value in found.items()}


def _counts(config: RunConfig, progress: Progress, sets: Sequence[PreparedSet], ranks: int) -> Texts:
    images = sum(len(bucket) for one in sets for bucket in one.buckets)
    whole = config.batch * ranks
    found = {
        "ss_steps": progress.step,
        "ss_max_train_steps": progress.step,
        "ss_epoch": progress.epoch,
        "ss_num_epochs": max(progress.epoch, 1),
        "ss_num_train_images": images,
        "ss_num_reg_images": 0,
        "ss_num_batches_per_epoch": math.ceil(images / whole),
        "ss_batch_size_per_device": config.batch,
        "ss_total_batch_size": whole * config.accumulate,
        "ss_gradient_accumulation_steps": config.accumulate,
    }
    edge = _edge(sets)
    texts = {name: str(value) for name, value in found.items()}
    return texts | {"ss_resolution": f"({edge}, {edge})", "ss_bucket_info": _buckets(sets)}


def _titles(config: RunConfig, sets: Sequence[PreparedSet]) -> Texts:
    options, edge = config.metadata, _edge(sets)
    name = config.name or (PurePath(config.output).name if options.keep == "all" else "")
    found = {
        "modelspec.title": options.title or name,
        "modelspec.author": options.author,
        "modelspec.description": options.description,
        "modelspec.license": options.license,
        "modelspec.tags": ", ".join(options.tags),
        "modelspec.trigger_phrase": options.trigger_phrase,
        "modelspec.resolution": f"{edge}x{edge}",
        "ss_output_name": name,
    }
    return {key: text for key, text in found.items() if text}


def _of_data(config: RunConfig, sets: Sequence[PreparedSet]) -> Texts:
    """What tells of the user's pictures and folders."""
    folders = {
        one.config.name: {"n_repeats": one.config.options.repeats + 1, "img_count": len(one.index)} for one in sets
    }
    tags = {one.config.name: _tags(one) for one in sets}
    found = {"ss_dataset_dirs": json.dumps(folders), "ss_tag_frequency": json.dumps(tags)}
    checkpoint = config.model.model_dump().get("checkpoint")
    return found | ({"ss_sd_model_name": PurePath(checkpoint).name} if checkpoint else {})


def _tags(one: PreparedSet) -> dict[str, int]:
    """How often each part of a caption between commas is there, most frequent first."""
    return one.index.caption_parts(",", TAGS)


def _buckets(sets: Sequence[PreparedSet]) -> str:
    counts: Counter[tuple[int, int]] = Counter()
    for one in sets:
        for bucket in one.buckets:
            counts[bucket.geometry.width, bucket.geometry.height] += len(bucket)
    sizes = enumerate(sorted(counts.items()))
    return json.dumps({"buckets": {str(n): {"resolution": list(size), "count": count} for n, (size, count) in sizes}})


def _edge(sets: Sequence[PreparedSet]) -> int:
    """Of a square with as many pixels as the largest resolution."""
    return round(math.sqrt(max((one.config.options.area for one in sets), default=0.0)))


def _called(choice: Choice) -> str:
    options: Mapping[str, Any] = choice.options.model_dump()
    return f"{choice.kind}({','.join(f'{name}={value}' for name, value in options.items())})"


def _dates(started: float) -> Texts:
    finished = now()
    date = datetime.fromtimestamp(finished, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"modelspec.date": date, "ss_training_started_at": str(started), "ss_training_finished_at": str(finished)}
