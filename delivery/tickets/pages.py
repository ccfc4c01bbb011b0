"""Two pages: where users ask for files and fetch them, and where operators see the queue.

They come with nothing from elsewhere, may load nothing from elsewhere (Content-Security-Policy), and do what they do by
the same routes as every other client.
"""

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)

HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def add_to(app: FastAPI) -> None:
    """Add the pages and what they need."""
    templates = Environment(
        loader=PackageLoader("delivery.tickets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    app.mount("/static", StaticFiles(packages=[("delivery.tickets", "static")]), name="static")

    def page(name: str) -> HTMLResponse:
        return HTMLResponse(templates.get_template(f"{name}.html.j2").render(), headers=HEADERS)

    @app.get("/", response_class=HTMLResponse, tags=["pages"])
    def downloads() -> HTMLResponse:
        """Show the page for downloads."""
        return page("downloads")

    @app.get("/queue", response_class=HTMLResponse, tags=["pages"])
    def queue() -> HTMLResponse:
        """Show the queue, for operators."""
        return page("queue")
