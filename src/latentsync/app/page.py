"""The page: what stands where. Fields on the left, the result on the right; one under the other on a phone."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr

from latentsync import options as opt
from latentsync.app import pieces, wires
from latentsync.app.models import BEST_CRF, SPEEDS

if TYPE_CHECKING:
    from latentsync.app.actions import Actions
    from latentsync.jobs import Limits

HERE = Path(__file__).resolve().parent
TICK = 0.8  # seconds between two looks at the jobs that go on
TELL = "element.addEventListener('click', (e) => { const b = e.target.closest('[data-act]'); if (b) trigger('click', {...b.dataset}); })"
LONGER_SOUND = [
    ("Play the video back and forth", "bounce"),
    ("Start the video again", "loop"),
    ("Hold the last frame", "freeze"),
    ("Cut the sound", "cut"),
]
LONGER_VIDEO = [("Cut the video", "cut"), ("Keep the rest as it is", "keep")]
MISSING = [("Leave such frames as they are", "copy"), ("Stop the job", "error")]
PASTES = [("Only the new mouth", "mask"), ("The whole face crop, as published", "crop")]
CODECS = [("H.264, plays everywhere", "h264"), ("HEVC", "hevc"), ("ProRes, for editing", "prores"), ("FFV1, lossless", "ffv1")]
QUALITIES: list[Any] = [("As usual", ""), ("Finer, larger file", BEST_CRF), ("Coarser, smaller file", 24)]  # CRF of H.264 and HEVC
RATES = [("As the video is", "source"), ("24", "24"), ("25", "25"), ("29.97", "29.97"), ("30", "30"), ("50", "50"), ("60", "60")]


def prepare(folder: Path) -> None:
    """Settings that Gradio reads from the environment: uploads go to a private folder, and nothing is reported to anybody. Before `build`."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def theme() -> gr.themes.Base:
    """Calm: one accent, system fonts, no shadows."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=fonts,
        font_mono=("ui-monospace", "Consolas", "monospace"),
        radius_size=gr.themes.sizes.radius_lg,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#101418",
        block_background_fill="white",
        block_background_fill_dark="#181d23",
        block_border_color="*neutral_200",
        block_border_color_dark="#2b323a",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        button_primary_background_fill="#1f5fbf",
        button_primary_background_fill_hover="#184e9f",
        button_primary_background_fill_dark="#3d7fe0",
        button_primary_background_fill_hover_dark="#5a94ea",
        button_primary_text_color="white",
        input_background_fill="white",
        input_background_fill_dark="#11161b",
        border_color_primary_dark="#2b323a",
        slider_color="#1f5fbf",
        slider_color_dark="#5a94ea",
    )


def looks() -> dict[str, Any]:
    """Theme, style and script, as Gradio's server takes them."""
    style, script = (HERE / name for name in ("style.css", "page.js"))
    return {
        "theme": theme(),
        "css": style.read_text(encoding="utf-8"),
        "head": f"<script>{script.read_text(encoding='utf-8')}</script><meta name='color-scheme' content='light dark'>",
    }


def build(actions: Actions) -> gr.Blocks:
    """The page over these actions."""
    with gr.Blocks(title="LatentSync", analytics_enabled=False, fill_width=True) as blocks:
        p = SimpleNamespace(
            watched=gr.State(""),  # the job that is shown
            seen=gr.State({}),  # what of the page shows what
            which=gr.State("video"),  # video | still: where the person is
            heard=gr.State("sound"),  # sound | of-video: where the sound is
            look=gr.State(None),  # the frame with faces
            chosen=gr.State(None),  # number of the face that was clicked
            timer=gr.Timer(TICK, active=False),
        )
        gr.HTML(HEAD, elem_id="head", apply_default_css=False)
        with gr.Row(elem_id="desk"):
            with gr.Column(elem_id="fields", min_width=320):
                _who(p)
                _what(p)
                _how(p, actions)
            with gr.Column(elem_id="outcome", min_width=320):
                _outcome(p, actions)
        gr.HTML(_foot(actions.desk.limits), elem_id="foot", apply_default_css=False)
        wires.connect(blocks, p, actions)
    return blocks


def _who(p: SimpleNamespace) -> None:
    _step(1, "Who speaks", "A video of one person or several, or a still picture.")
    with gr.Tabs(elem_id="who"):
        with gr.Tab("Video", id="video") as p.video_tab:
            p.video = gr.Video(label="Video", show_label=False, sources=["upload", "webcam"], height=240, elem_id="video")
        with gr.Tab("Picture", id="still") as p.still_tab:
            sources: list[Any] = ["upload", "webcam", "clipboard"]
            p.still = gr.Image(label="Picture", show_label=False, sources=sources, type="filepath", height=240, elem_id="still")
    p.faces = gr.HTML("", elem_id="faces", js_on_load=TELL, apply_default_css=False)
    p.about = gr.HTML("", elem_id="about", apply_default_css=False)


def _what(p: SimpleNamespace) -> None:
    _step(2, "What they say", "A recording, your microphone, or the sound of a video.")
    with gr.Tabs(elem_id="what"):
        with gr.Tab("Sound", id="sound") as p.sound_tab:
            sources: list[Any] = ["upload", "microphone"]
            p.sound = gr.Audio(label="Sound", show_label=False, sources=sources, type="filepath", editable=False, buttons=[], elem_id="sound")
        with gr.Tab("From a video", id="of-video") as p.of_video_tab:
            p.of_video = gr.File(label="Video with the sound", show_label=False, type="filepath", height=140, elem_id="of-video")


def _how(p: SimpleNamespace, actions: Actions) -> None:
    first = actions.first_model()
    own: dict[str, Any] = actions.models.speed(first, "balanced")
    start = actions.models.choice(first)
    _step(3, "How", "The defaults are fine. Change what you like.")
    p.model = gr.Dropdown(wires.labels(actions), value=first, label="Model", filterable=False, elem_id="model")
    p.fetch = gr.Button("Download", visible=bool(start and start.downloadable), size="sm", elem_id="fetch")
    p.fetching = gr.HTML("", elem_id="fetching", apply_default_css=False)
    p.speed = gr.Radio(list(SPEEDS), value="Balanced", label="Speed or quality", elem_id="speed")
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        hint = "More steps: a finer picture, more time."
        p.steps = gr.Slider(1, 100, value=own["steps"], step=1, label="Steps", info=hint, buttons=[], elem_id="steps")
        hint = "How strongly the sound leads the lips."
        p.guidance = gr.Slider(0, 10, value=own["guidance"], step=0.1, label="Guidance", info=hint, buttons=[], elem_id="guidance")
        with gr.Row(elem_id="chance"):
            p.seed = gr.Number(opt.Options().seed, label="Seed", info="The same seed gives the same take.", precision=0, elem_id="seed")
            p.dice = gr.Button("Another take", size="sm", elem_id="dice", min_width=140)
        p.when_audio_longer = gr.Dropdown(LONGER_SOUND, value="bounce", label="Where the sound is longer", filterable=False)
        p.when_video_longer = gr.Dropdown(LONGER_VIDEO, value="cut", label="Where the video is longer", filterable=False)
        with gr.Accordion("For experts", open=False, elem_id="experts"):
            p.scheduler = gr.Dropdown(list(opt.SCHEDULERS), value=own["scheduler"], label="Sampler", filterable=False, elem_id="scheduler")
            hint = "3 is about twice as fast; 1 is exact."
            p.cache = gr.Slider(1, 5, value=own["cache"], step=1, label="Whole network every … steps", info=hint, buttons=[], elem_id="cache")
            p.on_missing_face = gr.Dropdown(MISSING, value="copy", label="Frames without a face", filterable=False)
            p.paste = gr.Dropdown(PASTES, value="mask", label="What is put back", filterable=False)
            p.fps = gr.Dropdown(RATES, value="source", label="Frames a second", filterable=False)
            p.codec = gr.Dropdown(CODECS, value="h264", label="Video format", filterable=False)
            p.crf = gr.Dropdown(QUALITIES, value="", label="Compression", filterable=False, elem_id="crf")
            p.preview = gr.Checkbox(False, label="Decode with the tiny autoencoder", info="Faster and softer, for a look.")


def _outcome(p: SimpleNamespace, actions: Actions) -> None:
    p.notice = gr.HTML("", elem_id="notice", apply_default_css=False)
    with gr.Row(elem_id="go"):
        p.run = gr.Button("Make the lips move", variant="primary", scale=3, elem_id="run")
        p.cancel = gr.Button("Cancel", visible=False, scale=1, elem_id="cancel", min_width=100)
    p.status = gr.HTML("", elem_id="status", apply_default_css=False)
    p.spoken = gr.HTML(wires.said(""), elem_id="spoken", apply_default_css=False)
    p.result = gr.HTML(pieces.empty(), elem_id="result", js_on_load=TELL, apply_default_css=False)
    p.example = gr.Button("Run the example", size="md", visible=bool(actions.example_files), elem_id="example")
    p.history = gr.HTML("", elem_id="history", js_on_load=TELL, apply_default_css=False)


def _step(number: int, name: str, hint: str) -> None:
    text = f"<div class='step'><span aria-hidden='true'>{number}</span><div><h2>{name}</h2><p class='small'>{hint}</p></div></div>"
    gr.HTML(text, apply_default_css=False)


def _foot(limits: Limits) -> str:
    said = []
    if limits.max_bytes:
        said.append(f"files up to {pieces.size(limits.max_bytes)}")
    if limits.max_seconds:
        said.append(f"results up to {pieces.clock(limits.max_seconds)}")
    taken = f"Taken are {' and '.join(said)}. " if said else ""
    care = "Use it on footage that you may use, of people who agree, and say that the result is synthetic where that matters."
    return f"<p class='small'>{taken}{care}</p>"


HEAD = "<header><h1>LatentSync</h1><p>A video and a sound in; the same video, speaking that sound, out.</p></header>"
