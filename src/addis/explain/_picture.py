"""Draws attributions: the map over the image, with a colour bar in the map's unit."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from addis.explain._attribution import Attribution

__all__ = ["write_html", "write_png"]


def write_png(
    path: Path, attribution: Attribution, images: Tensor, *, index: int, title: str
) -> Path:
    """Writes the picture of one image; see :meth:`Attribution.save_png`."""
    pictures = _as_pictures(attribution, images)
    if not 0 <= index < len(pictures):
        raise ValueError(f"index must lie in [0, {len(pictures) - 1}], got {index}")
    path.write_bytes(_png(pictures[index], attribution, index, title))
    return path


def write_html(
    path: Path, attribution: Attribution, images: Tensor, captions: list[str] | None
) -> Path:
    """Writes a self-contained page of all images; see :meth:`Attribution.save_html`."""
    pictures = _as_pictures(attribution, images)
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"need one caption an image, {len(pictures)}, got {len(captions)}")
    figures = []
    for index, picture in enumerate(pictures):
        words = _words(attribution, index)
        caption = f"{captions[index]}: {words}" if captions else words
        data = base64.b64encode(_png(picture, attribution, index, "")).decode()
        alt = html.escape(f"Image {index + 1} and its heat map by {attribution.method}: {caption}")
        figures.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    title = html.escape(f"{attribution.method}: {len(pictures)} images")
    layer = (
        f"<p>Layer <code>{html.escape(attribution.layer)}</code></p>" if attribution.layer else ""
    )
    path.write_text(
        _PAGE.format(title=title, layer=layer, figures="\n".join(figures)), encoding="utf-8"
    )
    return path


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 2rem; color: #1b1b1b; background: #fff; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(28rem, 1fr)); gap: 1.5rem; }}
figure {{ margin: 0; }}
img {{ max-width: 100%; height: auto; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #eee; background: #111; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
{layer}
<main>
{figures}
</main>
</body>
</html>
"""


def _words(attribution: Attribution, index: int) -> str:
    total = float(attribution.total_bits[index])
    return f"{total:,.1f} bits in all" if np.isfinite(total) else "no unit"


def _as_pictures(attribution: Attribution, images: Tensor) -> list[np.ndarray]:
    """Images ``(N, C, H, W)`` as arrays ``(H, W, 3)`` in ``[0, 1]``."""
    maps = attribution.map
    if images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) != len(maps):
        raise ValueError(
            f"images must be ({len(maps)}, 1 or 3, H, W), got shape {tuple(images.shape)}"
        )
    if maps.dim() != 3:
        raise ValueError(f"only maps (N, H, W) can be drawn, got shape {tuple(maps.shape)}")
    pictures = []
    for image in images.detach().float().cpu():
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            image = (image - low) / max(high - low, 1e-12)
        pictures.append(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    return pictures


def _png(picture: np.ndarray, attribution: Attribution, index: int, title: str) -> bytes:
    values = attribution.map[index].detach().float().cpu().numpy()
    height, width = picture.shape[:2]
    figure = Figure(figsize=(8.4, 0.6 + 3.6 * min(height / width, 2.0)), layout="constrained")
    plain, over = figure.subplots(1, 2)
    plain.imshow(picture)
    grey = picture @ np.array([0.299, 0.587, 0.114])
    over.imshow(grey, cmap="gray", vmin=0, vmax=1)
    signed = bool((values < 0).any())
    top = float(np.abs(values).max()) or 1.0
    norm = Normalize(-top if signed else 0.0, top)
    colours = colormaps["RdBu_r" if signed else "inferno"]
    tinted = colours(norm(values))
    tinted[..., 3] = 0.85 * np.sqrt(np.abs(values) / top)  # what carries nothing shows the photo
    over.imshow(tinted, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
    for axes in (plain, over):
        axes.set_axis_off()
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=over, fraction=0.05, pad=0.02)
    bar.set_label(attribution.unit or "relevance (no unit)", parse_math=False)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
