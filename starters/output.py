"""What a command prints: text for people on a terminal or in a pipe, or one JSON document."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from workflows.model import plain

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

_PIPE_WIDTH = 120


class _Plain(Console):
    """A screen that nothing in what is shown can command: logs and answers of others are shown, too."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


class Output:
    """Where one command prints to.

    With JSON the document alone goes to standard output, and what is told on the way goes to standard error.
    """

    def __init__(self, as_json: bool) -> None:
        self.json = as_json
        stream = sys.stderr if as_json else sys.stdout
        self.console = _Plain(file=stream, highlight=False, width=None if stream.isatty() else _PIPE_WIDTH)

    @property
    def live(self) -> bool:
        """Whether the screen can be drawn over."""
        return self.console.is_terminal and not self.json

    def line(self, text: str = "", style: str = "") -> None:
        """One line, exactly as it is: no markup in it is acted upon, and none is broken for the terminal's width."""
        self.console.print(Text(text, style), soft_wrap=True)

    def show(self, document: Any, *views: RenderableType) -> None:
        """The result: the document with ``--json``, otherwise the views of it."""
        if self.json:
            sys.stdout.write(to_json(document, indent=2, fallback=str).decode() + "\n")
            sys.stdout.flush()
        else:
            for view in views:
                soft = isinstance(view, str | Text)
                self.console.print(Text(view) if isinstance(view, str) else view, soft_wrap=soft)
