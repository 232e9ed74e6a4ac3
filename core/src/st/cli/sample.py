"""``st sample``: render a prompt from a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from st.cli.printing.say import say


def sample(
    run: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="Text to render.", show_default=False)],
    checkpoint: Annotated[str, typer.Option(help="Step of a checkpoint, latest or best.")] = "latest",
    size: Annotated[str, typer.Option(help="Width x height, as in 512x768; else the run's first.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of the noise; else the run's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; else the run's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Strength of guidance; else the run's.")] = None,
    negative: Annotated[str | None, typer.Option(help="Text to keep away from; else the run's.")] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="Picture that the model is shown; may be given several times.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Length of a sound; else the run's.")] = None,
    fact: Annotated[
        list[str] | None, typer.Option(help="What the model is told beside the text, as bpm=120; several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; else one in the run's samples folder.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load plugins that the run names as files.")] = False,
) -> None:
    """Render a prompt from a checkpoint of a run, as its validation does. Prints the file that was written."""
    from st.errors import StError
    from st.model.adapters.references import references_read, unsuited
    from st.model.quantize.quantizer import text_encoders
    from st.report.files.picture_files import save_picture
    from st.report.rendering.prompts import PromptOptions, check_facts, recipe, sized, texts
    from st.report.rendering.rendering import Failure, Renderer, encode_texts
    from st.train.parts.networks import computing
    from st.train.reopening import open_run
    from st.train.validation.untouched import untouched
    from st.train.validation.validation import capped, references_shown

    sizes = _sizes(size)
    told: dict[str, Any] = {"negative": negative, "seed": seed, "steps": steps, "guidance": guidance}
    told |= {"seconds": seconds or None, "references": tuple(reference or ()), "facts": _facts(fact or ())}
    asked = PromptOptions(prompt=prompt, **told)
    opened, plugins = open_run(run, checkpoint, trust=trust)
    options = opened.config.validation
    (one,) = sized([asked], sizes or options.sizes()[:1], options.defaults())
    sampler = plugins.registrar.lookup("sampler", options.sampler)
    shown = references_shown(opened)
    if problem := unsuited("--prompt", len(one.references), references_read(opened.family, opened.adapter)):
        raise StError(problem.what, fix="show one with --reference FILE" if shown else "leave out --reference")
    within = partial(computing, opened)
    renderer = Renderer(opened, sampler.build(sampler.options()), opened.ask, shown=shown, within=within)
    geometry = renderer.geometry(one, options.frames)
    encoders = text_encoders(opened.config.quantizer, opened.family)
    check_facts([one], encoders)
    _warn(capped(opened, one, geometry))
    encodings = encode_texts(opened.family, texts([one]), opened.device, encoders)
    with untouched(opened.denoiser, opened.device):
        ((_, _, pixels),) = renderer.render([(one, geometry)], encodings)
    if isinstance(pixels, Failure):
        raise StError(f"the picture could not be rendered: {pixels.reason}")
    name = f"{one.name}-{geometry}-step-{opened.progress.step}-seed-{one.seed}"
    target = run / "samples" / name if out is None else _without_ending(out)
    facts = opened.config.redaction.data(recipe(one, str(geometry), options.sampler))
    codec, sound = opened.family.codec(), renderer.sounds.get((one.name, geometry))
    rate = codec.frames_per_second
    say(save_picture(pixels, target, facts, codec.sample_rate, frames_per_second=rate, sound=sound))


def _sizes(size: str) -> list[tuple[int, int]]:
    from st.errors import StError
    from st.report.rendering.prompts import parse_size

    try:
        return [parse_size(size)] if size else []
    except ValueError as error:
        raise StError(f"--size: {error}") from error


def _warn(sentence: str) -> None:
    if sentence:
        say(f"warning: {sentence}", err=True)


def _facts(given: Iterable[str]) -> dict[str, str]:
    """Facts by name. Raises StError for one that is not NAME=TEXT."""
    from st.errors import StError

    for one in given:
        if not one.partition("=")[2]:
            raise StError(f"--fact {one!r} says nothing", fix="write it as --fact bpm=120")
    return {name: text for name, _, text in (one.partition("=") for one in given)}


def _without_ending(path: Path) -> Path:
    from st.report.files.picture_files import ENDINGS

    return path.with_suffix("") if path.suffix in ENDINGS else path


COMMANDS = (sample,)
