"""``st sample``: render a prompt from a checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    run: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="Text to render.", show_default=False)],
    checkpoint: Annotated[str, typer.Option(help="Step of a checkpoint, latest or best.")] = "latest",
    size: Annotated[str, typer.Option(help="Width x height, as in 512x768; else the run's first.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of the noise; else the run's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; else the run's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Strength of guidance; else the run's.")] = None,
    negative: Annotated[str | None, typer.Option(help="Text to keep away from; else the run's.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; else one in the run's samples folder.")] = None,
) -> None:
    """Render a prompt from a checkpoint of a run, as its validation does. Prints the file that was written."""
    from st.errors import StError
    from st.reopening import open_run
    from st.report.picture_files import recipe, save_picture
    from st.report.prompts import PromptOptions, parse_size, shots, texts
    from st.report.rendering import Failure, Renderer, encode_texts
    from st.report.untouched import untouched
    from st.train.assembly import predictor

    try:
        sizes = [parse_size(size)] if size else []
        asked = PromptOptions(prompt=prompt, negative=negative, seed=seed, steps=steps, guidance=guidance)
    except ValueError as error:
        raise StError(f"--size: {error}") from error
    opened, plugins = open_run(run, checkpoint)
    options = opened.config.validation
    (shot,) = shots([asked], sizes or [parse_size(options.resolutions[0])], options.defaults())
    sampler = plugins.registrar.lookup("sampler", options.sampler)
    renderer = Renderer(opened, sampler.build(sampler.options()), predictor(opened))
    geometry = renderer.geometry(shot, options.frames)
    encodings = encode_texts(opened.family, texts([shot]), opened.device)
    with untouched(opened.denoiser, opened.device):
        ((_, _, pixels),) = renderer.render([(shot, geometry)], encodings)
    if isinstance(pixels, Failure):
        raise StError(f"the picture could not be rendered: {pixels.reason}")
    if out is None:
        target = run / "samples" / f"{shot.name}-{geometry}-step-{opened.progress.step}-seed-{shot.seed}"
    else:
        target = out.with_suffix("") if out.suffix in {".png", ".webp"} else out
    typer.echo(save_picture(pixels, target, recipe(shot, str(geometry), options.sampler)))


COMMANDS = (sample,)
