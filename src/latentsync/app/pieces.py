"""What the page shows of jobs, faces and models, as HTML. Pure functions: what they are given in, text out.

Buttons carry `data-act` and `data-id`; `page.js` tells the page of a click. Whatever was not written here goes through `escape`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentsync.options import FACES
from latentsync.page import escape, number
from latentsync.weights import gigabytes

if TYPE_CHECKING:
    from latentsync.app.faces import Look
    from latentsync.jobs import Job

STILLS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".apng", ".avif", ".heic")
STATES = {"queued": "waiting", "running": "working", "done": "done", "failed": "failed", "cancelled": "cancelled"}
MEASURES = {
    "sync_confidence": ("Lips follow the sound", "confidence; larger is better"),
    "sync_offset": ("Lips against sound", "frames; 0 is in step"),
    "seam": ("Edge of the new mouth", "levels of 255; untouched faces have 1 to 6"),
    "flicker": ("Flicker", "levels of 255; untouched videos have 0.5 to 2"),
    "silence_change": ("Mouth in silence", "of what it moves in speech; smaller is calmer"),
    "faces_missing": ("Frames without a face", "left as they were"),
}


def clock(seconds: float) -> str:
    """A time span for people: 8 s, 1 min 20 s, 2 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 >= 60 else "")


def notice(sentence: str = "", kind: str = "wrong") -> str:
    """A sentence that screen readers say at once; nothing without one. kind: wrong | note."""
    if not sentence:
        return ""
    role = "alert" if kind == "wrong" else "status"
    return f"<p class='notice {kind}' role='{role}'>{escape(_sentence(sentence))}</p>"


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


# Faces


def faces(look: Look | None, chosen: int | None) -> str:
    """The frame with its faces as buttons. chosen: number of a face, from 0; None where the largest is taken, whoever that is."""
    if look is None:
        return ""
    buttons = []
    taken = look.largest if chosen is None else chosen
    for i, spot in enumerate(look.spots):
        x0, y0, x1, y1 = (max(0.0, min(1.0, v / size)) for v, size in zip(spot.box, (look.width, look.height, look.width, look.height), strict=True))
        place = f"left:{100 * x0:.2f}%;top:{100 * y0:.2f}%;width:{100 * (x1 - x0):.2f}%;height:{100 * (y1 - y0):.2f}%"
        of = f"Face {i + 1} of {len(look.spots)}" + (", from the left" if len(look.spots) > 1 else "")
        pressed = "true" if i == taken else "false"
        buttons.append(
            f"<button type='button' class='face' style='{place}' data-act='face' data-id='{i}' aria-pressed='{pressed}' aria-label='{of}'>"
            f"<span aria-hidden='true'>{i + 1}</span></button>"
        )
    if not look.spots:
        said = "No face was seen in the first seconds. You can go on: every frame will be looked at, and frames without a face stay as they are."
    elif len(look.spots) == 1:
        said = "This face will speak."
    else:
        said = f"Face {(taken or 0) + 1} will speak. Click another to choose it."
    at = f" (at {look.time:.1f} s)" if look.time >= 0.1 else ""
    return (
        f"<section class='faces' aria-label='Whose mouth'><div class='frame'><img src='{look.picture}' alt='Frame of your video{at}'>"
        f"{''.join(buttons)}</div><p role='status'>{said}</p></section>"
    )


# One job


def status(job: Job | None, *, loading: str = "") -> str:
    """What is being done, how far it is, how long it will take, and the newest picture."""
    if job is None:
        return ""
    share = job.done / job.total if job.total else None
    if job.state == "done":
        return ""  # the result says it
    if job.state == "failed":
        return f"<section class='card status failed' role='alert'><h2>That did not work</h2><p>{escape(_sentence(job.error))}</p></section>"
    if job.state == "cancelled":
        return "<section class='card status cancelled' role='status'><h2>Cancelled</h2><p>Nothing was kept of it.</p></section>"
    if job.cancelling:
        head, said = "Stopping", "The job ends with the step that is being done."
    elif job.state == "queued":
        ahead = (job.position or 1) - 1
        head = "Next in line" if ahead == 0 else f"Number {ahead + 1} in line"
        said = f"{ahead} job{'' if ahead == 1 else 's'} before yours." if ahead else "Your job starts as soon as a worker is free."
        said = f"{said} {_sentence(job.message)}" if job.message else said
    elif not job.done and not job.step:
        head, said = "Getting ready", _sentence(job.message or loading or "reading your files")
    else:
        head = f"{100 * share:.0f} %" if share is not None else f"{job.done} frames"
        left = f"about {clock(job.seconds_left)} left" if job.seconds_left is not None else "measuring the time that is left"
        said = f"{left[:1].upper()}{left[1:]}."
    now = f" aria-valuenow='{100 * share:.0f}' aria-valuetext='{escape(head)}'" if share is not None else ""
    width = f" style='width:{100 * share:.1f}%'" if share else ""
    busy = "" if share and job.done else " busy"
    bar = f"<div class='bar{busy}' role='progressbar' aria-label='Progress' aria-valuemin='0' aria-valuemax='100'{now}><i{width}></i></div>"
    small = []
    if job.state == "running":
        if job.total:
            small.append(f"frame {job.done} of {job.total}")
        if job.steps and job.step:
            small.append(f"step {job.step} of {job.steps}")
        small.append(f"{clock(job.seconds)} so far")
    detail = f"<p class='small'>{escape(' · '.join(small))}</p>" if small else ""
    look = ""
    if job.previews and job.state == "running":
        look = f"<img class='look' src='job/{job.id}/preview?n={job.previews}' alt='The newest frame that is done'>"
    return f"<section class='card status'><div><h2>{escape(head)}</h2><p class='said'>{escape(said)}</p>{bar}{detail}</div>{look}</section>"


def spoken(job: Job | None) -> str:
    """The same in one short sentence for screen readers: it changes at every quarter only."""
    if job is None:
        return ""
    if job.state == "running" and job.total and job.done:
        return f"{25 * (4 * job.done // job.total)} percent done"
    return {"queued": f"In line, number {job.position or 1}", "running": "Working", "done": "Your result is ready"}.get(job.state, "")


def result(job: Job | None) -> str:
    """Before and after side by side, what to do with it, what was used, and how good it is."""
    if job is None or not job.has_result:
        return ""
    base = f"job/{job.id}"
    name = escape(file_name(job))
    before = (
        f"<img src='{base}/before' alt='The picture that was given'>"
        if job.request.video.lower().endswith(STILLS)
        else f"<video src='{base}/before' class='before' muted playsinline preload='metadata' aria-label='Before: the original'></video>"
    )
    hear = "<button type='button' data-hear='before' aria-pressed='false'>Original sound</button>" if before.startswith("<video") else ""
    seconds = job.result.get("seconds") or 0
    faces_done, frames = job.result.get("frames_with_face", 0), job.result.get("frames", 0)
    warn = "<p class='notice wrong'>No usable face was found anywhere, so only the sound is new.</p>" if frames and not faces_done else ""
    shown = f"{escape(job.names.get(job.request.video, 'your video'))}, {clock(seconds)}"
    return (
        f"<section class='card result' data-job='{job.id}' aria-label='Result'><header><h2>Result</h2><p class='small'>{shown}</p></header>{warn}"
        f"<div class='pair'><figure>{before}<figcaption>Before</figcaption></figure>"
        f"<figure><video src='{base}/result' class='after' controls playsinline preload='metadata' aria-label='After: the result'></video>"
        "<figcaption>After</figcaption></figure></div>"
        "<div class='row'><button type='button' class='lead' data-play='pair'>Play both</button>"
        f"{hear}<a class='button' href='{base}/result?download=1' download='{name}'>Download</a>"
        f"<button type='button' class='quiet' data-act='again' data-id='{job.id}'>Use these settings</button></div>"
        f"{report(job)}{settings(job)}</section>"
    )


def file_name(job: Job) -> str:
    """Under which name a result is downloaded."""
    stem = job.names.get(job.request.video, "video").rsplit(".", 1)[0] or "video"
    return f"{stem}-lipsync.{_suffix(job)}"


def _suffix(job: Job) -> str:
    return {"prores": "mov", "ffv1": "mkv"}.get(job.request.options.get("codec", ""), "mp4")


def report(job: Job) -> str:
    """The short quality report in words and numbers."""
    found = job.result.get("report") or {}
    values = found.get("values", {})
    rows = []
    for key, (name, hint) in MEASURES.items():
        if key in values:
            shown = f"{100 * values[key]:.1f} %" if key == "faces_missing" else number(values[key])
            rows.append(f"<div><dt>{name}</dt><dd>{shown} <small>{hint}</small></dd></div>")
    if not rows:
        return ""
    judge = (
        "<p class='small'>Sync is judged by the small SyncNet of this package, not on the scale of SyncNet v2.</p>"
        if "sync_confidence" in values
        else ""
    )
    return f"<details open><summary>How good it is</summary><dl class='facts'>{''.join(rows)}</dl>{judge}</details>"


def settings(job: Job) -> str:
    """What was used, so that it can be done again."""
    r, o = job.result, job.request.options
    used: list[tuple[str, Any]] = [
        ("Model", r.get("model") or job.request.model),
        ("Sound", job.names.get(job.request.audio or "", "")),
        ("Steps", r.get("steps")),
        ("Guidance", r.get("guidance")),
        ("Seed", r.get("seed")),
        ("Sampler", r.get("scheduler")),
        ("Whole network every", f"{o['cache']} steps" if o.get("cache", 1) > 1 else ""),
        ("Face", o.get("face") if o.get("face") in FACES else "the one you clicked" if o.get("face") else "largest"),
        ("Frames with a new mouth", f"{r.get('frames_with_face', 0)} of {r.get('frames', 0)}"),
        ("Took", f"{clock(r['elapsed_seconds'])} on {r.get('device')} in {r.get('dtype')}" if r.get("elapsed_seconds") is not None else ""),
    ]
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in used if v not in (None, ""))
    notes = "".join(f"<li>{escape(note)}</li>" for note in r.get("notes", ()))
    return f"<details><summary>Settings used</summary><dl class='facts'>{rows}</dl>{f'<ul class=notes>{notes}</ul>' if notes else ''}</details>"


# All jobs of a visitor


def history(jobs: Sequence[Job], watched: str = "", *, keep_hours: float = 0, now: float | None = None) -> str:
    """This visitor's jobs, the newest first."""
    if not jobs:
        return ""
    now = time.time() if now is None else now
    rows = "".join(_row(job, job.id == watched, now) for job in jobs)
    kept = f" They are deleted {keep_hours:g} hours after they are finished." if keep_hours else ""
    head = f"<h2>Your results</h2><p class='small'>Only this browser sees them.{kept}</p>"
    return f"<section class='history' aria-label='Your results'>{head}<ul>{rows}</ul></section>"


def _row(job: Job, current: bool, now: float) -> str:
    name = escape(job.names.get(job.request.video, "video"))
    sound = escape(job.names.get(job.request.audio or "", ""))
    ago = now - job.created
    when = "just now" if ago < 60 else f"{clock(ago - ago % 60)} ago"
    picture = f"<img src='job/{job.id}/preview' alt='' loading='lazy'>" if job.previews else "<span class='blank' aria-hidden='true'></span>"
    state = STATES[job.state]
    remove = (
        f"<button type='button' class='quiet' data-act='delete' data-id='{job.id}' aria-label='Delete {name}'>Delete</button>"
        if job.final
        else f"<button type='button' class='quiet' data-act='cancel' data-id='{job.id}' aria-label='Cancel {name}'>Cancel</button>"
    )
    mark = " aria-current='true'" if current else ""
    return (
        f"<li class='{job.state}'{mark}>{picture}<div class='what'><b>{name}</b><span class='small'>{sound}</span>"
        f"<span class='small'><em class='state'>{state}</em> · {escape(job.request.model)} · {when}</span></div>"
        f"<div class='row'><button type='button' data-act='open' data-id='{job.id}' aria-label='Show {name}'>Show</button>{remove}</div></li>"
    )


def empty() -> str:
    """Where the result will be."""
    said = "<p>Your result will be here, beside the original.</p><p class='small'>New to this? The example runs at once.</p>"
    return f"<div class='card empty'>{said}</div>"


# Models


def download(name: str, share: float | None, said: str, *, wrong: bool = False) -> str:
    """How far the download of a model is."""
    if wrong:
        return notice(said)
    now = f" aria-valuenow='{100 * share:.0f}'" if share is not None else ""
    width = f" style='width:{100 * share:.1f}%'" if share else ""
    busy = "" if share else " busy"
    return (
        f"<div class='download'><p role='status' class='small'>{escape(said)}</p><div class='bar{busy}' role='progressbar' "
        f"aria-label='Download of {escape(name)}' aria-valuemin='0' aria-valuemax='100'{now}><i{width}></i></div></div>"
    )


def size(count: int) -> str:
    """Bytes for people."""
    return gigabytes(count)
