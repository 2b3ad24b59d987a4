"""The corpus tool without OpenGL, speech programs or the mesh; and one whole clip where they are there."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import InputError, LatentSyncError, OutputError, UsageError

pytest.importorskip("scipy", reason="the corpus tool needs scipy: pip install -e '.[dev]'")

from tools.synthheads import __main__ as command
from tools.synthheads import clip, files, model, pack, pool, speech, text, visemes

ROOT = Path(__file__).resolve().parents[2]


def test_sentences_depend_on_the_seed_alone_and_end_without_a_stop():
    said = [text.sentence(np.random.default_rng(k)) for k in range(60)]
    assert said == [text.sentence(np.random.default_rng(k)) for k in range(60)]
    assert len(set(said)) > 55
    assert not any("." in s for s in said)


def test_flite_prints_phones():
    assert speech.flite_phones("pau:0.2 hh:0.3 ay:0.55") == [(0.0, 0.2, "_"), (0.2, 0.3, "h"), (0.3, 0.55, "aɪ")]
    with pytest.raises(LatentSyncError, match="more than one utterance"):
        speech.flite_phones("pau:0.2 hh:0.3 pau:0.1")


def test_every_phone_of_flite_has_a_mouth():
    assert {c for ipa in speech.ARPA.values() for c in ipa} <= set(visemes.TARGETS)


def test_segments_split_diphthongs_and_take_the_schwa_for_unknown_sounds():
    assert visemes.segments([(0, 1, "aɪ"), (1, 2, "tʃ"), (2, 3, "?"), (3, 3, "p"), (3, 4, "")]) == [
        (0, 0.5, "a"), (0.5, 1, "ɪ"), (1, 1.4, "t"), (1.4, 2, "ʃ"), (2, 3, "ə"), (3, 4, "_"),
    ]  # fmt: skip


def test_lips_close_on_m_open_on_a_and_round_on_u():
    phones = [(0.0, 0.3, "_"), (0.3, 0.5, "ɑ"), (0.5, 0.6, "m"), (0.6, 0.85, "u"), (0.85, 1.0, "_")]
    y = visemes.articulate(phones, 1.0, np.random.default_rng(0))
    at = {p: y[int((s + e) / 2 * visemes.RATE)] for s, e, p in phones[1:4]}
    jaw, close, pucker = (visemes.INDEX[c] for c in ("jaw", "close", "pucker"))
    assert y.shape == (200, len(visemes.CHANNELS))
    assert at["m"][close] > 0.95 > 0.3 > at["ɑ"][close]
    assert at["ɑ"][jaw] > 2 * at["m"][jaw]
    assert at["u"][pucker] > 0.6 > 0.2 > at["ɑ"][pucker]


def test_streams_of_late_seeds_are_independent_and_those_of_early_ones_are_one():
    a, b = clip.streams(3000), clip.streams(3000)
    a.look.random(1000)
    assert a.speech.random() == b.speech.random() != clip.streams(3001).speech.random()
    old = clip.streams(2999)
    assert old.look is old.speech is old.grain
    assert old.more is None
    with pytest.raises(UsageError):
        clip.streams(-1)


def test_motion_blur_moves_no_light():
    dot = np.zeros((21, 21, 3), np.float32)
    dot[10, 10] = 100
    still, moved = clip._smeared(dot, np.array([0.3, 0.2])), clip._smeared(dot, np.array([6.0, 0.0]))
    assert still is dot
    assert moved.sum() == pytest.approx(300, rel=1e-4)
    assert (moved[10, :, 0] * np.arange(21)).sum() / 100 == pytest.approx(10, abs=1e-3)
    assert 5 <= np.count_nonzero(moved[10, :, 0] > 1) <= 9


def test_seeds_are_read():
    assert command.parse_seeds("7") == [7]
    assert command.parse_seeds("3-5, 9,4") == [3, 4, 5, 9]
    for bad in ("", "a", "5-3", "-1"):
        with pytest.raises(UsageError):
            command.parse_seeds(bad)


def test_a_missing_mesh_is_an_error_that_says_how_to_pack_it(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(model.VARIABLE, raising=False)
    with pytest.raises(InputError, match=r"tools\.synthheads\.pack --ict ICT-FaceKit"):
        model.find_mesh()
    with pytest.raises(InputError, match="no face mesh at"):
        model.find_mesh(tmp_path)
    (tmp_path / model.MESH).write_bytes(b"nothing")
    monkeypatch.setenv(model.VARIABLE, str(tmp_path))
    assert model.find_mesh() == tmp_path / model.MESH
    with pytest.raises(InputError, match="not a packed face mesh"):
        model.HeadModel(model.find_mesh())
    assert command.main([str(tmp_path / "out"), "--seeds", "x"]) == 2
    assert "--seeds" in capsys.readouterr().err


def test_missing_programs_are_named_with_their_packages(monkeypatch):
    def absent(name, *_):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LatentSyncError, match="apt-get install espeak-ng flite"):
        speech.check_programs()


def test_packing_reads_the_kit(tmp_path):
    kit = tmp_path / "FaceXModel"
    kit.mkdir()
    with pytest.raises(InputError, match="checkout of ICT-FaceKit"):
        pack.pack(tmp_path, tmp_path / "mesh.npz")
    corners = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 {}\nvt 0 0\nvt 1 1\nf 1/1 2/1 3/2 4/2\n"
    for name, z in (("generic_neutral_mesh", 0), ("jawOpen", 2), ("identity000", 0.5)):
        (kit / f"{name}.obj").write_text(corners.format(z))
    assert pack.pack(tmp_path, tmp_path / "mesh.npz") == {"vertices": 4, "triangles": 2, "expressions": 1, "identities": 1}
    with np.load(tmp_path / "mesh.npz") as z:
        assert z["tri"].tolist() == [[0, 1, 2], [0, 2, 3]]
        assert z["expr"][0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 2]]


def test_files_appear_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), files.appearing(tmp_path / "a.txt") as scratch:
        scratch.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="cannot write"):
        files.write_json(tmp_path / "no" / "a.json", {})


def test_finished_clips_are_not_made_again(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(pool, "start", lambda *_: None)
    monkeypatch.setattr(pool, "make", lambda folder, seed, seconds: made.append(seed) or {"seed": seed})
    (tmp_path / "clip_000002.json").write_text("{}")
    (tmp_path / "clip_000003.mp4").write_bytes(b"interrupted")
    list(pool.make_all(tmp_path, [1, 2, 3], 1.0, 64, tmp_path, 1))
    assert made == [1, 3]


def test_processes_find_what_they_are_given_when_the_tool_is_run_by_its_name():
    """A spawned process does not import a package's `__main__`: what it is told to call must live elsewhere."""
    assert {f.__module__ for f in (pool.start, pool.make)} == {"tools.synthheads.pool"}
    assert not hasattr(command, "start")
    assert not hasattr(command, "make")


def test_a_clip_end_to_end_depends_on_its_seed_alone(tmp_path):
    if not os.environ.get(model.VARIABLE):
        pytest.skip(f"{model.VARIABLE} names no face mesh")
    try:
        speech.check_programs()
    except LatentSyncError as e:
        pytest.skip(str(e))
    pytest.importorskip("moderngl")
    from latentsync.media.clip import probe

    first, second = tmp_path / "first", tmp_path / "second"
    common = ["--seconds", "1", "--size", "64"]
    assert command.main([str(first), "--seeds", "3002", *common]) == 0
    several = [sys.executable, "-m", "tools.synthheads", str(second), "--seeds", "3001-3002", "--sound-only", "--seconds", "1", "--jobs", "2"]
    done = subprocess.run(several, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    info = probe(first / "clip_003002.mp4")
    assert (info.width, info.frames, info.audio) == (64, 25, True)
    with np.load(first / "clip_003002.npz") as a, np.load(second / "clip_003002.npz") as b:
        assert a["landmarks"].shape == (25, 68, 2)
        assert np.array_equal(a["articulation"], b["articulation"])  # the same speaker, with picture or without, alone or after another
        assert np.allclose(a["lip_gap"], b["lip_gap"], atol=0.02)
    about = [json.loads((folder / "clip_003002.json").read_text()) for folder in (first, second)]
    assert about[0]["phones"] == about[1]["phones"]
    assert not [p for p in first.iterdir() if p.name.startswith(".")]
