"""diffusers' own training scripts as programs to measure beside: run from a checkout, with flags and nothing else."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from time import process_time
from typing import Any

from child import say
from family_settings import RANK, TARGETS, Files
from processes import Case

SCRIPTS = {
    "flux": "examples/dreambooth/train_dreambooth_lora_flux.py",
    "sdxl": "examples/text_to_image/train_text_to_image_lora_sdxl.py",
}
NEEDED = ("datasets", "tensorboard")
VARIABLE = "DIFFUSERS_EXAMPLES"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A checkout. absent: why its scripts cannot be measured; empty where they can. note: what a reader has to know."""

    checkout: Path
    absent: str = ""
    note: str = ""

    def case(self, files: Files, precision: str, steps: int, name: str = "turns") -> Case:
        """The family's script, which reports every so many steps, or what it encodes in as many (``encodes``)."""
        assert not self.absent
        script = self.checkout / SCRIPTS[files.family]
        stand_in = files.folder / "stand-in"
        if not stand_in.exists():
            _write_stand_in(stand_in)
        return ("upstream", name, [str(script), _flags(files, precision), str(stand_in), str(files.folder), steps])


def find_upstream(checkout: Path | None) -> Upstream:
    """The checkout that was named, or that the environment names."""
    named = checkout or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        return Upstream(Path(), "name a checkout with --diffusers")
    missing = [script for script in SCRIPTS.values() if not (named / script).is_file()]
    if missing:
        return Upstream(named, f"the checkout has no {missing[0]}")
    needed = [name for name in NEEDED if find_spec(name) is None]
    if needed:
        return Upstream(named, f"its scripts need {' and '.join(needed)}")
    lacking = find_spec("torchvision") is None
    note = "torchvision is not installed: a stand-in of its resize and crop, outside the steps, takes its place"
    return Upstream(named.resolve(), note=note if lacking else "")


def script_turns(script: str, flags: Sequence[str], stand_in: str, scratch: str, steps: int) -> None:
    """The script as it is, until its input ends."""
    import runpy

    from stepclock import report_turns

    report_turns(steps)
    _settle(stand_in, scratch)
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")


def script_encodes(script: str, flags: Sequence[str], stand_in: str, scratch: str, steps: int) -> None:
    """CPU milliseconds that the script's networks spend on a picture and on a caption, up to its last step."""
    import runpy

    _settle(stand_in, scratch)
    from diffusers import AutoencoderKL
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

    picture = _Timed(AutoencoderKL, "encode")
    texts = [_Timed(one, "forward") for one in (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel)]
    taken = 0

    def count(optimizer: Any, arguments: Any, keywords: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == steps:
            captions = max(one.calls for one in texts)
            seconds = sum(one.seconds for one in texts)
            say({"picture": 1e3 * picture.seconds / picture.calls, "caption": 1e3 * seconds / captions})
            os._exit(0)

    register_optimizer_step_post_hook(count)
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")


class _Timed:
    """Calls of a method and the CPU seconds inside them."""

    def __init__(self, kind: Any, name: str) -> None:
        self.calls, self.seconds = 0, 0.0
        method = getattr(kind, name)

        @wraps(method)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = process_time()
            answer = method(*arguments, **keywords)
            self.calls, self.seconds = self.calls + 1, self.seconds + process_time() - began
            return answer

        setattr(kind, name, timed)


def _settle(stand_in: str, scratch: str) -> None:
    """A hub of its own; and the stand-in, once the libraries that scripts import have found out what is not there."""
    os.environ["HF_HOME"] = f"{scratch}/hub"
    if find_spec("torchvision") is not None:
        return
    import datasets  # noqa: F401
    from transformers.utils import is_torchvision_available

    assert not is_torchvision_available()
    sys.path.insert(0, stand_in)


def _flags(files: Files, precision: str) -> list[str]:
    shared: dict[str, object] = {
        "pretrained_model_name_or_path": files.checkpoint,
        "dataset_name": files.listed,
        "cache_dir": files.folder / "hub",
        "caption_column": "text",
        "image_column": "image",
        "resolution": files.resolution,
        "train_batch_size": 1,
        "max_train_steps": 1_000_000,
        "checkpointing_steps": 1_000_000,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "rank": RANK,
        "report_to": "tensorboard",
        "mixed_precision": "bf16" if precision == "bf16" else "no",
        "output_dir": files.folder / f"{files.name}-{precision}-upstream",
    }
    own = {"instance_prompt": "photo", "max_sequence_length": 512, "lora_layers": ",".join(TARGETS["flux"])}
    flags = shared | (own if files.family == "flux" else {})
    switches = ["--center_crop", *(["--cache_latents"] if files.family == "flux" else [])]
    return [*(f"--{name}={value}" for name, value in flags.items()), *switches]


def _write_stand_in(folder: Path) -> None:
    transforms = folder / "torchvision" / "transforms"
    transforms.mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("stand_in.py"), transforms / "__init__.py")
    (transforms / "functional.py").write_text("from torchvision.transforms import crop\n\n__all__ = ['crop']\n")


CASES: dict[str, Callable[..., None]] = {"turns": script_turns, "encodes": script_encodes}
