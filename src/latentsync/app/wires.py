"""Which event of the page calls which action, and which parts of the page its answer changes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr

from latentsync.app import pieces
from latentsync.app.actions import Actions, Seen
from latentsync.app.models import SPEEDS
from latentsync.errors import LatentSyncError

FIELDS = (
    "model",
    "steps",
    "guidance",
    "seed",
    "when_audio_longer",
    "when_video_longer",
    "scheduler",
    "cache",
    "crf",
    "codec",
    "fps",
    "paste",
    "on_missing_face",
    "preview",
)  # of the page, named as in `options.Options`, but for the model and the preview
OWN = next(name for name, key in SPEEDS.items() if key == "own")
SPEED_FIELDS = ("steps", "guidance", "scheduler", "cache", "crf")


def labels(actions: Actions) -> list[tuple[str, str]]:
    """The list of models: what is read, and the name."""
    return [(choice.label, choice.name) for choice in actions.models.choices()]


def said(sentence: str) -> str:
    """A sentence for screen readers alone."""
    return f"<p class='sr' role='status'>{sentence}</p>"


def connect(blocks: gr.Blocks, p: SimpleNamespace, actions: Actions) -> None:
    """Connect the parts `p` of the page, by name, with what they do."""
    texts = {"status": p.status, "spoken": p.spoken, "result": p.result, "history": p.history, "download": p.fetching, "notice": p.notice}
    parts: list[Any] = [*texts.values(), p.cancel, p.model, p.timer, p.seen]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    light: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    raw: dict[str, Any] = {**quiet, "preprocess": False}  # files as they were uploaded: nothing converts or copies them
    inputs = [p.which, p.video, p.still, p.heard, p.sound, p.of_video, p.look, p.chosen, p.speed, *(getattr(p, name) for name in FIELDS)]

    def painted(made: dict[str, Any], seen: Seen) -> list[Any]:
        """What `Actions.view` found -> an update for each of `parts`."""
        shown = {name: made.get(name, gr.skip()) for name in texts}
        if "spoken" in made:
            shown["spoken"] = said(made["spoken"])
        stop = gr.update(visible=bool(made["cancel"])) if "cancel" in made else gr.skip()
        choices = gr.update(choices=labels(actions)) if made.get("models") else gr.skip()
        return [*shown.values(), stop, choices, gr.Timer(active=made["active"]), seen]

    def view(watched: str, seen: Seen, request: gr.Request) -> list[Any]:
        return painted(actions.view(watched, seen, request), seen)

    def arrive(request: gr.Request) -> list[Any]:
        found, seen = actions.arrive(request), Seen()
        return [found, *painted(actions.view(found, seen, request), seen)]

    def done(act: Callable[[], str], watched: str, seen: Seen, request: gr.Request) -> list[Any]:
        """Do something; then show the job that it names, or the sentence that it was refused with."""
        sentence = ""
        try:
            watched = act()
        except LatentSyncError as e:
            sentence = str(e)
        made = actions.view(watched, seen, request)
        return [watched, *painted({**made, "notice": pieces.notice(sentence)}, seen)]

    def run(data: dict[Any, Any], request: gr.Request) -> list[Any]:
        look, chosen = data[p.look], data[p.chosen]
        face = look.spots[chosen].choice if look is not None and chosen is not None else "largest"
        fields = {name: data[getattr(p, name)] for name in FIELDS}
        if SPEEDS.get(data[p.speed]) != "own":  # not from the fields: their answer may still be on its way
            fields |= actions.models.speed(fields["model"], SPEEDS.get(data[p.speed], "balanced"))
        person, sound = (data[p.which], data[p.video], data[p.still]), (data[p.heard], data[p.sound], data[p.of_video])
        return done(lambda: actions.run(person, sound, face, fields, request).id, data[p.watched], data[p.seen], request)

    def example(watched: str, seen: Seen, request: gr.Request) -> list[Any]:
        return done(lambda: actions.example(request).id, watched, seen, request)

    def cancel(watched: str, seen: Seen, request: gr.Request) -> list[Any]:
        def act() -> str:
            actions.cancel(watched, request)
            return watched

        return done(act, watched, seen, request)

    def of_history(watched: str, seen: Seen, event: gr.EventData, request: gr.Request) -> list[Any]:
        name, job = str(event._data.get("act")), str(event._data.get("id"))

        def act() -> str:
            if name == "open":
                return job
            if name == "cancel":
                actions.cancel(job, request)
            if name == "delete":
                actions.delete(job, request)
            return "" if name == "delete" and job == watched else watched

        return done(act, watched, seen, request)

    def of_result(event: gr.EventData, request: gr.Request) -> list[Any]:
        if event._data.get("act") != "again":
            return [gr.skip()] * (len(FIELDS) + 1)
        try:
            used = actions.again(str(event._data.get("id")), request)
        except LatentSyncError:
            return [gr.skip()] * (len(FIELDS) + 1)
        return [*(used.get(name, gr.skip()) for name in FIELDS), OWN]

    blocks.load(arrive, None, [p.watched, *parts], **light)
    p.timer.tick(view, [p.watched, p.seen], parts, **light)
    p.run.click(run, {p.watched, p.seen, *inputs}, [p.watched, *parts], **raw)
    p.example.click(example, [p.watched, p.seen], [p.watched, *parts], **quiet)
    p.cancel.click(cancel, [p.watched, p.seen], [p.watched, *parts], **light)
    p.history.click(of_history, [p.watched, p.seen], [p.watched, *parts], **light)
    p.result.click(of_result, None, [*(getattr(p, name) for name in FIELDS), p.speed], **light)

    for tab, state, name in ((p.video_tab, p.which, "video"), (p.still_tab, p.which, "still"), (p.sound_tab, p.heard, "sound")):
        tab.select(_always(name), None, state, **light)
    p.of_video_tab.select(_always("of-video"), None, p.heard, **light)
    looked = [p.look, p.chosen, p.faces, p.about]
    gr.on(
        [p.video.change, p.still.change, p.video_tab.select, p.still_tab.select],
        actions.look,
        [p.which, p.video, p.still, p.model],
        looked,
        **raw,
    )
    p.faces.click(actions.choose, p.look, [p.chosen, p.faces], **light)

    speeds = [*(getattr(p, name) for name in SPEED_FIELDS), p.fetch]
    gr.on([p.model.change, p.speed.input], actions.settings, [p.model, p.speed], speeds, **light)
    gr.on(
        [getattr(p, name).input for name in SPEED_FIELDS], None, None, p.speed, js=f"() => {OWN!r}", show_progress="hidden"
    )  # at once, in the browser
    p.dice.click(actions.dice, None, p.seed, **light)
    p.fetch.click(actions.fetch, p.model, [p.fetching, p.timer], **light)


def _always(value: str) -> Callable[[], str]:
    return lambda: value
