"""The page /docs: the OpenAPI document for people, in one file that loads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from latentsync.page import document, escape, table, wide

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"  # as the page's own
STYLE = """
code,pre{font-size:13px}pre{margin:8px 0;overflow-x:auto}h2 code{font-size:15px;overflow-wrap:anywhere}h3{font-size:15px;margin:20px 0 4px}
.verb{color:var(--mark)}td code{white-space:nowrap}td.type{min-width:11em}
@media (max-width:600px){.fields th{display:none}.fields tr{display:block;border-bottom:1px solid var(--line);padding:4px 0}
.fields td{display:block;border:0;padding:0}.fields td.type{color:var(--pale);font-size:13px}}
"""
EXAMPLE = """curl -F video=@speaker.mp4 -F audio=@speech.wav SERVICE/v1/jobs
curl SERVICE/v1/jobs/ID
curl -OJ SERVICE/v1/jobs/ID/result"""
_METHODS = ("post", "get", "put", "delete")


def page(openapi: Mapping[str, Any]) -> str:
    """The whole page: what is asked most comes first, what is true of all routes is said once."""
    info = openapi["info"]
    body = [f"<h1>{escape(info['title'])} <span class='none'>{escape(info['version'])}</span></h1>"]
    body += [f"<p>{_code(part)}</p>" for part in info.get("description", "").split("\n\n")]
    body.append(f"<pre>{escape(EXAMPLE)}</pre><p>For programs: <a href='openapi.json'>openapi.json</a></p>")
    errors: dict[str, str] = {}
    for path, item in sorted(openapi["paths"].items(), key=lambda p: (not p[0].startswith("/v1/jobs"), not p[0].startswith("/v1"))):
        for method in _METHODS:
            if method in item:
                body += _route(method, path, item[method])
                errors |= {c: a.get("description", "") for c, a in item[method]["responses"].items() if c >= "4" and path.startswith("/v1")}
    body += ["<h2 id='errors'>Errors</h2>", table(("status", "meaning"), sorted(errors.items()), label="Errors")]
    schemas = openapi.get("components", {}).get("schemas", {})
    if schemas:
        body.append("<h2>What is answered</h2>")
        for name, schema in schemas.items():
            body.append(f"<h3 id='{escape(name)}'>{escape(name)}</h3><p>{_code(schema.get('description', ''))}</p>")
            body.append(_fields(schema, name))
    return document(f"{info['title']}: the HTTP service", "\n".join(body), style=STYLE)


def _route(method: str, path: str, route: Mapping[str, Any]) -> list[str]:
    parts = [f"<h2><span class='verb'>{method.upper()}</span> <code>{escape(path)}</code></h2>", f"<p>{_code(route.get('summary', ''))}.</p>"]
    rows = [(p["name"], _kind(p.get("schema", {})), p.get("description", "")) for p in route.get("parameters", ()) if p["in"] != "path"]
    if rows:
        parts.append(_table(rows, f"Parameters of {path}"))
    known: set[str] = set()
    for kind, content in route.get("requestBody", {}).get("content", {}).items():
        fields = content["schema"].get("properties", {})
        parts += [
            f"<h3>As {escape(kind)}</h3>",
            _fields(content["schema"], f"{path} as {kind}") if set(fields) - known else "<p>The same, without files.</p>",
        ]
        known |= set(fields)
    good = [_answer(code, found) for code, found in sorted(route["responses"].items()) if code < "4"]
    bad = ", ".join(code for code in sorted(route["responses"]) if code >= "4")
    return [*parts, f"<p>Answers {'; '.join(good)}." + (f" <a href='#errors'>Errors</a>: {bad}." if bad else "") + "</p>"]


def _answer(code: str, found: Mapping[str, Any]) -> str:
    """A status that is no error, and what comes with it."""
    for kind, content in found.get("content", {}).items():
        name = _kind(content.get("schema", {}))
        if "$ref" in content.get("schema", {}):
            return f"{code}: <a href='#{escape(name)}'>{escape(name)}</a>"
        return f"{code}: {escape(kind)}"
    return f"{code}: {escape(found.get('description', '').rstrip('.').lower())}"


def _fields(schema: Mapping[str, Any], label: str) -> str:
    rows = [(name, _kind(field), field.get("description", "")) for name, field in schema.get("properties", {}).items()]
    return _table(rows, label) if rows else ""


def _table(rows: list[tuple[str, str, str]], label: str) -> str:
    cells = (f"<td><code>{escape(n)}</code></td><td class='type'>{escape(k)}</td><td>{_code(s)}</td>" for n, k, s in rows)
    head = "".join(f"<th scope='col'>{h}</th>" for h in ("name", "type", "meaning"))
    return wide(f"<table class='fields'><tr>{head}</tr>{''.join(f'<tr>{c}</tr>' for c in cells)}</table>", label)


def _code(text: str) -> str:
    """Text with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a field, in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(s) for s in schema["anyOf"] if s.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "string" and schema.get("format") == "binary":
        return "file"
    if kind == "object" and schema.get("properties"):
        return f"{{{', '.join(schema['properties'])}}}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{kind} {low} to {high}"
    return kind if low is None else f"{kind} from {low}"
