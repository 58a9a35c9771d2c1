"""Pieces of HTML that the page's parts share. What is called ``said`` or ``title`` is text and is escaped here; what is
called ``body`` is HTML already."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from autocomp.report import words
from autocomp.report.views import Latency


def badges(said: Sequence[str]) -> str:
    return "".join(f'<span class="badge">{escape(each)}</span> ' for each in said)


def section(anchor: str, title: str, body: str) -> str:
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title" tabindex="-1">{escape(title)}</h2>'
        f"{body}</section>"
    )


def quiet(said: str) -> str:
    return f'<p class="quiet">{escape(said)}</p>'


def latency(value: Latency, beside: str = "") -> str:
    """Milliseconds with a badge that says where they come from and how far off they may be.

    Args:
        beside: HTML that stands between the two.
    """
    error = words.latency_error(value)
    return (
        f'<span class="number">{words.digits(value.ms)} ms</span>{beside} '
        f'<span class="source {value.source}">{value.source} {escape(error)}</span>'
    )


def plot(anchor: str, label: str, css: str = "plot") -> str:
    """Where the script draws a picture; what it shows stands in words or tables beside it."""
    return f'<div id="{anchor}" class="{css}" role="img" aria-label="{escape(label)}"></div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"


def scroll(label: str, body: str) -> str:
    """What may be wider than the page; reachable from the keyboard, which then moves it."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{body}</div>'
