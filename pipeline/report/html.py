"""report.html: one file that explains a run, without a script, a font or a picture from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.pipeline.report.document import parse_report
from kdpipe.pipeline.report.files import write_text

_HERE = Path(__file__).resolve().parent


def write_html(report: Mapping[str, Any], path: Path) -> None:
    """Write the page for the content of a report.json. Figures are looked up beside `path`.

    Raises:
        ArtifactError: `report` is not a report.
        StorageError: the file can't be written.
    """
    write_text(path, render_html(report, path.parent))


def render_html(report: Mapping[str, Any], folder: Path) -> str:
    """Return the page; `folder` holds the figures that the report names."""
    import jinja2
    from markupsafe import Markup

    from kdpipe.pipeline.report.view import page

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((_HERE / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    return environment.get_template("report.html.jinja").render(page=page(parse_report(report), folder), style=style)
