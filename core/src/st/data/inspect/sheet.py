"""A page of what training will see: one self-contained HTML file with every bucket's pictures, crops and captions."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from st.data.inspect.previews import clip_preview, sound_preview
from st.data.media.picture import decode_mask, resized
from st.errors import SampleUnreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from st.data.sets.prepare import PreparedSet
    from st.data.shape.buckets import Bucket

_EDGE = 220
_NOT_TRAINED = np.array([255, 0, 90], np.float32)

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; --mark: #ff2d6f; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .2rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .6rem; border-top: 1px solid var(--line); padding-top: .8rem; }
p { margin: .2rem 0; color: var(--soft); } h3 small, figcaption small { color: var(--soft); font-weight: normal; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .7rem; min-width: 0; }
.pair { display: flex; gap: .6rem; align-items: flex-start; } .pair > div { min-width: 0; flex: 1 1 0; }
figure > img, audio { display: block; width: 100%; height: auto; } figure > small { color: var(--soft); }
audio { height: 2.4rem; } pre { white-space: pre-wrap; }
.pair img { display: block; width: 100%; height: auto; } .pair small { color: var(--soft); font-size: .75rem; }
.whole { position: relative; } .whole i { position: absolute; border: 2px solid var(--mark); box-sizing: border-box; }
figcaption { margin-top: .5rem; overflow-wrap: anywhere; } figcaption code { font-size: .8rem; }
figcaption ul { margin: .3rem 0 0; padding-left: 1.1rem; } .bad { color: var(--mark); }
"""


def page(sets: Sequence[PreparedSet], per_bucket: int) -> str:
    """The page as text: for each bucket its first ``per_bucket`` samples, whole with the crop drawn in, and cropped.

    The cropped pictures are the pixels that are trained on, made smaller; what a mask leaves out is tinted.
    """
    body = "\n".join(part for one in sets for part in _set(one, per_bucket))
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>What training sees</title><style>{_STYLE}</style>\n<h1>What training sees</h1>\n"
        "<p>Left: the resized picture with its crop. Right: the pixels that are trained on. Clips and sounds play. "
        f"Tinted: left out by a mask.</p>\n{body}\n</html>\n"
    )


def _set(one: PreparedSet, per_bucket: int) -> Iterator[str]:
    out = ", ".join(f"{number} {reason}" for reason, number in one.dropped.items())
    out = f"; left out: {escape(out)}" if out else ""
    url = escape(one.config.options.url)
    yield f"<h2>{escape(one.name)}</h2><p>{url}: {len(one.index)} samples{out}</p>"
    for bucket in one.buckets:
        yield from _bucket(one, bucket, per_bucket)


def _bucket(one: PreparedSet, bucket: Bucket, per_bucket: int) -> Iterator[str]:
    rows = np.unique(bucket.rows)
    shown = f", {per_bucket} of them shown" if len(rows) > per_bucket else ""
    noun = "sample" if len(bucket) == 1 else "samples"
    yield f"<h3>{bucket.geometry} <small>aspect {bucket.aspect:g}, {len(bucket)} {noun}{shown}</small></h3>"
    yield "<div class=cards>"
    yield from (_card(one, int(row)) for row in rows[:per_bucket])
    yield "</div>"


def _card(one: PreparedSet, row: int) -> str:
    key = one.index.key(row)
    try:
        pictures = _preview(one, row) + "".join(
            f"<small>{escape(other.name)}</small>{_preview(other, row)}" for other in one.references
        )
    except SampleUnreadable as error:
        pictures = f"<p class=bad>{escape(error.reason)}</p>"
    captions = one.index.captions(row)
    listed = "".join(f"<li>{escape(caption) or '<small>(empty)</small>'}</li>" for caption in captions)
    text = f"<ul>{listed}</ul>" if len(captions) > 1 else f"<div>{escape(captions[0]) if captions else ''}</div>"
    if not any(captions):
        text = "<div class=bad>no caption</div>"
    text += "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(fact)}</pre></details>"
        for name, fact in one.index.facts(row).items()
    )
    return f"<figure>{pictures}<figcaption><code>{escape(key)}</code>{text}</figcaption></figure>"


def _preview(one: PreparedSet, row: int) -> str:
    return {"image": _pair, "video": clip_preview, "audio": sound_preview}[one.index.kind(row)](one, row)


def _pair(one: PreparedSet, row: int) -> str:
    key, extras, fit = one.index.key(row), one.index.extras(row), one.index.fit(row)
    whole = resized(key, one.backend.read(key), fit)
    (top, left), (height, width) = fit.crop, (fit.geometry.height, fit.geometry.width)
    pixels = np.asarray(whole.crop((left, top, left + width, top + height)))
    if "mask" in extras:
        pixels = _tinted(pixels, decode_mask(extras["mask"], one.backend.read(extras["mask"]), fit))
    box = (left / whole.width, top / whole.height, width / whole.width, height / whole.height)
    style = ";".join(
        f"{name}:{100 * part:.2f}%" for name, part in zip(("left", "top", "width", "height"), box, strict=True)
    )
    sizes = (f"{whole.width}x{whole.height}, crop at {left},{top}", f"{width}x{height}")
    return (
        f'<div class=pair><div><div class=whole>{_image(whole)}<i style="{style}"></i></div>'
        f"<small>{sizes[0]}</small></div><div>{_image(Image.fromarray(pixels))}<small>{sizes[1]}</small></div></div>"
    )


def _tinted(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    amount = 0.65 * (1 - mask[..., None].astype(np.float32) / 255)
    return (pixels * (1 - amount) + _NOT_TRAINED * amount).astype(np.uint8)


def _image(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((2 * _EDGE, 2 * _EDGE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img loading=lazy alt="" width={small.width} height={small.height} src="data:image/jpeg;base64,{data}">'
