"""A page as one HTML file: everything inside, nothing fetched.

It runs offline and inside a sandboxed frame (``sandbox="allow-scripts"``), where there
is neither storage nor network; its content policy forbids every request, and every
script but its own, so that a name which reads like a script stays a name.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

SCRIPTS = ("parts", "report", "compare", "sweep")
"""Files of ``page/`` in their order; all but the first draw the data of their name."""


def write_page(page: str, out: Path) -> Path:
    """Write a page; a reader never meets half of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(out.name + ".new")
    new.write_text(page, encoding="utf-8")
    return new.replace(out)


def page_of(title: str, sections: Sequence[str], data: Mapping[str, Any]) -> str:
    """Put a page together.

    Args:
        title: As text; it is escaped here.
        sections: HTML.
        data: What ``report.js`` draws; any numbers and text.

    Returns:
        The whole page, with Plotly inside where there is something to draw.
    """
    own = [asset(f"{name}.js") for name in SCRIPTS if name in ("parts", *data)]
    scripts = [_plotly(), *own] if data else []
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{asset('report.css')}</style></head>",
        f"<body><main><h1>{escape(title)}</h1>",
        *sections,
        "</main>",
    ]
    if data:
        kind = 'type="application/json" id="data"'
        parts.append(f"<script {kind}>{embed(data)}</script>")
    parts += [f"<script>{script}</script>" for script in scripts]
    return "\n".join([*parts, "</body></html>\n"])


def embed(data: Any) -> str:
    """Return JSON that is safe inside a ``script`` element: no ``<``, ``>`` or ``&``.

    Numbers that are not finite become null, since JSON has none.
    """
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def asset(name: str) -> str:
    """Return a file of the page's own: its script or its style."""
    return (files("spectral_mlops.report") / "page" / name).read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """Turn arrays and numbers of NumPy into JSON's own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
