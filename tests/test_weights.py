"""Models by name and by folder: found, described, refused, converted, fetched. The networks are tiny and real, the hub is a server on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentsync import config as configs
from latentsync import weights
from latentsync.config import ModelConfig, UNetConfig
from latentsync.errors import OutputError, UsageError, WeightsError
from latentsync.hub import Progress
from latentsync.weights import PUBLISHED, Bundle, Registry, RemoteFile
from latentsync.weights.convert import converted
from latentsync.weights.places import digest_once, header, known_digest, remember_digest
from latentsync.weights.untrained import new

from .test_hub import VARIABLES, Server, serve

FOLDERS = ("LATENTSYNC_HOME", "LATENTSYNC_WEIGHTS_PATH", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights anywhere but in this test's folder, no variable of the outer world."""
    for name in (*VARIABLES, *FOLDERS):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    monkeypatch.setenv("LATENTSYNC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def server() -> Iterator[Server]:
    state, http = serve()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, only to be read."""
    return new("tiny", tmp_path_factory.mktemp("untrained") / "tiny model")


@pytest.fixture(scope="session")
def published(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in the files and layout of the published project."""
    folder = tmp_path_factory.mktemp("published") / "checkpoints"
    (folder / "whisper").mkdir(parents=True)
    (folder / "vae").mkdir()
    state = weights.resolve(tiny, need=()).state
    torch.save({"global_step": 7, "state_dict": {k: v.clone() for k, v in state("unet").items()}}, folder / "latentsync_unet.pt")
    speech = {k: v.clone() for k, v in state("whisper").items()}
    torch.save({"dims": {"n_mels": 80, "n_audio_state": 32}, "model_state_dict": speech}, folder / "whisper" / "tiny.pt")
    shutil.copy(tiny / "vae.safetensors", folder / "vae" / "diffusion_pytorch_model.safetensors")
    for name in ("face_landmarker.task", "yunet_n_dynamic.onnx"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def checkpoints(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "checkpoints"))


def describe(folder: Path, config: ModelConfig) -> None:
    (folder / "model.yaml").write_text(configs.dump(config))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# Importing


def test_importing_is_free() -> None:
    code = "import sys, latentsync.weights, latentsync.hub, latentsync.doctor; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "diffusers", "av", "cv2", "safetensors", "httpx"} & set(modules)


# Untrained models


def test_the_seed_decides_the_weights(tiny: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    again, other = new("tiny", tmp_path / "again"), new("tiny", tmp_path / "other", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    for role in ("unet", "whisper", "vae"):
        states = [weights.resolve(folder, need=()).state(role) for folder in (tiny, again, other)]
        assert equal(states[0], states[1])
        assert not equal(states[0], states[2])


def test_every_layer_takes_part(tiny: Path) -> None:
    zero = [k for role in ("unet", "whisper", "vae") for k, v in weights.resolve(tiny, need=()).state(role).items() if v.ndim > 1 and not v.any()]
    assert zero == []


def test_an_untrained_model_loads_and_hears(tiny: Path) -> None:
    from latentsync.models.load import load_state
    from latentsync.models.unet import UNet
    from latentsync.models.vae import make_vae
    from latentsync.speech.whisper import load_whisper

    files = weights.resolve(tiny, need=("unet", "whisper", "vae"))
    assert files.untrained
    assert files.config == configs.preset("tiny")
    unet = load_state(UNet(files.config.unet), files.state("unet"), "U-Net")
    load_state(make_vae(files.config.vae), files.state("vae"), "VAE")
    load_whisper(files.state("whisper"), files.config.whisper)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 13, 2, 16, 16, generator=generator)
    audio = torch.randn(2, 1, 2, 50, files.config.unet.audio_dim, generator=generator)
    with torch.no_grad():
        a, b = (unet(x, torch.tensor([500]), sound) for sound in audio)
    assert 0.05 < a.std() < 2
    assert (a - b).abs().mean() > 1e-3


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(OutputError, match="not an empty folder"):
        new("tiny", tmp_path / "mine")
    with pytest.raises(UsageError, match="no preset 'huge'"):
        new("huge", tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
    (tmp_path / "empty").mkdir()
    assert sorted(p.name for p in new("tiny", tmp_path / "empty").iterdir()) == [
        "model.yaml",
        "unet.safetensors",
        "vae.safetensors",
        "whisper.safetensors",
    ]
    assert os.stat(tmp_path / "empty" / "unet.safetensors").st_mode == os.stat(tmp_path / "empty" / "model.yaml").st_mode


# Names


def test_a_name_without_weights_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as e:
        weights.resolve("1.6")
    for part in ("latentsync models download 1.6", "5.07 GB", "5.49 GB in all", "face_landmarker.task", str(tmp_path / "home"), str(tmp_path / "hf")):
        assert part in str(e.value)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("1.0", WeightsError, "no published weights"),
        ("tiny", WeightsError, "models new tiny"),
        ("face", UsageError, "not a model"),
        ("2.0", UsageError, r"neither a model \(1.6, 1.5, demo\) nor a folder"),
    ],
)
def test_names_that_are_no_model(name: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        weights.resolve(name)


def test_a_file_is_no_model(tiny: Path) -> None:
    with pytest.raises(UsageError, match="is a file; give the folder"):
        weights.resolve(tiny / "unet.safetensors")


def test_the_registry_is_complete() -> None:
    for name, bundle in PUBLISHED.bundles.items():
        assert bundle.name == name
        assert not bundle.model or (name in configs.presets() and {f.role for f in PUBLISHED.of(name)} == {"unet", "whisper", "vae", *weights.FACE})
    for file in PUBLISHED.files.values():
        assert file.url.startswith("https://")
        assert file.size
        assert file.sha256
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.licence
        assert file.page
    assert len({f.path for f in PUBLISHED.files.values()}) == len(PUBLISHED.files)


def test_the_public_files_are_those_of_the_registry(public_weights: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    checked = 0
    for file in PUBLISHED.files.values():
        path = public_weights / Path(file.path).name
        if path.is_file():
            content = path.read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
            checked += 1
    assert checked >= 2
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", os.pathsep.join(["/nonexistent", str(public_weights)]))
    files = weights.resolve(tiny)
    assert files.path("yunet").parent == files.path("face_landmarker").parent == public_weights
    assert files.faces["yunet_n_640_640.onnx"] == files.path("yunet")


def test_the_tiny_autoencoder_in_two_files(public_weights: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    if not (public_weights / "taesd_encoder_bf16.safetensors").is_file():
        pytest.skip("no TAESD among the public weights")
    from latentsync.models.load import load_state
    from latentsync.models.vae import TinyVAE

    with pytest.raises(WeightsError, match="models download taesd"):
        weights.resolve(tiny, need=("taesd",))
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(public_weights))
    load_state(TinyVAE(), weights.resolve(tiny, need=("taesd",)).state("taesd"), "TAESD")


# Folders


def test_a_folder_without_face_files_names_the_command(tiny: Path) -> None:
    with pytest.raises(WeightsError, match=r"face_landmarker.task, 3.8 MB.*4.1 MB in all. Run: latentsync models download face"):
        weights.resolve(tiny)


def test_a_folder_that_lacks_its_own_files(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    (folder / "vae.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks files of its own model \(vae: vae.safetensors"):
        weights.resolve(folder)
    (folder / "unet.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no U-Net"):
        weights.resolve(folder)


def test_the_layout_of_the_published_project(checkpoints: Path, tiny: Path) -> None:
    describe(checkpoints, configs.preset("tiny"))
    files, ours = weights.resolve(checkpoints), weights.resolve(tiny, need=())
    assert not files.untrained
    assert set(files.faces) >= {"face_landmarker.task", "yunet_n_dynamic.onnx"}
    for role in ("unet", "whisper", "vae"):
        assert equal(files.state(role), ours.state(role))
    assert {p.name for p in checkpoints.rglob("*.safetensors")} == {
        "latentsync_unet.safetensors",
        "tiny.safetensors",
        "diffusion_pytorch_model.safetensors",
    }
    notes = header(checkpoints / "latentsync_unet.safetensors").notes
    assert notes["latentsync.source_sha256"] == hashlib.sha256((checkpoints / "latentsync_unet.pt").read_bytes()).hexdigest()
    # from now on the conversion does it, even where the description and the original are gone
    for name in ("latentsync_unet.pt", "whisper/tiny.pt", "model.yaml"):
        (checkpoints / name).unlink()
    again = weights.resolve(checkpoints)
    assert again.config == configs.preset("tiny")
    assert equal(again.state("unet"), ours.state("unet"))


def test_a_newer_original_is_converted_again(checkpoints: Path) -> None:
    describe(checkpoints, configs.preset("tiny"))
    first = weights.resolve(checkpoints).ready("unet")
    state = {k: v + 1 for k, v in weights.resolve(checkpoints).state("unet").items()}
    original = checkpoints / "latentsync_unet.pt"
    torch.save({"state_dict": state}, original)
    os.utime(original, ns=(first.stat().st_mtime_ns + 10**9,) * 2)
    files = weights.resolve(checkpoints)
    assert equal(files.state("unet"), state)


def test_an_undescribed_checkpoint_needs_its_resolution(checkpoints: Path) -> None:
    with pytest.raises(WeightsError) as e:
        weights.resolve(checkpoints)
    for part in ("resolution", f"Write {checkpoints / 'model.yaml'}", '`name: "1.6"`', "audio_dim: 32"):
        assert part in str(e.value)
    files = weights.resolve(checkpoints, resolution=128, need=("unet",))
    assert files.config.resolution == 128
    assert files.config.unet == configs.preset("tiny").unet


@pytest.mark.parametrize("name", ["a_unet_full_stage1_keys", "a_unet_full_stage2_keys", "a_unet_full_stage2_efficient_keys"])
def test_the_network_is_known_by_its_shapes(golden: Path, name: str) -> None:
    file = golden / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"no {file.name}")
    shapes = {key: tuple(shape) for key, (shape, _) in json.loads(file.read_text())["keys"].items()}
    motion = (
        "none"
        if not any("motion_modules" in k for k in shapes)
        else "all"
        if "motion_modules" in " ".join(k for k in shapes if k[0] == "d")
        else "decoder"
    )
    assert weights.deduce(shapes, "here") == UNetConfig(motion=motion)  # type: ignore[arg-type]


def test_another_network_is_refused(checkpoints: Path) -> None:
    torch.save({"state_dict": {"conv_in.bias": torch.zeros(3)}}, checkpoints / "latentsync_unet.pt")
    with pytest.raises(WeightsError, match="does not hold a LatentSync U-Net"):
        weights.resolve(checkpoints, resolution=256)


# Weights and resolution travel together


def test_a_wrong_pair_is_refused_by_the_notes_in_the_weights(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    describe(folder, replace(configs.preset("tiny"), name="mine", resolution=256))
    with pytest.raises(WeightsError, match=r"trained with 64 px faces \(model tiny\), but model mine asks for 256"):
        weights.resolve(folder)


def test_a_wrong_pair_is_refused_by_the_release_that_the_file_is(checkpoints: Path) -> None:
    content = (checkpoints / "latentsync_unet.pt").read_bytes()
    unet = replace(PUBLISHED.files["unet-1.6"], size=len(content), sha256=hashlib.sha256(content).hexdigest())
    registry = Registry(files={**PUBLISHED.files, "unet-1.6": unet}, bundles=PUBLISHED.bundles)
    assert weights.resolve(checkpoints, need=(), registry=registry).config == configs.preset("1.6")  # known without a description
    (checkpoints / "model.yaml").write_text('name: "1.5"\n')
    with pytest.raises(WeightsError, match=r"is the U-Net of release 1.6, trained with 512 px faces, but 1.5 asks for 256"):
        weights.resolve(checkpoints, need=(), registry=registry)
    with pytest.raises(WeightsError, match="makes 512 px faces, not 256"):
        (checkpoints / "model.yaml").unlink()
        weights.resolve(checkpoints, resolution=256, need=(), registry=registry)


def test_a_description_that_contradicts_its_name_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    (folder / "model.yaml").write_text('name: "1.6"\nresolution: 256\n')
    with pytest.raises(WeightsError, match=r"says model 1.6 with 256 px faces, but 1.6 was trained with 512"):
        weights.resolve(folder)


def test_a_bare_name_stands_for_the_whole_preset(checkpoints: Path) -> None:
    (checkpoints / "model.yaml").write_text('name: "1.6"\n')
    assert weights.resolve(checkpoints, need=()).config == configs.preset("1.6")


def test_another_variant_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    config = configs.preset("tiny")
    describe(folder, replace(config, unet=replace(config.unet, motion="none")))
    with pytest.raises(WeightsError, match="has motion all, but model tiny asks for none"):
        weights.resolve(folder)


# Damage


def test_a_cut_safetensors_file_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    file = folder / "unet.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"unet.safetensors is cut short"):
        weights.resolve(folder)
    file.write_bytes(b"{}")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.resolve(folder)


def test_a_digest_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    file, home = tmp_path / "x", tmp_path / "home"
    file.write_bytes(b"one")
    assert known_digest(file, home) is None
    assert digest_once(file, home) == known_digest(file, home) == hashlib.sha256(b"one").hexdigest()
    remember_digest(file, home, "f" * 64)
    assert digest_once(file, home) == "f" * 64  # taken from the record
    file.write_bytes(b"other")
    assert digest_once(file, home) == hashlib.sha256(b"other").hexdigest()


# Fetching a whole release from a mirror


@pytest.fixture
def release(server: Server, published: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A release named after the tiny preset, on the server under the addresses of a mirror."""
    monkeypatch.setenv("LATENTSYNC_MIRROR", server.url("/mirror"))
    files = {}
    for role, name, url in (
        ("unet", "latentsync_unet.pt", "https://huggingface.co/org/m/resolve/abc/latentsync_unet.pt"),
        ("whisper", "whisper/tiny.pt", "https://huggingface.co/org/m/resolve/abc/whisper/tiny.pt"),
        ("vae", "vae/diffusion_pytorch_model.safetensors", "https://huggingface.co/org/vae/resolve/abc/diffusion_pytorch_model.safetensors"),
        ("face_landmarker", "face_landmarker.task", "https://storage.example.org/face_landmarker.task"),
        ("yunet", "yunet_n_dynamic.onnx", "https://code.example.org/raw/yunet_n_dynamic.onnx"),
    ):
        content = (published / name).read_bytes()
        path = "/mirror" + (url.removeprefix("https://huggingface.co") if "huggingface" in url else url.removeprefix("https:/"))
        server.files[path] = content
        digest = hashlib.sha256(content).hexdigest()
        files[role] = RemoteFile(role=role, url=url, path=f"tiny/{name}", names=(name,), size=len(content), sha256=digest, licence="none")
    return Registry(files=files, bundles={"tiny": Bundle(name="tiny", summary="a test", files=tuple(files), model=True)})


UNET = "/mirror/org/m/resolve/abc/latentsync_unet.pt"


def states(registry: Registry) -> dict[str, str]:
    return {row.name: row.state for row in weights.available(registry=registry)}


def test_a_release_from_nothing_to_loaded(release: Registry, server: Server, tiny: Path) -> None:
    assert states(release)["tiny"] == "absent"
    with pytest.raises(WeightsError, match="models download tiny"):
        weights.resolve("tiny", registry=release)
    weights.download("tiny", only=("unet",), registry=release)
    assert states(release)["tiny"] == "partial"
    told: list[Progress] = []
    server.faults[UNET] = ["cut"]
    fetched = weights.download("tiny", registry=release, progress=told.append, pause=0)
    assert states(release)["tiny"] == "complete"
    assert told[0].state == "present"
    assert set(fetched) == set(release.files)
    files = weights.resolve("tiny", registry=release)
    for role in ("unet", "whisper", "vae"):
        assert equal(files.state(role), weights.resolve(tiny, need=()).state(role))
    asked = len(server.seen)
    weights.download("tiny", registry=release)
    assert len(server.seen) == asked
    shown = weights.info("tiny", registry=release)
    assert [f.state for f in shown.files] == ["verified"] * 5
    assert shown.files[0].tensors == 1244
    json.dumps(shown.plain())
    assert "1,244 tensors" in shown.text()


def test_a_release_whose_file_was_cut_and_damaged(release: Registry, server: Server) -> None:
    server.faults[UNET] = ["cut", "damaged"]  # the resumed rest comes damaged, so the whole is fetched once more
    weights.download("tiny", registry=release, pause=0)
    path = weights.resolve("tiny", registry=release).path("unet")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == release.files["unet"].sha256


def test_pruning_keeps_only_the_conversion(release: Registry, tmp_path: Path) -> None:
    weights.download("tiny", registry=release, prune=True)
    assert list((tmp_path / "home").rglob("*.pt")) == []
    assert states(release)["tiny"] == "complete"
    weights.resolve("tiny", registry=release).state("unet")
    assert weights.info("tiny", registry=release).files[0].state == "verified"


def test_a_file_swapped_after_download_is_refused(release: Registry) -> None:
    path = weights.download("tiny", registry=release)["unet"]
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged or another file: sha256"):
        weights.resolve("tiny", registry=release).ready("unet")
    info = weights.info("tiny", check=True, registry=release)
    assert info.files[0].state in ("differs", "missing")


def test_offline_finds_what_is_here_and_says_what_is_not(release: Registry, server: Server, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSYNC_OFFLINE", "1")
    with pytest.raises(WeightsError, match="LATENTSYNC_OFFLINE=1 forbids"):
        weights.download("tiny", registry=release)
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(published))
    assert set(weights.download("tiny", registry=release)) == set(release.files)
    assert weights.resolve("tiny", registry=release).path("unet") == published / "latentsync_unet.pt"
    assert server.seen == []


def test_the_hugging_face_cache_is_used_and_not_written(release: Registry, server: Server, published: Path, tmp_path: Path, tiny: Path) -> None:
    weights.download("tiny", only=("face_landmarker", "yunet"), registry=release)
    before = len(server.seen)
    for key in ("unet", "whisper", "vae"):
        repo, revision, name = release.files[key].repo or ("", "", "")
        base = tmp_path / "hf" / f"models--{repo.replace('/', '--')}"
        source = published / release.files[key].path.removeprefix("tiny/")
        blob = base / "blobs" / str(release.files[key].sha256)
        link = base / "snapshots" / (revision if key != "vae" else "other") / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, blob)
        link.symlink_to(blob)
    cache = sorted(tmp_path.joinpath("hf").rglob("*"))
    assert states(release)["tiny"] == "complete"
    files = weights.resolve("tiny", registry=release)
    assert equal(files.state("unet"), weights.resolve(tiny, need=()).state("unet"))
    assert sorted(tmp_path.joinpath("hf").rglob("*")) == cache
    assert files.ready("unet").parent == tmp_path / "home" / "converted"
    assert len(server.seen) == before


def test_download_as_lines(release: Registry) -> None:
    lines = list(weights.download_with_progress("tiny", registry=release))
    assert sum("done" in line for line in lines) == 5
    assert any("(100 %)" in line for line in lines)
    with pytest.raises(UsageError, match=r"nothing to download under '1.0'"):
        list(weights.download_with_progress("1.0"))


def test_leaving_the_lines_stops_the_download(release: Registry, server: Server, tmp_path: Path) -> None:
    server.slow = 0.05
    lines = weights.download_with_progress("tiny", registry=release, every=0.1)
    next(lines)
    lines.close()
    assert not list((tmp_path / "home").rglob("yunet*"))


# Conversion


CONVERT = """
import sys
from pathlib import Path
from latentsync import config
from latentsync.weights.convert import converted
print(converted(Path(sys.argv[1]), config.preset("tiny"), "unet", Path(sys.argv[2])))
"""


def test_two_processes_convert_one_file(checkpoints: Path, tmp_path: Path) -> None:
    original = checkpoints / "latentsync_unet.pt"
    command = [sys.executable, "-c", CONVERT, str(original), str(tmp_path / "home")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    said = {process.communicate(timeout=120)[0].strip() for process in both}
    made = checkpoints / "latentsync_unet.safetensors"
    assert said == {str(made)}
    assert header(made).tensors == 1244
    assert sorted(p.name for p in checkpoints.iterdir() if "unet" in p.name and "yunet" not in p.name) == [
        "latentsync_unet.pt",
        "latentsync_unet.safetensors",
    ]


def test_shared_and_transposed_tensors_survive(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base, "b": base[1:], "c": base.T, "d": base}, tmp_path / "x.pt")
    from latentsync.models.load import read_state

    made = converted(tmp_path / "x.pt", ModelConfig(name="x"), "vae", tmp_path / "home")
    assert equal(read_state(made), {"a": base, "b": base[1:], "c": base.T, "d": base})


def test_a_conversion_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    import signal

    from latentsync.weights.convert import save

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as good as a full disk
    try:
        with pytest.raises(OutputError, match="cannot write"):
            save({"x": torch.zeros(100_000)}, tmp_path / "x.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.glob("*x*")) == []


# Training


@pytest.fixture
def judges(server: Server) -> Registry:
    """The files of training, tiny, with a hub to fetch them from."""
    import io

    files = {}
    for role in weights.TRAINING:
        buffer = io.BytesIO()
        torch.save({"module" if role == "videomae" else "state_dict": {f"{role}.weight": torch.ones(2)}}, buffer)
        known, content = PUBLISHED.by_role(role)[0], buffer.getvalue()
        path = f"/{Path(known.path).name}"
        server.files[path] = content
        files[role] = replace(known, url=server.url(path), size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return Registry(files=files, bundles={"training": PUBLISHED.bundles["training"]})


def test_what_training_needs_is_named_and_fetched(judges: Registry, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as e:
        weights.training_state("syncnet", registry=judges)
    for part in ("SyncNet (losses.sync)", "stable_syncnet.pt", "latentsync models download training", str(tmp_path / "home"), str(tmp_path / "hf")):
        assert part in str(e.value)
    with pytest.raises(WeightsError, match=r"vit_g_hybrid_pt_1200e_ssv2_ft.pth \(2.02 GB\) is not here.*4.18 GB in all"):
        weights.training_state("videomae")
    weights.download("training", registry=judges)
    for role in weights.TRAINING:
        assert list(weights.training_state(role, registry=judges)) == [f"{role}.weight"]
    with pytest.raises(UsageError, match="they are syncnet, vgg16, lpips, videomae"):
        weights.training_state("unet")


def test_what_judges_footage_is_named_and_not_part_of_any_model(tiny: Path) -> None:
    with pytest.raises(WeightsError) as e:
        weights.judge_state("syncnet_v2", otherwise=", or do without")
    for part in ("judging footage needs SyncNet v2", "syncnet_v2.model (54.6 MB)", "models download judges (0.16 GB in all), or do without"):
        assert part in str(e.value).replace("\n", " ")
    with pytest.raises(WeightsError, match=r"HyperIQA, and koniq_pretrained.pkl \(0.11 GB\)"):
        weights.judge_state("hyperiqa")
    with pytest.raises(WeightsError, match=r"Inception-v3 \(FID\), and pt_inception-.*download evaluation \(0.70 GB in all\)"):
        weights.judge_file("inception")
    with pytest.raises(UsageError, match="they are syncnet_v2, hyperiqa, inception, i3d, silero_vad, vgg16, lpips"):
        weights.judge_state("unet")
    mine = tiny / "syncnet_v2.model"
    torch.save({"a": torch.ones(1)}, mine)
    assert list(weights.judge_state("syncnet_v2", path=tiny)) == list(weights.judge_state("syncnet_v2", path=mine)) == ["a"]
    with pytest.raises(WeightsError, match=r"is not the published i3d_torchscript.pt: its sha256 is"):
        weights.judge_file("i3d", path=mine, checked=True)
    assert not set(weights.resolve(tiny, need=()).files) & {*weights.JUDGES, *weights.EVALUATION}


def test_files_of_the_published_project_are_found_for_training(judges: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.download("training", registry=judges)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "auxiliary").mkdir(parents=True)
    for role, folder in (("syncnet", checkpoints), ("vgg16", checkpoints / "auxiliary"), ("videomae", checkpoints / "auxiliary")):
        file = weights.training_file(role, registry=judges)
        shutil.copy(file, folder / file.name)
    shutil.rmtree(tmp_path / "home")
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(checkpoints))
    assert weights.training_file("syncnet", registry=judges) == checkpoints / "stable_syncnet.pt"
    assert weights.training_file("vgg16", registry=judges).parent == checkpoints / "auxiliary"
    with pytest.raises(WeightsError, match=r"lpips_v0\.1_vgg\.pth"):
        weights.training_file("lpips", registry=judges)
    (checkpoints / "stable_syncnet.pt").write_bytes(b"another size")
    with pytest.raises(WeightsError, match=r"stable_syncnet\.pt"):
        weights.training_file("syncnet", registry=judges)


def test_a_network_of_ones_own_for_training(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "mine.pt")
    assert list(weights.training_state("syncnet", path=tmp_path / "mine.pt")) == ["a"]
    with pytest.raises(WeightsError, match=r"holds no file for SyncNet .*syncnet.safetensors, stable_syncnet.pt"):
        weights.training_file("syncnet", path=tmp_path)
    shutil.copy(tmp_path / "mine.pt", tmp_path / "stable_syncnet.pt")
    assert weights.training_file("syncnet", path=tmp_path) == tmp_path / "stable_syncnet.pt"
    with pytest.raises(WeightsError, match="there is no file or folder"):
        weights.training_file("syncnet", path=tmp_path / "none")


def test_models_do_not_hold_what_only_training_needs(judges: Registry, tiny: Path) -> None:
    weights.download("training", registry=judges)
    registry = Registry(files={**PUBLISHED.files, **judges.files}, bundles=PUBLISHED.bundles)
    assert not set(weights.resolve(tiny, need=(), registry=registry).files) & set(weights.TRAINING)
    assert states(registry)["training"] == "complete"


def test_the_heads_of_lpips_are_those_of_the_registry(public_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(public_weights))
    state = weights.training_state("lpips")
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate((64, 128, 256, 512, 512))
    }
