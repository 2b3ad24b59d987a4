"""One HTML page that needs nothing else: its head, tables and small pictures. For the reports on data and on results.

Whatever was not written here (names of files, messages) goes through `escape` or `name`, and a rule in the head forbids the page to load anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.errors import OutputError
from latentsync.whole import whole

QUALITY = 80  # of JPEG


def escape(text: object) -> str:
    """Text as it may stand in a page, also inside quotes; characters that a page cannot hold are spelled out."""
    spelled = str(text).encode("utf-8", "backslashreplace").decode()
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in spelled))


def name(text: object) -> str:
    """A name from outside, escaped, and kept from turning the writing direction of what follows."""
    return f"<bdi>{escape(text)}</bdi>"


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """The whole page. It follows the reader's choice of light or dark, and may load nothing, nor run any script but this one."""
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style></head><body><main>\n{body}\n</main>" + (f"<script>{script}</script>" if script else "") + "</body></html>\n"
    )


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, label: str = "") -> str:
    """A table of plain text, in a frame that scrolls by itself where the page is narrow."""
    top = "".join(f"<th scope='col'>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return wide(f"<table><tr>{top}</tr>{body}</table>", label or str(head[0]))


def wide(inside: str, label: str) -> str:
    """A frame that scrolls by itself, also by the keyboard."""
    return f"<div class='wide' role='region' tabindex='0' aria-label='{escape(label)}'>{inside}</div>"


def jpeg(picture: np.ndarray, width: int = 0, quality: int = QUALITY) -> str:
    """(h, w, 3) uint8 RGB, shrunk to that width (0: as it is) -> a JPEG as the address of an <img>; empty where it cannot be encoded."""
    import cv2

    if width and width != picture.shape[1]:
        tall = max(1, round(picture.shape[0] * width / picture.shape[1]))
        picture = cv2.resize(picture, (width, tall), interpolation=cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_CUBIC)
    good, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return address("image/jpeg", data.tobytes()) if good else ""


def address(kind: str, data: bytes) -> str:
    """Data of a MIME type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def write(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a page, whole or not at all. Raises OutputError where it cannot be written, or exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite to replace it, or name another file")
    with whole(path, parents=True) as scratch:
        scratch.write_bytes(text.encode("utf-8", "backslashreplace"))


def number(value: float, digits: int = 3) -> str:
    """A number with that many significant digits, without an exponent between 0.001 and a million; whole ones as they are."""
    if not np.isfinite(value):
        return "–"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - int(np.floor(np.log10(size))))}f}"


def said(value: Any) -> str:
    """A setting in words."""
    if value in (None, "", [], (), {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k} {said(v)}" for k, v in value.items())
    return ", ".join(map(said, value)) if isinstance(value, list | tuple) else str(value)


STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--pale:#5f6b76;--line:#dfe3e8;--paper:#fff;--bar:#2c6fbb;--mark:#c2410c;--blank:#eef1f4}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--pale:#9aa5b1;--line:#333a41;--paper:#15181b;--bar:#5b9be0;--mark:#f59e62;--blank:#22272c}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:26px;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:17px;margin:32px 0 8px}p{margin:4px 0}a{color:var(--bar)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:3px 12px 3px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600}td.n{white-space:nowrap;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:20px}
figure{margin:0}figcaption{color:var(--pale);font-size:13px}svg{width:100%;height:auto}svg text{fill:var(--pale);font-size:11px}
.none{color:var(--pale)}
.blank{background:var(--blank);color:var(--pale);border-radius:4px;display:flex;align-items:center;justify-content:center}
footer{margin-top:40px;color:var(--pale);font-size:13px}
"""
