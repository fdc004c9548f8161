"""`mmtrackers app`: track in a browser."""

from typing import Annotated

from typer import Option


def app(
    port: Annotated[int | None, Option(help="Port; the first free one from 7860 by default.")] = None,
    no_browser: Annotated[bool, Option("--no-browser", help="Print the address, open nothing.")] = False,
) -> None:
    """Track in a browser: choose a video, draw boxes, watch, correct, download. On this machine alone."""
    import importlib.util

    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the app needs gradio, which is not installed: pip install 'mmtrackers[app]'")
    from mmtrackers.browser.app import App

    App().launch(port, host="127.0.0.1", open_browser=not no_browser)
