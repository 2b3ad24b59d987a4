"""What the buttons of the page do: fields in, jobs and sentences out. Every answer depends on who asks: a visitor sees own jobs and files only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from latentsync.app import pieces
from latentsync.app.faces import Finder, Look
from latentsync.app.models import SPEEDS, Models
from latentsync.app.visitors import Uploads, owner
from latentsync.errors import LatentSyncError, UsageError
from latentsync.jobs import Desk, Draft, Job, Request
from latentsync.media.encoding import CRF
from latentsync.options import DEFAULT_MODEL, MAX_SEED
from latentsync.weights import shipped

NO_COOKIE = "this page needs cookies, to know whose files are whose; allow them for this site and load it again"
SHOWN_JOBS = 20
EXAMPLE = ("sample.mp4", "speech.m4a")

Seen = dict[str, str]  # what of the page shows what: parts that did not change are not sent again


def visitor(request: gr.Request) -> str:
    """Whose request that is. Raises UsageError where a browser takes no cookies."""
    found = owner(request.headers.get("cookie"))
    if not found:
        raise UsageError(NO_COOKIE)
    return found


class Actions:
    """The page's answers, over one desk."""

    def __init__(self, desk: Desk, uploads: Uploads, models: Models, *, finder: Finder | None = None) -> None:
        self.desk, self.uploads, self.models = desk, uploads, models
        self._finder = finder or Finder(models.home)
        folder = shipped.folder()
        there = all((folder / name).is_file() for name in EXAMPLE) and "demo" in models.sources
        self.example_files: tuple[Path, ...] = tuple(uploads.publish(folder / name) for name in EXAMPLE) if there else ()

    # Faces

    def warm(self) -> None:
        """Load the face finder before the first visitor waits for it."""
        name = self.first_model()
        self._finder.warm(self.models.sources[name])

    def look(self, which: str, video: Any, still: Any, model: str, request: gr.Request) -> Iterator[tuple[Look | None, int | None, str, str]]:
        """-> the frame that shows faces, no choice yet, both as HTML; and what is being done, or why the file cannot be used."""
        given = video if which == "video" else still
        if not given:
            yield None, None, "", ""
            return
        yield None, None, "", pieces.notice("Looking for faces", "note")
        try:
            path = self.uploads.path(visitor(request), given, "video")
            look = self._finder.look(path, self.models.sources.get(model, model))
        except LatentSyncError as e:
            yield None, None, "", pieces.notice(_about(e, given))
        else:
            yield look, None, pieces.faces(look, None), ""

    def choose(self, look: Look | None, event: gr.EventData) -> tuple[int | None, str]:
        """A click on a face."""
        number = int(event._data["id"]) if str(event._data.get("id", "")).isdigit() else 0
        if look is None or number >= len(look.spots):
            return None, pieces.faces(look, None)
        return number, pieces.faces(look, number)

    # Settings

    def settings(self, model: str, speed: str) -> tuple[Any, ...]:
        """A model or a preset was chosen -> steps, guidance, scheduler, cache, crf, and the button that fetches the model."""
        choice = self.models.choice(model)
        button = gr.update(
            visible=bool(choice and choice.downloadable),
            value=f"Download model {model} ({pieces.size(choice.size)})" if choice and choice.downloadable else "Download",
        )
        if SPEEDS.get(speed) == "own":
            return (*[gr.skip()] * 5, button)
        fields = self.models.speed(model, SPEEDS.get(speed, "balanced"))
        return (*(fields[name] for name in ("steps", "guidance", "scheduler", "cache", "crf")), button)

    @staticmethod
    def dice() -> int:
        """Another seed."""
        return secrets.randbelow(MAX_SEED) + 1

    def fetch(self, model: str) -> tuple[str, Any]:
        """Begin to download a model."""
        self.models.download(model)
        return self._downloading(), gr.Timer(active=True)

    # Jobs

    def run(self, person: tuple[str, Any, Any], sound: tuple[str, Any, Any], face: str, fields: Mapping[str, Any], request: gr.Request) -> Job:
        """Submit a job with the files and settings of the page. Raises LatentSyncError with what is wrong."""
        who = visitor(request)
        which, video, still = person
        given = video if which == "video" else still
        source = self.uploads.path(who, given, "video" if which == "video" else "picture")
        heard, upload, of_video = sound
        spoken = upload if heard == "sound" else of_video
        audio = self.uploads.path(who, spoken, "sound" if heard == "sound" else "video with the sound")
        model = str(fields["model"] or "")
        choice = self.models.choice(model)
        if choice is not None and not choice.here:
            mend = "press the download button below it" if choice.downloadable else "choose another"
            raise UsageError(f"model {model} is not here yet: {mend}")
        options = {name: value for name, value in fields.items() if name not in ("model", "preview") and value not in (None, "")}
        options["face"] = face
        if options.get("codec") not in CRF:
            options.pop("crf", None)
        draft = self.desk.new_folder()
        try:
            kept = _keep(draft, source, "video", _called(given)), _keep(draft, audio, "audio", _called(spoken))
            asked = Request(video=kept[0], audio=kept[1], model=model, options=options, preview=bool(fields.get("preview")))
            return self.desk.submit(draft, asked, owner=who)
        except BaseException:
            draft.discard()
            raise

    def example(self, request: gr.Request) -> Job:
        """Submit the example: the sample and the small model that come with the package."""
        who = visitor(request)
        draft = self.desk.new_folder()
        try:
            video = draft.copy(self.example_files[0], "video", "example.mp4").name
            audio = draft.copy(self.example_files[1], "audio", "new sentence.m4a").name
            return self.desk.submit(draft, Request(video=video, audio=audio, model="demo"), owner=who)
        except BaseException:
            draft.discard()
            raise

    def cancel(self, job: str, request: gr.Request) -> None:
        """Stop a job: within one step where it runs."""
        self.desk.cancel(job, visitor(request))

    def delete(self, job: str, request: gr.Request) -> None:
        """Forget a job and its files."""
        self.desk.delete(job, visitor(request))

    # What is shown

    def arrive(self, request: gr.Request) -> str:
        """The job that a visitor who comes (back) is shown: an unfinished one, or else the newest result."""
        try:
            jobs = self.desk.jobs(visitor(request), limit=SHOWN_JOBS)
        except LatentSyncError:
            return ""
        first = next((job for job in reversed(jobs) if not job.final), None) or next((job for job in jobs if job.has_result), None)
        return first.id if first else ""

    def view(self, watched: str, seen: Seen, request: gr.Request) -> dict[str, Any]:
        """Parts of the page by name; those that did not change are left out. `seen` is brought up to date."""
        try:
            who = visitor(request)
        except UsageError as e:
            return self._fresh(seen, {"notice": pieces.notice(str(e))}) | {"active": False}
        job: Job | None = None
        with suppress(LatentSyncError):  # deleted or expired: shown as none
            job = self.desk.get(watched, who) if watched else None
        jobs = self.desk.jobs(who, limit=SHOWN_JOBS)
        download = self.models.state()
        shown = pieces.result(job)
        parts = {
            "status": pieces.status(job),
            "spoken": pieces.spoken(job),
            "result": shown or ("" if job else pieces.empty()),
            "history": pieces.history(jobs, watched, keep_hours=self.desk.limits.keep_hours),
            "download": self._downloading(),
            "models": "|".join(choice.label for choice in self.models.choices()) if download else "",
            "cancel": "yes" if job and not job.final and not job.cancelling else "",
        }
        going = any(not j.final for j in jobs) or bool(download and not download.over)
        return self._fresh(seen, parts) | {"active": going}

    @staticmethod
    def _fresh(seen: Seen, parts: Mapping[str, str]) -> dict[str, Any]:
        changed = {name: value for name, value in parts.items() if seen.get(name) != value}
        seen.update(changed)
        return changed

    def _downloading(self) -> str:
        state = self.models.state()
        if state is None or (state.over and not state.wrong):
            return ""
        return pieces.download(state.name, state.share, state.said, wrong=state.wrong)

    def again(self, job: str, request: gr.Request) -> Mapping[str, Any]:
        """The settings of a job, to be used once more: values of the fields by name."""
        found = self.desk.get(job, visitor(request))
        used = {name: found.result.get(name) for name in ("steps", "guidance", "seed", "scheduler")}
        return {"crf": "", **found.request.options, **used, "model": found.request.model, "preview": found.request.preview}

    def first_model(self) -> str:
        """The one that is chosen when the page opens: the usual one where it is here, or else the first that is."""
        names = [choice.name for choice in self.models.choices() if choice.here]
        return DEFAULT_MODEL if DEFAULT_MODEL in names else next(iter(names), next(iter(self.models.sources)))


def _keep(draft: Draft, path: Path, kind: str, name: str) -> str:
    """A file into the job's folder, without a copy where the file system allows: the visitor may use it again. -> its name there."""
    target = draft.path(name, kind)
    try:
        os.link(path, target)
    except OSError:
        return draft.copy(path, kind, name).name
    return target.name


def _called(given: Any) -> str:
    """How an upload was called."""
    return (given.get("orig_name") or Path(given["path"]).name) if isinstance(given, dict) else Path(str(given)).name


def _about(error: LatentSyncError, given: Any) -> str:
    """Its sentence, with the upload's own name for the place where it lies."""
    path = given.get("path", "") if isinstance(given, dict) else str(given)
    return str(error).replace(str(Path(path).resolve()), _called(given)).replace(path, _called(given)) if path else str(error)
