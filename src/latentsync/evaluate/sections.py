"""The sections of the report, as HTML: numbers with their intervals, the worst videos, curves and spreads, settings, and what it all means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentsync import __version__, page
from latentsync.evaluate import cases, charts
from latentsync.evaluate.records import Row
from latentsync.evaluate.systems import ENOUGH, JUDGED, Case, System, in_words, of_all, of_set, ranking, title, worse
from latentsync.metrics.catalogue import METRICS
from latentsync.page import escape, number

LISTED = ("sync_confidence", "sync_offset", "lip_r", "lmd", "ssim_mouth", "lpips_mouth", "seam", "flicker", "silence_motion", "faces_missing")
_JUDGES = {"demo": "the package's own SyncNet", "syncnet": "SyncNet v2"}
_SETTINGS = {"judge": "judges of lip sync", "vad": "ways to tell speech from silence", "faces": "face finders"}
BRIEF = ("sync_confidence", "sync_offset", "lmd", "ssim_mouth", "seam", "flicker", "silence_motion")  # beside a case
_LISTED_MOST = 1000
_REASONS_MOST = 500
_APART = 3  # frames of offset that viewers notice
_OF_SETTINGS_MOST = 4  # different values of one setting that are spelled out
# Paper (arXiv 2412.09262), table 1: theirs, with their preparation of the data. SSIM and LMD are left out: their crop and size are not known.
PAPER = {
    "hdtf": (
        ("", "fid", "lse_c", "fvd"),
        ("Wav2Lip", "12.5", "8.2", "304.35"),
        ("MuseTalk", "9.35", "6.8", "246.75"),
        ("LatentSync", "7.22", "8.9", "162.74"),
    )
}


def document(systems: Sequence[System], shown: Sequence[tuple[Case, cases.Shown]], heading: str, worst_by: str, paper: str = "") -> str:
    """The page. `shown` are the cases and their pictures; `paper` is the data of the paper's numbers to quote."""
    videos = list(dict.fromkeys(row.name for system in systems for row in system.results.rows))
    failed = [(system, row) for system in systems for row in system.results.rows if not row.ok]
    keys = _keys(systems)
    sections = [
        ("numbers", "Numbers", _numbers(systems, keys) + _paper(systems, paper)),
        ("worst", "Worst first", _worst(systems, shown, worst_by)),
        ("time", "Sync over time", _over_time(systems)),
        ("spread", "Spread over videos", _spreads(systems, keys)),
        ("videos", "All videos", _videos(systems, {case.name: i for i, (case, _) in enumerate(shown)}, worst_by)),
        ("failed", "Could not be evaluated", _failed(systems, failed)),
        ("missing", "Values that are missing", _missing(systems)),
        ("settings", "Settings and versions", _settings(systems)),
        ("meaning", "What the numbers mean", _meaning(keys)),
    ]
    sections = [section for section in sections if section[2]]
    heading = heading or ("Evaluation of " + (systems[0].name if len(systems) == 1 else f"{len(systems)} systems"))
    nav = "".join(f"<a href='#{key}'>{escape(words)}</a>" for key, words, _ in sections)
    parts = [
        f"<h1>{page.name(heading)}</h1>",
        f"<p class='none'>{_count(len(videos), 'video')}{_protocols(systems)}{_judges(systems)}</p>",
        f"<nav aria-label='Sections'>{nav}</nav>",
        _legend(systems) if len(systems) > 1 else "",
        _standing_out(systems, failed),
        *(f"<p class='none'>{escape(note)}</p>" for note in _common_notes(systems)),
        *(f"<section aria-labelledby='{key}'><h2 id='{key}'>{escape(words)}</h2>{inside}</section>" for key, words, inside in sections),
        f"<footer>latentsync {escape(__version__)}; the same numbers as JSON and CSV: <code>latentsync evaluate</code> writes them beside</footer>",
    ]
    return page.document(heading, "\n".join(part for part in parts if part), style=_beside("report.css"), script=_beside("report.js"))


def _beside(file: str) -> str:
    return Path(__file__).with_name(file).read_text(encoding="utf-8")


def _keys(systems: Sequence[System]) -> list[str]:
    """Metrics that some system has a value of, in the catalogue's order."""
    found = {key for system in systems for key in system.table} | {key for system in systems for key in system.results.sets}
    return [key for key in METRICS if key in found] + sorted(found - set(METRICS))


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _protocols(systems: Sequence[System]) -> str:
    found = of_all(systems, "protocol")
    return f"; protocol {escape(', '.join(found))}" if found else ""


def _judges(systems: Sequence[System]) -> str:
    found = of_all(systems, "judge")
    return f"; lip sync judged by {escape(' and '.join(_JUDGES.get(name, name) for name in found))}" if found else ""


def _legend(systems: Sequence[System]) -> str:
    items = "".join(
        f"<li><i class='c{s.colour}'></i>{page.name(s.name)} <span class='none'>{len(s.rows)} of {_count(len(s.results.rows), 'video')}</span></li>"
        for s in systems
    )
    return f"<ul class='legend' aria-label='Systems'>{items}</ul>"


def _standing_out(systems: Sequence[System], failed: Sequence[Any]) -> str:
    """What is wrong at a glance, in sentences."""
    said = []
    if failed:
        said.append(f"<a href='#failed'>{_count(len(failed), 'result')} could not be evaluated</a>")
    rules = (
        ("sync_offset", lambda v: abs(v) >= _APART, f"lips and sound are {_APART} frames or more apart"),
        ("faces_missing", lambda v: v > 0.05, "more than 5 % of the frames show no face"),
        ("silence_motion", lambda v: v > 0.5, "the mouth moves in silence at least half as much as in speech"),
        ("lip_r", lambda v: v < 0.2, "the lips hardly follow the reference's (correlation below 0.2)"),
    )
    for system in systems:
        of = f" of {page.name(system.name)}" if len(systems) > 1 else ""
        for key, test, words in rules:
            values = [row.values[key] for row in system.rows.values() if key in row.values]
            bad = sum(map(test, values))
            if bad:
                said.append(f"in {bad} of {_count(len(values), 'video')}{of} {words}")
    for name, keys in JUDGED.items():
        if len(of_all(systems, name)) > 1 and any(key in s.table for key in keys for s in systems):
            measured = [title(key) for key in keys if any(key in s.table for s in systems)]
            said.append(
                f"{_SETTINGS[name]} differ ({escape(', '.join(of_all(systems, name)))}), so these do not compare: {escape(', '.join(measured))}"
            )
    return f"<div class='out'><b>What stands out</b><ul>{''.join(f'<li>{s}</li>' for s in said)}</ul></div>" if said else ""


# Numbers


def _numbers(systems: Sequence[System], keys: Sequence[str]) -> str:
    if not keys:
        return "<p class='none'>No value of any video.</p>"
    single = len(systems) == 1
    head = ["mean", "95 % interval", "median", "least", "most", "videos"] if single else [page.name(s.name) for s in systems]
    lines = []
    for key in keys:
        arrow = {"higher": "↑", "lower": "↓", "zero": "→ 0"}.get(METRICS[key].better if key in METRICS else "", "")
        unit = METRICS[key].unit if key in METRICS else ""
        first = f"<th scope='row'><a href='#m-{escape(key)}'>{escape(title(key))}</a> <small>{escape(unit)} {arrow}</small></th>"
        cells = _single(systems[0], key) if single else _several(systems, key)
        lines.append(f"<tr>{first}{cells}</tr>")
    top = "".join(f"<th scope='col'>{words}</th>" for words in head)
    note = "<p class='none'>↑ higher is better, ↓ lower, → 0 nearer to zero. Intervals: 95 % bootstrap of the mean over videos."
    if not single:
        note += " ★ best mean; ≈ not told apart from it (on common videos the interval of the difference holds 0, or there are fewer than "
        note += f"{ENOUGH} of them)."
    body = f"<table class='numbers'><thead><tr><th scope='col'>metric</th>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return page.wide(body, "Metrics") + note + "</p>"


def _single(system: System, key: str) -> str:
    found = system.table.get(key)
    if found is None:
        value, count, note = of_set(system, key)
        return f"<td class='n'>{number(value)}</td><td colspan='4' class='none'>{escape(note)}</td><td class='n'>{count or ''}</td>"
    interval = f"{number(found.low)} to {number(found.high)}" if found.count > 1 else "–"
    cells = [f"<b>{number(found.mean)}</b>", interval, number(found.median), number(found.least), number(found.most), str(found.count)]
    return "".join(f"<td class='n'>{cell}</td>" for cell in cells)


def _several(systems: Sequence[System], key: str) -> str:
    best, tied = ranking(systems, key)
    whole = max((s.table[key].count for s in systems if key in s.table), default=0)
    cells = []
    for i, system in enumerate(systems):
        mark = " <span title='best mean'>★</span>" if i == best else " <span title='not told apart from the best'>≈</span>" if i in tied else ""
        found = system.table.get(key)
        if found is not None:
            told = f"median {number(found.median)}, least {number(found.least)}, most {number(found.most)}, {_count(found.count, 'video')}"
            interval = f"{number(found.low)} to {number(found.high)}" if found.count > 1 else "1 video"
            fewer = f", {_count(found.count, 'video')}" if 1 < found.count < whole else ""
            value = f"<b>{number(found.mean)}</b>" if i == best else number(found.mean)
            cells.append(f"<td class='n' title='{told}'>{value}{mark}<br><small>{interval}{fewer}</small></td>")
        elif key in system.results.sets:
            value_, count, note = of_set(system, key)
            shown = f"<b>{number(value_)}</b>" if i == best else number(value_)
            cells.append(f"<td class='n' title='{escape(note)}'>{shown}{mark}<br><small>{escape(f'{count} samples' if count else '')}</small></td>")
        else:
            cells.append("<td class='n none'>–</td>")
    return "".join(cells)


def _paper(systems: Sequence[System], data: str) -> str:
    """The paper's numbers on the data that the user says the videos are of, in the metrics that some system has too."""
    if not data:
        return ""
    head, *rows = PAPER[data]
    kept = [i for i, key in enumerate(head) if not key or any(key in s.table or key in s.results.sets for s in systems)]
    if len(kept) < 2:
        return "<p class='none'>None of the metrics that the paper tells is measured here (LSE-C, FID, FVD).</p>"
    top = ["", *(title(head[i]) for i in kept[1:])]
    note = (
        "<p class='none'>arXiv 2412.09262, quoted: their choice of videos, crops and face finder are not known; small differences mean nothing.</p>"
    )
    return f"<h3>The paper's own numbers on {escape(data.upper())}</h3>" + page.table(top, [[row[i] for i in kept] for row in rows]) + note


# Cases


def _worst(systems: Sequence[System], shown: Sequence[tuple[Case, cases.Shown]], worst_by: str) -> str:
    if not shown:
        return ""
    sound = " Clips have sound." if any(pictures.clip for _, pictures in shown) else ""
    parts = [f"<p class='none'>By {escape(in_words(worst_by))}, then the worst by other metrics.{sound}</p>"]
    known = set(_common_notes(systems))
    for i, (case, pictures) in enumerate(shown):
        rows = [(system, system.rows[case.name]) for system in systems if case.name in system.rows]
        said = dict.fromkeys([*pictures.reasons, *(note for _, row in rows for note in row.notes if note not in known)])
        parts += [
            f"<article id='case-{i}' class='case'><h3>{page.name(case.name)}</h3>",
            f"<p class='why'>{escape(case.why)}</p>" if case.why else "",
            f"<div class='{'two' if len(pictures.panels) != cases.IN_A_ROW else 'one'}'><div>{_clip(case.name, pictures)}</div>",
            f"<div>{_case_curve(case, rows, pictures)}{_case_values(rows, len(systems) > 1)}</div></div>",
            _mouths(pictures),
            *(f"<p class='none'>{escape(words)}</p>" for words in said),
            "</article>",
        ]
    return "".join(parts)


def _common_notes(systems: Sequence[System]) -> list[str]:
    """Notes that all rows share: they are said once."""
    rows = [row for system in systems for row in system.rows.values()]
    return [note for note in dict.fromkeys(rows[0].notes) if all(note in row.notes for row in rows)] if len(rows) > 1 else []


def _clip(name: str, pictures: cases.Shown) -> str:
    if not pictures.panels:
        return "<div class='blank tall'>no picture</div>"
    when = f"{pictures.start:.1f} to {pictures.end:.1f} s"
    if pictures.clip:
        rows = -(-len(pictures.panels) // pictures.columns)
        labels = "".join(
            f"<span style='left:{100 * (k % pictures.columns) / pictures.columns:.2f}%;top:{100 * (k // pictures.columns) / rows:.2f}%;"
            f"max-width:{100 / pictures.columns:.2f}%'>{page.name(panel)}</span>"
            for k, panel in enumerate(pictures.panels)
        )
        about = f"aria-label='{escape(name)}: {escape(', '.join(pictures.panels))}'"
        poster = f" poster='{page.jpeg(pictures.poster)}'" if pictures.poster is not None else ""
        source = page.address("video/mp4", pictures.clip)
        inside = f"<div class='clip'><video controls loop playsinline preload='metadata' {about}{poster} src='{source}'></video>{labels}</div>"
    elif not pictures.strips:
        return "<div class='blank tall'>no picture</div>"
    else:
        inside = "".join(
            f"<div class='panels'>{page.name(panel)}</div><img alt='{escape(panel)}: frames from {when}' src='{page.jpeg(strip, 900)}'>"
            for panel, strip in zip(pictures.panels, pictures.strips, strict=False)
        )
    return f"<figure>{inside}<figcaption>{when}</figcaption></figure>"


def _mouths(pictures: cases.Shown) -> str:
    if not pictures.mouths:
        return ""
    rows = "".join(
        f"<div class='panels'>{page.name(n)}</div><img alt='mouths: {escape(n)}' src='{page.jpeg(row)}'>"
        for n, row in zip(pictures.panels, pictures.mouths, strict=True)
    )
    return f"<figure class='mouths'>{rows}<figcaption>the mouth from {pictures.start:.1f} to {pictures.end:.1f} s</figcaption></figure>"


def curve_of(key: str) -> str:
    """The curve over seconds that tells most of a metric."""
    return "flicker" if key.startswith("flicker") else "sync"


def _case_curve(case: Case, rows: Sequence[tuple[System, Row]], pictures: cases.Shown) -> str:
    curve = curve_of(case.key)
    lines = [charts.Line(s.colour, s.name, row.curves[curve]) for s, row in rows if row.curves.get(curve)]
    if not lines:
        return ""
    span = (pictures.start, pictures.end) if pictures.panels else None
    words = "flicker of each second" if curve == "flicker" else "sync confidence of each second"
    return f"<figure><figcaption>{words}</figcaption>{charts.over_time(f'{words}, {case.name}', lines, span=span)}</figure>"


def _case_values(rows: Sequence[tuple[System, Row]], several: bool) -> str:
    """The most telling values, and behind a line to click all of them."""
    keys = [key for key in METRICS if any(key in row.values for _, row in rows)]
    first = [key for key in BRIEF if key in keys]

    def value(system: System, row: Row, key: str) -> str:
        if key not in row.values:
            return "<td class='n none'>–</td>"
        all_of = [worse(key, r.values[key]) for r in system.rows.values() if key in r.values]
        worst = METRICS[key].better and len(all_of) >= ENOUGH and worse(key, row.values[key]) >= max(all_of) > min(all_of)
        return f"<td class='n'>{number(row.values[key])}{' <small class=bad>worst</small>' if worst else ''}</td>"

    def values(shown: Sequence[str]) -> str:
        top = "".join(f"<th scope='col'><i class='c{s.colour}'></i>{page.name(s.name)}</th>" for s, _ in rows)
        head = f"<tr><td></td>{top}</tr>" if several else ""
        lines = [f"<tr><th scope='row'>{escape(title(key))}</th>{''.join(value(s, row, key) for s, row in rows)}</tr>" for key in shown]
        return page.wide(f"<table class='values'>{head}{''.join(lines)}</table>", "values of this video")

    more = f"<details><summary>all {len(keys)} values</summary>{values(keys)}</details>" if len(keys) > len(first) else ""
    return (values(first) if first else "") + more


# Over time, over videos


def _over_time(systems: Sequence[System]) -> str:
    lines: list[charts.Line] = []
    for s in systems:
        curves = [(row.name, row.curves["sync"]) for row in s.rows.values() if row.curves.get("sync")]
        if len(curves) > 1:
            lines += charts.thin([charts.Line(s.colour, f"{s.name}: {name}", curve, bold=False) for name, curve in curves])
            lines.append(charts.mean_line(s.colour, f"{s.name}: mean", [curve for _, curve in curves]))
        elif curves:
            lines.append(charts.Line(s.colour, f"{s.name}: {curves[0][0]}", curves[0][1]))
    if not lines:
        return ""
    words = "Sync confidence of each second: thin a video, bold the mean."
    return f"<figure class='wide-chart'>{charts.over_time('sync confidence', lines, tall=150)}<figcaption>{words}</figcaption></figure>"


def _spreads(systems: Sequence[System], keys: Sequence[str]) -> str:
    figures, same = [], []
    for key in keys:
        spreads = [
            charts.Spread(s.colour, s.name, [(row.name, row.values[key]) for row in s.rows.values() if key in row.values], s.table[key])
            for s in systems
            if key in s.table
        ]
        if not spreads:
            continue
        if min(s.summary.least for s in spreads) == max(s.summary.most for s in spreads):
            same.append(f"{title(key)} {number(spreads[0].summary.mean)}")
            continue
        unit = f" ({METRICS[key].unit})" if key in METRICS and METRICS[key].unit else ""
        figures.append(f"<figure><figcaption>{escape(title(key) + unit)}</figcaption>{charts.spread(title(key), spreads)}</figure>")
    if all(len(s.rows) < 2 for s in systems):
        return ""
    note = "<p class='none'>A dot is a video, the tick the median, the bar the 95 % interval of the mean.</p>"
    equal = f"<p class='none'>The same for all videos: {escape('; '.join(same))}.</p>" if same else ""
    return f"{note}<div class='grid'>{''.join(figures)}</div>{equal}" if figures else equal


def _videos(systems: Sequence[System], shown: dict[str, int], worst_by: str) -> str:
    rows = [(system, row) for system in systems for row in system.rows.values()]
    if not rows:
        return ""
    keys = [key for key in dict.fromkeys((worst_by, *LISTED)) if any(key in row.values for _, row in rows)]
    rows.sort(key=lambda one: worse(worst_by, one[1].values[worst_by]) if worst_by in one[1].values else -math.inf, reverse=True)
    several = len(systems) > 1
    head = ["video", *(["system"] if several else []), "seconds", *map(title, keys)]
    top = "".join(f"<th scope='col'><button type='button'>{escape(words)}</button></th>" for words in head)
    lines = []
    for system, row in rows[:_LISTED_MOST]:
        named = page.name(row.name)
        cells = [f"<th scope='row' class='file'>{f'<a href=#case-{shown[row.name]}>{named}</a>' if row.name in shown else named}</th>"]
        cells += [f"<td><i class='c{system.colour}'></i>{page.name(system.name)}</td>"] if several else []
        cells.append(f"<td class='n' data-v='{row.seconds:.6g}'>{row.seconds:.1f}</td>")
        for key in keys:
            value = row.values.get(key)
            cells.append("<td class='n none' data-v=''>–</td>" if value is None else f"<td class='n' data-v='{value:.9g}'>{number(value)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    more = f"<p class='none'>and {len(rows) - _LISTED_MOST} more, in results.jsonl</p>" if len(rows) > _LISTED_MOST else ""
    return page.wide(f"<table class='sortable'><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>", "All videos") + more


def _failed(systems: Sequence[System], failed: Sequence[tuple[System, Row]]) -> str:
    if not failed:
        return ""
    several = len(systems) > 1
    rows = [(row.name, *([system.name] if several else []), row.video, row.reason or "no reason was noted") for system, row in failed[:_REASONS_MOST]]
    more = f"<p class='none'>and {len(failed) - _REASONS_MOST} more, in results.jsonl</p>" if len(failed) > _REASONS_MOST else ""
    return page.table(("name", *(["system"] if several else []), "video", "reason"), rows, label="Could not be evaluated") + more


def _missing(systems: Sequence[System]) -> str:
    found = Counter((key, reason) for s in systems for row in s.rows.values() for key, reason in row.missing.items())
    return (
        page.table(("metric", "videos", "reason"), [(title(k), n, reason) for (k, reason), n in found.most_common(60)], label="Missing")
        if found
        else ""
    )


def _settings(systems: Sequence[System]) -> str:
    columns = [_flat(system) for system in systems]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    if not keys:
        return ""
    lines = []
    for key in keys:
        values = [column.get(key, "–") for column in columns]
        differs = len(set(values)) > 1 and key != "folder"
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f"<tr{' class=differs' if differs else ''}><th scope='row'>{escape(key)}{' ≠' if differs else ''}</th>{cells}</tr>")
    top = "".join(f"<th scope='col'>{page.name(s.name)}</th>" for s in systems)
    return page.wide(f"<table><tr><th scope='col'>setting</th>{top}</tr>{''.join(lines)}</table>", "Settings")


def _flat(system: System) -> dict[str, str]:
    """Settings of the folder, and of the rows where these say more; nested ones by dotted names."""
    out = {"folder": str(system.results.folder)}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}.{key}" if name else str(key), inner)
        elif name:
            out.setdefault(name, page.said(value))

    add("", {k: v for k, v in system.results.settings.items() if k not in ("order", "system")})
    own: dict[str, list[str]] = {}
    for row in system.rows.values():
        for key, value in row.settings.items():
            if key == "inputs":  # sizes and times of change of the files
                continue
            own.setdefault(key, []).append(page.said(value))
    for key, values in own.items():
        different = list(dict.fromkeys(values))
        add(key, ", ".join(different) if len(different) <= _OF_SETTINGS_MOST else f"{len(different)} different values")
    return out


def _meaning(keys: Sequence[str]) -> str:
    parts = []
    for key in keys:
        if key not in METRICS:
            continue
        m = METRICS[key]
        blind = f"<br><b>Blind to:</b> {escape(m.blind_spot)}" if m.blind_spot else ""
        source = f" <span class='none'>{escape(m.source)}</span>" if m.source else ""
        parts.append(f"<dt id='m-{escape(key)}'>{escape(m.title)} <code>{escape(key)}</code></dt><dd>{escape(m.definition)}{source}{blind}</dd>")
    return f"<dl>{''.join(parts)}</dl>" if parts else ""
