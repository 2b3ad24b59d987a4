import dataclasses
from fractions import Fraction

import pytest

from latentsync import config
from latentsync.errors import UsageError
from latentsync.options import Options, options, read_face, read_fps, read_seed


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_loads_and_survives_a_round_trip_as_text(name):
    preset = config.preset(name)
    assert preset.name == name
    assert config.parse(config.dump(preset), "text") == preset


def test_presets_hold_only_what_differs():
    assert config.plain(config.preset("1.5")) == {"name": "1.5", "summary": config.preset("1.5").summary}
    assert config.plain(config.preset("1.6"))["resolution"] == 512


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.preset("1.5").resolution = 512  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nresolutoin: 256", "unknown key 'resolutoin'; known keys are name, summary, resolution"),
        ("name: x\nresolutoin: 256", r"; did you mean 'resolution'\?$"),
        ("name: x\nqqq: 256", r"known keys are [^;]*$"),
        ("name: x\nunet: {motion: some}", r"unet\.motion: 'some' is not one of none, decoder, all"),
        ("name: x\nunet: {channels: 3}", r"unet\.channels: expected a list"),
        ("name: x\nunet: {channels: [320, wide]}", r"unet\.channels\[1\]: expected int, found 'wide'"),
        ("name: x\nresolution: 200", "multiple of 64"),
        ("name: x\nresolution: true", "expected int, found True"),
        ("name: x\nwindow: 25", r"within 1\.\.24"),
        ("name: x\nunet: {audio_dim: 768}", "differs from whisper.width 384"),
        ("name: x\nunet: {channels: [320, 640, 1280, 1290]}", "width 1290"),
        ("resolution: 256", "'name' is missing"),
        ("name: [", "not valid YAML"),
        ("- 1", "expected named values, found list"),
    ],
)
def test_bad_descriptions_are_refused_in_words(text, said):
    with pytest.raises(UsageError, match=said):
        config.parse(text, "given")


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"no preset '2\.0'; known presets are .*1\.5, 1\.6"):
        config.preset("2.0")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "steps 0: must be a whole number within 1..200"),
        ({"guidance": 11}, "guidance 11"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"seed": "luck"}, "seed 'luck' is neither a whole number nor 'random'"),
        ({"seed": -1}, "seed -1"),
        ({"scheduler": "euler"}, "choose one of ddim, dpm"),
        ({"face": "0"}, "numbered from 1"),
        ({"face": "middle"}, "face 'middle' is none of largest, left, right"),
        ({"fps": "fast"}, "fps 'fast' is neither"),
        ({"fps": "0"}, "fps 0"),
        ({"codec": "vp9"}, "choose one of h264"),
        ({"cache": 0}, "cache 0"),
        ({"stepz": 3}, "unknown option 'stepz'; known options are"),
    ],
)
def test_bad_options_are_refused_in_words(values, said):
    with pytest.raises(UsageError, match=said):
        options(**values)


def test_defaults_are_the_published_ones():
    assert Options() == options(seed=1247, fps="source", face="largest")
    published = config.preset("1.6").defaults
    assert Options().sampling(published) == options(steps=20, guidance=1.5, scheduler="ddim").sampling(published) == (20, 1.5, "ddim")


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("source", None),
        ("25", 25),
        ("29.97", Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("12.5", Fraction(25, 2)),
        (60, 60),
    ],
)
def test_frame_rates(text, rate):
    assert read_fps(text) == rate


def test_faces_and_seeds():
    assert read_face("640,200") == (640.0, 200.0)
    assert read_face((1, 2)) == (1.0, 2.0)
    assert read_face("2") == 2
    drawn = {read_seed(s) for s in ("random", "0", 0, None)}
    assert len(drawn) == 4
    assert all(1 <= s < 2**32 for s in drawn)
    assert read_seed("7") == 7


@pytest.mark.parametrize("name", sorted(config.SYNCNETS))
def test_syncnet_descriptions_survive_yaml(name: str):
    net = config.SYNCNETS[name]
    assert config.parse_as(config.SyncNetConfig, config.dump(net), name) == net
