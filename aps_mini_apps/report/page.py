"""What a run leaves behind for people: `preview.png` and one self-contained page, `report.html`."""

import base64
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from aps_mini_apps.report.preview import Result, draw, read_result
from aps_mini_apps.report.story import Story, verdict_on
from aps_mini_apps.sirt.writer import scan_of
from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent

if TYPE_CHECKING:
    from aps_mini_apps.quality.measures import Quality

Row = tuple[str, ...]
Table = tuple[str, str, Row, list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was written, and the figures in it."""

    preview: Path
    page: Path
    quality: "Quality | None"
    verdict: str
    headline: list[tuple[str, str]]


def last_result(folder: Path, story: Story) -> Result:
    """Return the last window that the scan wrote into `folder`; UserError if there is none."""
    for path in sorted(folder.glob("[0-9]*-recon.h5"), reverse=True):
        if scan_of(path) == story.scan:
            return read_result(path, story.dataset)
    raise UserError(f"no reconstruction of scan {story.scan} was written to {folder}: see the log above for the reason")


def write_report(folder: Path, story: Story) -> Report:
    """Write `preview.png` and `report.html` into `folder` from the last window of the run.

    Raises UserError if there is none, or if they cannot be written: the reconstruction stays as it is.
    """
    result = last_result(folder, story)
    quality = _judge(result, story)
    title = f"Mini-Stream: {Path(story.source).name}"
    preview, page = folder / "preview.png", folder / "report.html"
    picture = draw(result, story.truth, title)
    with whole_or_absent(preview) as aside:
        picture.savefig(aside, dpi=110, format="png")
    headline, verdict = _headline(result, story, quality), _verdict(result, story)
    environment = Environment(
        loader=PackageLoader("aps_mini_apps.report", "."), autoescape=select_autoescape(["html", "j2"])
    )
    text = environment.get_template("page.html.j2").render(
        title=title,
        complete=result.attributes["state"] == "complete",
        verdict=verdict,
        headline=headline,
        picture=base64.b64encode(preview.read_bytes()).decode(),
        tables=_tables(result, story, quality),
        scan=story.scan,
        software=result.attributes["software"],
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    with whole_or_absent(page) as aside:
        aside.write_text(text, encoding="utf-8")
    return Report(preview=preview, page=page, quality=quality, verdict=verdict, headline=headline)


def _judge(result: Result, story: Story) -> "Quality | None":
    if story.truth is None:
        return None
    from aps_mini_apps.quality.measures import compare  # loads the libraries of every measure

    return compare(result.volume, story.truth)


def _verdict(result: Result, story: Story) -> str:
    # a frame that the distributor never got is a gap for every worker too: the losses are not added up
    lost = max((int(event.get("lost", 0)) for event in story.services.values()), default=0)
    return verdict_on(str(result.attributes["state"]), lost)


def _headline(result: Result, story: Story, quality: "Quality | None") -> list[tuple[str, str]]:
    slices, size, _ = result.volume.shape
    attributes = result.attributes
    figures = [
        ("slices × rows × columns", f"{slices} × {size} × {size}"),
        ("projections reconstructed", str(attributes["angles_seen"])),
        ("rotation axis, column", _axis(attributes["center"])),
        ("projections a second", f"{_rate(story):.1f}"),
        ("seconds", f"{story.seconds:.1f}"),
        ("last data residual", f"{_float(attributes['misfit']):.4f}"),
    ]
    if story.tunnel:
        figures.append(("tunnel", f"{story.tunnel['proxy']}, open in {_float(story.tunnel['setup_ms']):.0f} ms"))
    if quality is not None:
        figures += [
            ("SSIM to the truth", f"{quality.ssim:.3f}"),
            ("RMSE, of the range", f"{quality.rmse:.4f}"),
        ]
    return figures


def _rate(story: Story) -> float:
    return min(
        (_float(e.get("rate", 0)) for name, e in story.services.items() if name.startswith("sirt")),
        default=0.0,
    )


def _axis(value: object) -> str:
    """Return the axis in columns, to a hundredth; one that leans as it was given."""
    return str(value) if ":" in str(value) else f"{_float(value):.2f}"


def _float(value: object) -> float:
    return float(str(value))


def _tables(result: Result, story: Story, quality: "Quality | None") -> list[Table]:
    keys = ("received", "sent", "rate", "lost", "refused", "seconds")
    services = [(name, *(_show(event.get(key)) for key in keys)) for name, event in story.services.items()]
    tables: list[Table] = [("Programs", "", ("program", *keys), services)]
    if quality is not None:
        note = f"Against the phantom, inside the circle; data range {quality.data_range:.5g} per pixel."
        figures = asdict(quality).items()
        rows: list[Row] = [(name.upper(), _show(value)) for name, value in figures if isinstance(value, float)]
        tables.append(("Quality", note, ("measure", "value"), rows))
    if story.tunnel:
        note = "Between the two gateways, with keys made for this run alone."
        tables.append(("Tunnel", note, ("figure", "value"), _pairs(story.tunnel)))
    tables.append(("Reconstruction", "As written into the file.", ("attribute", "value"), _pairs(result.attributes)))
    tables.append(("Settings of the run", "", ("option", "value"), _pairs(story.settings)))
    return tables


def _pairs(values: Mapping[str, Any]) -> list[Row]:
    return [(name, _show(value)) for name, value in sorted(values.items())]


def _show(value: object) -> str:
    if value is None or value == "":
        return "–"
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)
