"""The page's section of validation pictures: a row for each prompt, a column for each step."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path

from st.errors import StError
from st.report.files.clip_files import CLIPS, read_frames
from st.report.files.sound_files import SOUNDS, waveform
from st.report.page.story import Shown, Story

BASE = " base"
COLUMNS = 24
EDGE, SMALL_EDGE, MANY = 256, 160, 120


class Thumbnails:
    """Small JPEG copies of pictures and of what clips begin with, and outlines of sounds, as data URIs; made once for
    each file and size."""

    def __init__(self) -> None:
        self._made: dict[tuple[Path, float, int], str] = {}

    def of(self, path: Path, edge: int) -> str:
        """The copy whose longer edge is at most ``edge`` pixels; '' where the file is gone or is no picture."""
        from PIL import Image, UnidentifiedImageError

        try:
            known = (path, path.stat().st_mtime, edge)
            if known in self._made:
                return self._made[known]
            if path.suffix in SOUNDS:
                return self._made.setdefault(known, _uri("image/svg+xml", waveform(path).encode()))
            if path.suffix in CLIPS:
                small, _ = next(read_frames(path))
            else:
                with Image.open(path) as picture:
                    small = picture.convert("RGB")
        except (OSError, UnidentifiedImageError, StopIteration, StError):
            return ""
        small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        data = BytesIO()
        small.save(data, "JPEG", quality=84, optimize=True)
        return self._made.setdefault(known, _uri("image/jpeg", data.getvalue()))


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}" if data else ""


def samples_section(story: Story, directory: Path, thumbnails: Thumbnails) -> str:
    """The grid; nothing where no picture was rendered. Files are looked for in ``directory`` if the run has moved."""
    if not story.pictures:
        return ""
    cells = {(_row(one), _column(one)): one for one in story.pictures}
    steps = sorted({step for _, step in cells})
    shown = _spread(steps, COLUMNS)
    rows = dict.fromkeys(_row(one) for one in story.pictures)
    edge = SMALL_EDGE if len(rows) * len(shown) > MANY else EDGE
    head = "".join('<th class="base">base model</th>' if step < 0 else f"<th>step {step:,}</th>" for step in shown)
    body = "".join(
        f"<tr>{_heading(row, story)}"
        + "".join(_cell(cells.get((row, step)), directory, thumbnails, edge) for step in shown)
        + "</tr>"
        for row in rows
    )
    left_out = len(steps) - len(shown)
    hint = f'<p class="quiet">{left_out} further validations are in the samples folder.</p>' if left_out else ""
    return (
        '<section><h2>Validation samples</h2><div class="card"><div class="scroll newest"><table class="samples">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>{hint}</div></section>"
    )


def _row(one: Shown) -> str:
    return one.label.removesuffix(BASE)


def _column(one: Shown) -> int:
    """Its step; -1 for the model without the adapter."""
    return -1 if one.label.endswith(BASE) else one.step


def _spread(steps: list[int], most: int) -> list[int]:
    """At most so many of them, evenly, with the base model, the first and the last."""
    if len(steps) <= most:
        return steps
    head = steps[:2] if steps[0] < 0 else steps[:1]
    rest = steps[len(head) :]
    room = most - len(head)
    return head + [rest[(place + 1) * len(rest) // room - 1] for place in range(room)]


def _heading(row: str, story: Story) -> str:
    prompt = next(one.prompt for one in story.pictures if _row(one) == row)
    return f"<th><b>{escape(row)}</b><span>{escape(prompt)}</span></th>"


def _cell(one: Shown | None, directory: Path, thumbnails: Thumbnails, edge: int) -> str:
    if one is None:
        return '<td class="none">not rendered</td>'
    path = Path(one.path)
    # samples/step-00000500/cat-512x512.png, wherever the run's folder is by now.
    here = directory.joinpath(*path.parts[-3:])
    found = here if here.exists() else path
    data, plays = thumbnails.of(found, edge), found.suffix in SOUNDS and found.exists()
    if not data and not plays:
        return '<td class="none">file is gone</td>'
    link = escape("/".join(path.parts[-3:]))
    kind = ' class="base"' if _column(one) < 0 else ""
    shown = f'title="{escape(one.prompt)}" alt="{escape(one.label)}"'
    image = f'<img {shown} src="{data}">' if data else escape(path.name)
    if found.suffix in CLIPS and found.exists():
        image = f'<video autoplay loop muted playsinline {shown} poster="{data}" src="{link}"></video>'
    player = f'<audio controls preload="none" src="{link}"></audio>' if plays else ""
    step = "base model" if _column(one) < 0 else f"step {one.step:,}"
    return f'<td{kind} data-step="{step}"><a href="{link}">{image}</a>{player}</td>'
