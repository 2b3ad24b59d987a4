"""The command as a user runs it: a process of its own, its exit code, what it prints where, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentsync.cli import app, closing
from latentsync.errors import LatentSyncError
from tests.conftest import ROOT, write_wav

QUICK = ("--steps", "1", "--guidance", "1", "--device", "cpu", "--dtype", "fp32")
HEAVY = ("torch", "transformers", "diffusers", "av", "cv2", "numpy", "PIL", "scipy", "safetensors")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine on which nothing was downloaded."""
    return tmp_path_factory.mktemp("home")


def surroundings(home: Path, **more: str) -> dict[str, str]:
    """Environment variables of the command, without those that could bring weights or settings in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LATENTSYNC", "HF_", "HUGGINGFACE", "PYTHON", "XDG"))}
    # No bytecode: a job with a limit on file sizes would cut it off, and later ones would read it.
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return {**kept, "LATENTSYNC_HOME": str(home), "HF_HOME": str(home), **quiet, **more}


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Run:
    """run(words...) -> the finished process, started in an empty folder."""

    def go(*words: object, env: dict[str, str] | None = None, cwd: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "latentsync", *map(str, words)],
            cwd=cwd or tmp_path,
            env=surroundings(home, **(env or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=120,
            check=False,
            **more,
        )

    return go


@pytest.fixture(scope="module")
def short(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a short job: face.mp4, points.npz, voice.wav of 0.2 s, nobody.json (a face nowhere)."""
    folder = tmp_path_factory.mktemp("short")
    shutil.copy(sample / "sample.mp4", folder / "face.mp4")
    shutil.copy(sample / "points.npz", folder / "points.npz")
    write_wav(folder / "voice.wav", 0.3 * np.sin(np.arange(3200) / 9))
    (folder / "nobody.json").write_text('{"points": []}')
    return folder


@pytest.fixture
def words(short: Path, tiny_model: Path) -> list[object]:
    """A job that works, but for its output: `sync ... --model tiny --points ...`."""
    return ["sync", short / "face.mp4", short / "voice.wav", "--model", tiny_model, "--points", short / "points.npz", *QUICK]


def assert_plain(process: subprocess.CompletedProcess[str], code: int) -> str:
    """The exit code is that, and what was said is a message, not a traceback. Returns it."""
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    return process.stderr


# starting


def test_help_and_version_are_fast_and_light(run: Run) -> None:
    took = []
    for _ in range(3):
        began = time.monotonic()
        helped = run("--help")
        took.append(time.monotonic() - began)
    assert helped.returncode == 0
    for command in ("sync", "models", "doctor"):
        assert command in helped.stdout
    assert min(took) < 1.5, "a fifth of that on an idle machine"
    version = run("--version")
    import latentsync

    assert version.stdout == f"latentsync {latentsync.__version__}\n"
    assert version.returncode == 0


@pytest.mark.parametrize(
    "code",
    [
        "import latentsync",
        "import latentsync.cli",
        "import sys; sys.argv = ['latentsync', '--help']\nfrom latentsync.cli import main\ntry: main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['latentsync', 'sync', '--help']\nfrom latentsync.cli import main\ntry: main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['latentsync', 'models', 'list']\nfrom latentsync.cli import main\ntry: main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['latentsync', 'sync', 'a', 'b', '-o', 'c.mp4', '--steps', '0']\n"
        "from latentsync.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(home: Path, code: str) -> None:
    after = f"\nimport sys; print('LOADED', *sorted({HEAVY!r} & sys.modules.keys()))".replace(repr(HEAVY), repr(set(HEAVY)))
    done = subprocess.run(
        [sys.executable, "-c", code + after], env=surroundings(home), capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_the_installed_command_is_the_module(home: Path) -> None:
    command = Path(sys.executable).with_name("latentsync")
    if not command.exists():
        pytest.skip("installed without its command")
    asked = [[str(command)], [sys.executable, "-m", "latentsync"]]
    one, other = (
        subprocess.run([*c, "sync", "--help"], env=surroundings(home), capture_output=True, encoding="utf-8", timeout=60, check=False) for c in asked
    )
    assert one.returncode == other.returncode == 0
    assert one.stdout.split("]", 1)[1] == other.stdout.split("]", 1)[1]  # behind the name it was called by


def test_the_reference_is_current() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_cli_docs", ROOT / "tools" / "make_cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.page()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page, "run: make docs"
    for option in ("--on-missing-face", "--when-audio-longer", "--batch-windows", "--json", "--overwrite"):
        assert option in page


def test_the_reference_names_every_exit_code() -> None:
    from latentsync import errors

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    head = " ".join(page[: page.index("##")].split())
    codes = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.LatentSyncError)}
    assert codes == set(range(1, 8))
    for code in (0, *codes, 130):
        assert re.search(rf"(?<!\d){code} [a-z]", head), code


# refusals: nothing is loaded, nothing is written


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--steps", "0"], "--steps 0: must be a whole number within 1..200"),
        (["--steps", "2.5"], "--steps"),
        (["--guidance", "11"], "--guidance 11"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--seed", "x"], "seed 'x' is neither"),
        (["--seed", "-1"], "--seed -1"),
        (["--scheduler", "euler"], "choose one of ddim, dpm++, unipc"),
        (["--face", "middle"], "face 'middle' is none of largest, left, right"),
        (["--face", "0"], "numbered from 1"),
        (["--face", "nan,1"], "face 'nan,1'"),
        (["--on-missing-face", "skip"], "choose one of copy, error"),
        (["--when-audio-longer", "stretch"], "choose one of bounce, loop, freeze, cut"),
        (["--when-video-longer", "x"], "choose one of cut, keep"),
        (["--fps", "fast"], "fps 'fast' is neither 'source' nor a rate"),
        (["--fps", "1e999999999"], "is neither 'source' nor a rate"),
        (["--codec", "vp9"], "choose one of h264, hevc, prores, ffv1"),
        (["--codec", "prores"], "prores does not go into .mp4; use .mov or .mkv"),
        (["--crf", "64"], "--crf 64"),
        (["--cache", "0"], "--cache 0"),
        (["--batch-windows", "0"], "--batch-windows 0"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_values_that_cannot_be_used_are_named(run: Run, short: Path, tmp_path: Path, given: list[str], said: str) -> None:
    message = assert_plain(run("sync", short / "face.mp4", short / "voice.wav", "-o", "out.mp4", *given), 2)
    assert said in message
    assert not list(tmp_path.iterdir())


def test_missing_words_are_named(run: Run) -> None:
    assert "FACE" in assert_plain(run("sync"), 2)
    assert "--out" in assert_plain(run("sync", "a.mp4", "b.wav"), 2)
    assert "frobnicate" in assert_plain(run("frobnicate"), 2)


Inside = Callable[..., LatentSyncError]


@pytest.fixture
def inside(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """inside(words...) -> the error that ends the command, run in this process: what `main` makes of it is tested with processes."""

    def go(*words: object) -> LatentSyncError:
        for name in [n for n in os.environ if n.startswith(("LATENTSYNC", "HF_", "HUGGINGFACE", "XDG"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("LATENTSYNC_HOME", str(home))
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LatentSyncError) as raised:
            app([str(w) for w in words], standalone_mode=False)
        return raised.value

    return go


def test_every_kind_of_error_has_its_exit_code(run: Run, words: list[object], short: Path) -> None:
    assert "no such file: none.mp4" in assert_plain(run("sync", "none.mp4", short / "voice.wav", "-o", "o.mp4"), 3)
    assert "the folder no/folder does not exist" in assert_plain(run(*words, "-o", "no/folder/o.mp4"), 6)
    missing = assert_plain(run("sync", short / "face.mp4", short / "voice.wav", "-o", "o.mp4", "--json"), 5)
    assert "latentsync models download 1.6" in missing


def test_inputs_and_outputs_are_refused_before_anything_is_loaded(inside: Inside, words: list[object], short: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a film\n" * 99)
    (tmp_path / "old.mp4").write_bytes(b"precious")
    (tmp_path / "nothing.json").write_text("{}")
    face, audio = short / "face.mp4", short / "voice.wav"
    absent = ["--model", "1.6"]  # nor are the weights there: what the user named wrongly comes first
    for given, code, said in (
        (["sync", "none.mp4", audio, "-o", "o.mp4", *absent], 3, "no such file: none.mp4"),
        (["sync", face, "none.wav", "-o", "o.mp4", *absent], 3, "no such file: none.wav"),
        (["sync", "text.mp4", audio, "-o", "o.mp4", *absent], 3, "text.mp4 is not an audio, video or image file"),
        (["sync", audio, audio, "-o", "o.mp4", *absent], 3, "voice.wav holds no video"),
        (["sync", face, face, "-o", "o.mp4", *words[3:]], 3, "face.mp4 holds no sound"),
        ([*words, "-o", "o.mp4", "--points", "nothing.json"], 3, "nothing.json is not a file of points"),
        ([*words, "-o", "old.mp4"], 6, "--overwrite"),
        ([*words, "-o", "no/folder/o.mp4"], 6, "the folder no/folder does not exist"),
        ([*words, "-o", "."], 2, "names no container"),
        ([*words, "-o", "o.txt"], 2, "names no container"),
        (["sync", "old.mp4", audio, "-o", "old.mp4", "--overwrite", *absent], 6, "also an input"),
        (["sync", face, audio, "-o", "o.mp4", "--model", "nonsense"], 2, "'nonsense' is neither a model"),
    ):
        error = inside(*given)
        assert error.exit_code == code, given
        assert said in str(error), given
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nothing.json", "old.mp4", "text.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == b"precious"


def test_a_folder_that_may_not_be_written_to(inside: Inside, words: list[object], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("running as a user who may write everywhere")
    error = inside(*words, "-o", "locked/o.mp4")
    assert error.exit_code == 6
    assert "no permission" in str(error)


def test_absent_weights_name_the_command_the_size_and_the_place(inside: Inside, short: Path, home: Path) -> None:
    error = inside("sync", short / "face.mp4", short / "voice.wav", "-o", "o.mp4", "--model", "1.5")
    assert error.exit_code == 5
    assert "latentsync models download 1.5" in str(error)
    assert re.search(r"\d\.\d+ GB in all", str(error))
    assert str(home) in str(error)


def test_weights_that_do_not_fit_are_named(inside: Inside, words: list[object], tiny_model: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_model, wrong)
    text = (wrong / "model.yaml").read_text()
    assert "layers_per_block: 1" in text
    (wrong / "model.yaml").write_text(text.replace("layers_per_block: 1", "layers_per_block: 2"))
    error = inside(*words, "-o", "o.mp4", "--model", wrong)
    assert error.exit_code == 5
    assert "autoencoder of model tiny" in str(error)
    assert re.search(r"(encoder|decoder)\.\w+\.\d", str(error)), "the first key"
    assert not (tmp_path / "o.mp4").exists()


def test_a_device_that_is_not_there(inside: Inside, words: list[object]) -> None:
    error = inside(*words, "-o", "o.mp4", "--device", "cuda:63")
    assert error.exit_code == 7
    assert "GPU" in str(error)
    assert "--device" in str(error)
    assert inside(*words, "-o", "o.mp4", "--device", "abacus").exit_code == 2
    assert inside(*words, "-o", "o.mp4", "--dtype", "fp4").exit_code == 2


# the job


def test_a_job_says_what_it_did(run: Run, words: list[object], tmp_path: Path) -> None:
    done = run(*words, "-o", "out.mp4", "--seed", "random", "--on-missing-face", "error")
    assert done.returncode == 0, done.stderr
    first, *notes = done.stdout.splitlines()
    assert first.startswith("out.mp4: 0.20 s, 5 frames, 5 with a new mouth; model tiny, seed ")
    assert re.search(r"seed [1-9]\d*, \d+\.\d\d s per second of video on cpu in fp32$", first)
    assert "note: the model is untrained: its mouths are noise" in notes
    assert done.stderr == "", "no bar where nobody looks, and no chatter of libraries"
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_nobody_to_be_seen_may_be_an_error(run: Run, words: list[object], short: Path, tmp_path: Path) -> None:
    message = assert_plain(run(*words, "-o", "out.mp4", "--points", short / "nobody.json", "--on-missing-face", "error", "--json"), 4)
    assert "no face in frame 0" in message
    assert "--on-missing-face copy" in message
    assert not list(tmp_path.iterdir())


def test_the_closing_lines_name_spans_without_a_face() -> None:
    from latentsync.pipeline import Result

    spans = [(float(k), k + 0.5) for k in range(12)]
    result = Result(out=Path("o.mp4"), model="m", seed=7, frames=300, seconds=12.0, faces=0, without_face=spans, elapsed=6.0, device="d", dtype="t")
    first, missing, warning = closing(result)
    assert first == "o.mp4: 12.00 s, 300 frames, 0 with a new mouth; model m, seed 7, 0.50 s per second of video on d in t"
    assert missing.startswith("no face, left as they were: 0.00-0.50 s, 1.00-1.50 s, ")
    assert missing.endswith("9.00-9.50 s and 2 more spans")
    assert "no usable face anywhere" in warning


@pytest.mark.parametrize("strange", ['it\'s a "name" & $HOME ; #%03d [x]{y}*? später-声音-🎬 two\nlines\tand a tab', "-o"])
def test_any_name_works(run: Run, words: list[object], short: Path, tmp_path: Path, strange: str) -> None:
    for source, name in (("face.mp4", "f.mp4"), ("voice.wav", "v.wav"), ("points.npz", "p.npz")):
        shutil.copy(short / source, tmp_path / f"{strange}{name}")
    rest = words[3:5]
    if strange.startswith("-"):  # such names need ./ or come behind --
        given = ["sync", *rest, *QUICK, f"--points={strange}p.npz", f"--out={strange}out.mp4", "--json", "--", f"{strange}f.mp4", f"{strange}v.wav"]
    else:
        names = {k: f"{strange}{k}" for k in ("f.mp4", "v.wav", "p.npz", "out.mp4")}
        given = ["sync", names["f.mp4"], names["v.wav"], *rest, *QUICK, "--points", names["p.npz"], "-o", names["out.mp4"], "--json"]
    done = run(*given)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == f"{strange}out.mp4"
    assert (tmp_path / f"{strange}out.mp4").read_bytes()[4:8] == b"ftyp"
    assert len(list(tmp_path.iterdir())) == 4


def test_names_that_are_no_text_work_and_can_be_told(run: Run, words: list[object], short: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system takes only text as names")
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    assert "--overwrite" in assert_plain(run(*words, "-o", name, env=ascii_only), 6)
    done = run(*words, "-o", name, "--overwrite", "--json", "--points", short / "nobody.json", env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name).stat().st_size > 1000
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    told = json.loads(done.stdout)
    assert (told["out"], told["frames"], told["frames_with_face"], told["seed"]) == (name, 5, 0, 1247)
    assert told["spans_without_face"] == [[0.0, 0.2]]
    assert (told["model"], told["device"], told["dtype"]) == ("tiny", "cpu", "fp32")


def test_a_limit_on_file_size_is_said_and_leaves_nothing(run: Run, words: list[object], tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    message = assert_plain(run(*words, "-o", "out.mp4", "--crf", "0", preexec_fn=limited), 6)
    assert "out.mp4 may not grow that large" in message
    assert not list(tmp_path.iterdir())


# stopping


@pytest.fixture
def long_job(words: list[object], tmp_path: Path) -> list[object]:
    """A job of minutes."""
    write_wav(tmp_path / "long.wav", 0.1 * np.sin(np.arange(16000 * 60) / 9))
    return [*words[:2], tmp_path / "long.wav", *words[3:], "--steps", "50", "-o", tmp_path / "out.mp4"]


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are not there")
@pytest.mark.parametrize(("number", "code", "times"), [("SIGINT", 130, 1), ("SIGTERM", 143, 3)])
def test_a_signal_stops_the_job_at_once_and_leaves_nothing(
    long_job: list[object], home: Path, tmp_path: Path, number: str, code: int, times: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "latentsync", *map(str, long_job)],
        env=surroundings(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(getattr(signal, number), signal.SIG_DFL),  # a shell's background jobs inherit SIGINT ignored
    )
    try:
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob(".latentsync-*")):  # until it writes
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)
        began = time.monotonic()
        for _ in range(times):
            os.killpg(process.pid, getattr(signal, number))
            time.sleep(0.05)
        out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == code, err
    assert time.monotonic() - began < 8
    assert "stopped; nothing was written" in err
    assert "Traceback" not in err
    assert out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["long.wav"]


def test_a_reader_that_leaves_is_no_fault(home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "latentsync", "models", "list"],
        env=surroundings(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.wait(timeout=30)
    process.stderr.close()
    assert "Traceback" not in said
    assert "fault of the program" not in said


@pytest.mark.skipif(os.name == "nt", reason="needs a shell's way to close a stream")
def test_closed_standard_streams_do_no_harm(run: Run, short: Path) -> None:
    assert run("sync", "none.mp4", short / "voice.wav", "-o", "o.mp4", preexec_fn=lambda: os.close(2)).returncode == 3
    assert run("models", "list", preexec_fn=lambda: os.close(1)).returncode == 0


# models and doctor


def test_models_are_listed_described_and_made(run: Run, inside: Inside, tmp_path: Path) -> None:
    listed = run("models", "list")
    assert listed.returncode == 0
    for name in ("1.6", "1.5", "tiny"):
        assert re.search(rf"^{re.escape(name)}\s", listed.stdout, re.MULTILINE)
    rows = json.loads(run("models", "list", "--json").stdout)
    assert {"1.6", "1.5"} <= {row["name"] for row in rows}
    info = run("models", "info", "1.6")
    assert info.returncode == 0
    assert "512 px" in info.stdout
    assert "missing" in info.stdout
    assert re.search(r"unet\s+missing\s+5\.07 GB\s+https://", info.stdout)
    assert json.loads(run("models", "info", "1.6", "--json").stdout)
    made = run("models", "new", "tiny", "made", "--seed", "3")
    assert made.returncode == 0, made.stderr
    assert "untrained" in made.stdout
    assert (tmp_path / "made" / "model.yaml").is_file()
    assert "64 px" in run("models", "info", "made").stdout
    for words, code, said in (
        (["new", "tiny", "made"], 6, "not an empty folder"),
        (["new", "bogus", "other"], 2, "no preset 'bogus'"),
        (["download", "bogus"], 2, "nothing to download under 'bogus'"),
        (["info", "bogus"], 2, "bogus"),
    ):
        error = inside("models", *words)
        assert (error.exit_code, said in str(error)) == (code, True), error


def test_the_doctor_tells_what_mends_what_is_missing(run: Run) -> None:
    told = run("doctor")
    assert told.returncode == 0, told.stdout
    assert "-> latentsync models download 1.6" in told.stdout
    for word in ("python", "device", "encoders", "libx264", "model 1.6", "face"):
        assert word in told.stdout
    checks = json.loads(run("doctor", "--json").stdout)
    assert all(check["state"] in ("ok", "warn", "fail") for check in checks)
    assert any("cpu" in json.dumps(check) for check in checks)
