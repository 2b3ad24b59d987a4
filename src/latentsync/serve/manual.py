"""The page /docs: the OpenAPI document for people, in one file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentsync.page import document, escape, table

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"  # as the page's own
STYLE = "code{font-size:13px;overflow-wrap:anywhere}h3{font-size:15px;margin:20px 0 4px}.verb{color:var(--mark);font-weight:600}"
_METHODS = ("get", "post", "put", "delete")


def page(openapi: Mapping[str, Any]) -> str:
    """The whole page."""
    info = openapi["info"]
    body = [f"<h1>{escape(info['title'])} <span class='none'>{escape(info['version'])}</span></h1>"]
    body += [f"<p>{escape(part)}</p>" for part in info.get("description", "").split("\n\n")]
    body.append("<p>For programs: <a href='openapi.json'>openapi.json</a></p>")
    for path, item in openapi["paths"].items():
        for method in _METHODS:
            if method in item:
                body += _route(method, path, item[method])
    schemas = openapi.get("components", {}).get("schemas", {})
    if schemas:
        body.append("<h2>What is answered</h2>")
        for name, schema in schemas.items():
            body.append(f"<h3 id='{escape(name)}'>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>")
            body.append(_fields(schema, name))
    return document(f"{info['title']}: the HTTP service", "\n".join(body), style=STYLE)


def _route(method: str, path: str, route: Mapping[str, Any]) -> list[str]:
    parts = [f"<h2><span class='verb'>{method.upper()}</span> <code>{escape(path)}</code></h2>", f"<p>{escape(route.get('summary', ''))}</p>"]
    rows = [(p["name"], p["in"], _kind(p.get("schema", {})), p.get("description", "")) for p in route.get("parameters", ())]
    if rows:
        parts.append(table(("parameter", "in", "type", ""), rows, label=f"Parameters of {path}"))
    for kind, content in route.get("requestBody", {}).get("content", {}).items():
        parts += [f"<h3>{escape(kind)}</h3>", _fields(content["schema"], f"{path} as {kind}")]
    answers = [(code, found.get("description", "")) for code, found in sorted(route.get("responses", {}).items())]
    return [*parts, table(("status", "meaning"), answers, label=f"Answers of {path}")]


def _fields(schema: Mapping[str, Any], label: str) -> str:
    needed = schema.get("required", ())
    rows = [
        (name + ("" if name in needed else " (optional)"), _kind(field), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return table(("field", "type", ""), rows, label=label) if rows else ""


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
    low, high = schema.get("minimum"), schema.get("maximum")
    return kind + (f" {low:g} to {high:g}" if low is not None and high is not None else f" from {low:g}" if low is not None else "")
