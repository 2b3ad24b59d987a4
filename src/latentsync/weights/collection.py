"""Model name or folder -> description and files; what is here, what is missing, and fetching it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latentsync import config as configs
from latentsync import hub
from latentsync.config import ModelConfig, UNetConfig, VAEConfig, WhisperConfig
from latentsync.errors import LatentSyncError, UsageError, WeightsError
from latentsync.hub import Progress, Report
from latentsync.weights import adapters, places, shipped
from latentsync.weights.convert import converted
from latentsync.weights.releases import EVALUATION, FACE, JUDGES, PUBLISHED, TRAINING, Registry, RemoteFile

if TYPE_CHECKING:
    import torch

DESCRIPTION = "model.yaml"
NETWORKS = ("unet", "whisper", "vae")
NEED = (*NETWORKS, *FACE)

# Names under which the files of one model folder are known, best first. The second half is how users of the published project have them.
IN_FOLDER: dict[str, tuple[str, ...]] = {
    "unet": ("unet.safetensors", "latentsync_unet.safetensors", "latentsync_unet.pt", "unet.pt"),
    "whisper": (
        "whisper.safetensors",
        "whisper/tiny.safetensors",
        "whisper/tiny.pt",
        "whisper/small.safetensors",
        "whisper/small.pt",
        "whisper.pt",
        "tiny.safetensors",
        "tiny.pt",
        "small.pt",
    ),
    "vae": (
        "vae.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
        "vae/sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
        "stabilityai/sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "sd-vae-ft-mse/diffusion_pytorch_model.bin",
    ),
    "face_landmarker": ("face_landmarker.task", "face/face_landmarker.task"),
    "yunet": ("yunet_n_dynamic.onnx", "face/yunet_n_dynamic.onnx", "yunet_n_640_640.onnx", "face/yunet_n_640_640.onnx"),
    "taesd": ("taesd.safetensors", "taesd/diffusion_pytorch_model.safetensors"),
    "tracker": ("tracker.safetensors",),
}
TAESD_HALVES = ("taesd_encoder", "taesd_decoder")  # the tiny autoencoder is also published as two files, in names of its own
WHISPER_BY_WIDTH = {384: WhisperConfig(), 768: WhisperConfig(width=768, heads=12, layers=12)}  # tiny and small


@dataclass(frozen=True)
class ModelFiles:
    """A model that is ready to load: its description and where each of its files lies."""

    config: ModelConfig
    files: Mapping[str, Path]  # by role: unet (an adapter's base), whisper, vae, face_landmarker, yunet; adapter, taesd, tracker where they are here
    folder: Path | None  # for a model given as a folder
    home: Path
    untrained: bool = False  # written by `new`: its pictures are noise
    registry: Registry = PUBLISHED
    base: ModelFiles | None = None  # for a folder with an adapter: the model whose U-Net it changes

    def path(self, role: str) -> Path:
        """The file of that role; WeightsError where it is optional and not here."""
        if role not in self.files:
            raise WeightsError(
                f"model {self.config.name} has no file for '{role}' here; run: latentsync models download {_bundle_with(role, self.registry)}"
            )
        return self.files[role]

    def has(self, role: str) -> bool:
        """Whether that role can be loaded."""
        tiny = role == "taesd" or (role == "vae" and self.config.vae.kind == "tiny")
        return role in self.files or (tiny and all(half in self.files for half in TAESD_HALVES))

    @property
    def faces(self) -> dict[str, Path]:
        """The face files by published name, as `face.detect.make_backend` asks for them."""
        found = {Path(f.path).name: self.files[f.role] for f in self.registry.files.values() if f.role in FACE and f.role in self.files}
        if "tracker" in self.files:
            found |= {
                self.files["tracker"].with_suffix(suffix).name: self.files["tracker"].with_suffix(suffix) for suffix in (".safetensors", ".yaml")
            }
        return found

    def ready(self, role: str, report: Report | None = None) -> Path:
        """The file of a network in the form that loads memory-mapped; a downloaded pickle is converted once, here."""
        path = self.path(role)
        expected = None
        if self.folder is None:
            expected = next((f.sha256 for f in _published(self.config.name, self.registry) if f.role == role), None)
        elif role == "unet":
            _check_release(path, self.config, self.registry, places.digest_once(path, self.home) if not places.is_converted(path) else None)
        return converted(path, self.config, role, self.home, expected=expected, report=report)

    def state(self, role: str, report: Report | None = None) -> dict[str, torch.Tensor]:
        """State dict of a network, by published key, on the CPU, memory-mapped."""
        from latentsync.models.load import read_state

        if role == "unet" and self.base is not None and self.folder is not None:
            return adapters.adapted(self.base.state("unet", report), self.folder)
        if role not in self.files and self.has(role):
            from latentsync.models.vae import join_taesd

            encoder, decoder = (read_state(self.files[half]) for half in TAESD_HALVES)
            return join_taesd(encoder, decoder)
        return read_state(self.ready(role, report))


def resolve(
    model: str | Path,
    *,
    home: str | Path | None = None,
    resolution: int | None = None,
    need: Collection[str] | Callable[[ModelConfig], Collection[str]] = NEED,
    registry: Registry = PUBLISHED,
) -> ModelFiles:
    """Find everything that a model needs, without network use.

    model: a name (`1.6`) or a folder. home: where downloads are kept (default: LATENTSYNC_HOME or the platform's cache). resolution: of the
    aligned face in pixels, for a folder that does not say it. need: roles that must be there, or what tells them from the description (see
    `roles`); others are taken along where found.
    Raises WeightsError naming what is missing, its size, the command that fetches it and the folders searched.
    """
    root = places.home_folder(home)
    if isinstance(model, str) and model in registry.bundles and registry.bundles[model].model:
        found = _by_name(model, root, registry)
    elif model == shipped.NAME:
        found = _shipped(root, registry)
    elif Path(model).expanduser().is_dir():
        found = _by_folder(Path(model).expanduser(), root, resolution, registry)
    else:
        raise _unknown(model, registry)
    if resolution is not None and resolution != found.config.resolution:
        raise WeightsError(f"model {model} makes {found.config.resolution} px faces, not {resolution}: weights and resolution belong together")
    missing = [role for role in (need(found.config) if callable(need) else need) if not found.has(role)]
    if missing:
        raise _missing(found, missing)
    return found


def roles(*, preview: bool = False, face_backend: str | None = None, faces: bool = True) -> Callable[[ModelConfig], tuple[str, ...]]:
    """What a job needs of a model, to be given to `resolve`: previews decode with the tiny autoencoder, `faces` is whether they have to be found,
    and by what: by the model's own finder where face_backend is None."""

    def of(config: ModelConfig) -> tuple[str, ...]:
        finders = {"mediapipe": FACE, "demo": ("tracker",)}  # the models of other backends come from elsewhere
        finder = finders.get(face_backend or config.defaults.face_backend, ()) if faces else ()
        return (*NETWORKS, *finder, *(("taesd",) if preview else ()))

    return of


def _models(registry: Registry) -> list[str]:
    return [name for name, bundle in registry.bundles.items() if bundle.model]


def _unknown(model: str | Path, registry: Registry) -> LatentSyncError:
    names = ", ".join([*_models(registry), shipped.NAME])
    if isinstance(model, str) and model in configs.presets():
        return WeightsError(
            f"there are no published weights for '{model}'; use {names}, or a folder with weights of your own "
            f"(`latentsync models new {model} FOLDER` writes an untrained one for tests)"
        )
    if isinstance(model, str) and model in registry.bundles:
        return UsageError(f"'{model}' is not a model but files that models use; models are {names}")
    if Path(model).is_file():
        return UsageError(f"{model} is a file; give the folder that holds it")
    return UsageError(f"'{model}' is neither a model ({names}) nor a folder")


def _by_name(name: str, home: Path, registry: Registry) -> ModelFiles:
    config = configs.preset(name)
    files = _standard(config, home, registry)
    for remote in registry.of(name):
        path = _locate_equal(remote, home, registry)
        if path is not None:
            files[remote.role] = path
    if "unet" in files:
        _check_header(files["unet"], config)
    return ModelFiles(config, files, None, home, registry=registry)


def _shipped(home: Path, registry: Registry) -> ModelFiles:
    """The model that comes with the package."""
    lacking = shipped.lacking()
    if lacking:
        raise shipped.absent(lacking)
    found = _by_folder(shipped.folder(), home, None, registry)
    return replace(found, files={**found.files, **shipped.here()})


def _by_folder(folder: Path, home: Path, resolution: int | None, registry: Registry, within: tuple[Path, ...] = ()) -> ModelFiles:
    own = {role: path for role in IN_FOLDER for path in [_first(folder, IN_FOLDER[role])] if path is not None}
    if "unet" not in own and adapters.is_adapter(folder):
        return _by_adapter(folder, own, home, resolution, registry, (*within, folder.resolve()))
    if "unet" not in own:
        expected = ", ".join((*IN_FOLDER["unet"], adapters.ADAPTER))
        raise WeightsError(f"{folder} holds no U-Net; one of these is expected: {expected}")
    config = _describe(folder, own["unet"], home, resolution, registry)
    _check_header(own["unet"], config)
    if not places.is_converted(own["unet"]) and _may_be_published(own["unet"], registry):
        _check_release(own["unet"], config, registry, places.digest_once(own["unet"], home))
    untrained = places.is_converted(own["unet"]) and places.metadata(own["unet"]).get("latentsync.untrained") is not None
    files = {**_standard(config, home, registry), **own}
    return ModelFiles(config, files, folder, home, untrained, registry)


def _by_adapter(folder: Path, own: dict[str, Path], home: Path, resolution: int | None, registry: Registry, within: tuple[Path, ...]) -> ModelFiles:
    """A folder with an adapter instead of a U-Net. `within`: the adapter folders on the way to this one, itself included."""
    said = adapters.base_of(folder)
    place = folder / Path(said).expanduser()
    if said in _models(registry):
        base = _by_name(said, home, registry)
        if "unet" not in base.files:
            raise WeightsError(f"{folder} is an adapter of model {said}: {_missing(base, ['unet'])}")
    elif place.is_dir() and place.resolve() not in within:
        base = _by_folder(place, home, resolution, registry, within)
    elif place.is_file():
        config = _describe(folder, place, home, resolution, registry)
        _check_header(place, config)
        base = ModelFiles(config, {**_standard(config, home, registry), "unet": place}, place.parent, home, registry=registry)
    else:
        names = ", ".join(_models(registry))
        raise WeightsError(
            f"{folder / adapters.ADAPTER_CONFIG} says that the adapter's base is '{said}', which is neither a model ({names}) nor another folder or "
            f"file that is here; correct its {adapters.BASE}"
        )
    config = replace(base.config, name=folder.resolve().name)
    if (folder / DESCRIPTION).is_file():
        config = _describe(folder, base.files["unet"], home, resolution, registry)
        if (config.unet, config.resolution) != (base.config.unet, base.config.resolution):
            raise WeightsError(
                f"{folder / DESCRIPTION} describes another U-Net or resolution than the adapter's base '{said}' has; correct it, or remove it"
            )
    files = {**_standard(config, home, registry), **base.files, **own, "adapter": folder / adapters.ADAPTER}
    return ModelFiles(config, files, folder, home, base.untrained, registry, base)


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these files that is there; a conversion counts only while its original is not newer."""
    for name in names:
        path = folder / name
        if path.is_file() and not (places.is_converted(path) and _outdated(path)):
            return path
    return None


def _outdated(made: Path) -> bool:
    originals = (made.with_suffix(suffix) for suffix in (".pt", ".bin"))
    return any(p.is_file() and p.stat().st_mtime_ns > made.stat().st_mtime_ns for p in originals)


def _standard(config: ModelConfig, home: Path, registry: Registry) -> dict[str, Path]:
    """Files that models share, where this model is one that uses them and they are here."""
    fits = {"whisper": config.whisper == WhisperConfig(), "vae": config.vae == VAEConfig()}
    out: dict[str, Path] = {}
    for remote in registry.files.values():
        if remote.role not in ("unet", *TRAINING, *JUDGES, *EVALUATION, *out) and fits.get(remote.role, True):
            path = _locate(remote, home)
            if path is not None:
                out[remote.role] = path
    if "taesd" not in out:
        for half in TAESD_HALVES:
            names = (f"{half}.safetensors", f"{half}_bf16.safetensors", f"taesd/{half}.safetensors")
            path = next((p for folder in places.search_folders(home) for p in [_first(folder, names)] if p is not None), None)
            if path is not None:
                out[half] = path
    tracker = shipped.file("tracker")
    if tracker is not None:
        out["tracker"] = tracker
    if config.vae.kind == "tiny" and "taesd" in out:
        out["vae"] = out["taesd"]
    return out


def _locate(remote: RemoteFile, home: Path) -> Path | None:
    for path in places.candidates(remote, home):
        if places.matches(path, remote):
            known = None if places.is_converted(path) else places.known_digest(path, home)
            if known is None or remote.sha256 is None or known == remote.sha256:
                return path
    return None


def _locate_equal(remote: RemoteFile, home: Path, registry: Registry) -> Path | None:
    """The file, or another one that does the same work (U-Nets never do)."""
    equals = [remote] if remote.role == "unet" else [remote, *registry.by_role(remote.role)]
    return next((path for path in (_locate(f, home) for f in equals) if path is not None), None)


# What a folder's model is


def _describe(folder: Path, unet: Path, home: Path, resolution: int | None, registry: Registry) -> ModelConfig:
    """The description of a folder's model: model.yaml, else what the weights say of themselves, else the release they are."""
    file = folder / DESCRIPTION
    if file.is_file():
        config = configs.load(file)
        if config.name in configs.presets():
            known = configs.preset(config.name)
            if _says_only_its_name(file):
                config = known
            elif config.name in _models(registry) and config.resolution != known.resolution:
                raise WeightsError(
                    f"{file} says model {config.name} with {config.resolution} px faces, but {config.name} was trained with {known.resolution}"
                )
        return config
    if places.is_converted(unet):
        text = places.metadata(unet).get("latentsync.config")
        if text:
            return configs.parse(text, f"the notes in {unet}")
    elif _may_be_published(unet, registry):
        name = registry.by_sha256(places.digest_once(unet, home))
        if name is not None:
            return configs.preset(name)
    deduced = deduce(_shapes(unet), str(unet))
    whisper = WHISPER_BY_WIDTH.get(deduced.audio_dim, WhisperConfig(width=deduced.audio_dim))
    config = ModelConfig(name=folder.resolve().name, resolution=resolution or 256, unet=deduced, whisper=whisper)
    if resolution is None:
        text = configs.dump(config) if config.resolution != 256 else configs.dump(config) + "resolution: 256\n"
        raise WeightsError(
            f"{unet} is not a file of a known release, and weights do not tell the face resolution that they were trained with. Write {file} with a "
            f'line `name: "1.6"` (512 px) or `name: "1.5"` (256 px) if it is one of these, or for a model of your own (with 256 or 512):\n{text}'
        )
    return config


def _says_only_its_name(file: Path) -> bool:
    """`name: "1.6"` alone stands for the whole preset."""
    import yaml

    return set(yaml.safe_load(file.read_text(encoding="utf-8"))) <= {"name", "summary"}


def _may_be_published(unet: Path, registry: Registry) -> bool:
    """Whether reading all of a file for its digest can be worth the time."""
    return unet.stat().st_size in {f.size for f in registry.by_role("unet")}


def _shapes(unet: Path) -> Mapping[str, tuple[int, ...]]:
    if places.is_converted(unet):
        return places.header(unet).shapes
    from latentsync.models.load import read_state

    return {key: tuple(tensor.shape) for key, tensor in read_state(unet).items()}


def deduce(shapes: Mapping[str, tuple[int, ...]], where: str) -> UNetConfig:
    """The U-Net that has tensors of these shapes. Heads and groups leave no trace in shapes; they are taken to be the published ones."""
    try:
        conv_in = shapes["conv_in.weight"]
        blocks = sorted({int(k.split(".")[1]) for k in shapes if k.startswith("down_blocks.")})
        channels = tuple(shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in blocks)
        audio = next(shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight"))
        out = shapes["conv_out.weight"][0]
    except (KeyError, StopIteration, ValueError, IndexError) as e:
        raise WeightsError(f"{where} does not hold a LatentSync U-Net ({e!r} not found)") from e
    moving = [k for k in shapes if ".motion_modules." in k]
    motion: Literal["none", "decoder", "all"] = "none" if not moving else "all" if any(k.startswith("down_blocks.") for k in moving) else "decoder"
    layers = len({k.split(".")[3] for k in shapes if k.startswith("down_blocks.0.resnets.")})
    positions = next((shape[-2] for key, shape in shapes.items() if key.endswith("pos_encoder.pe")), UNetConfig().motion_positions)
    return UNetConfig(
        in_channels=conv_in[1],
        out_channels=out,
        channels=channels,
        layers_per_block=layers,
        audio_dim=audio,
        motion=motion,
        motion_positions=positions,
    )


def _check_header(unet: Path, config: ModelConfig) -> None:
    """Refuse a U-Net that says of itself, or shows by its tensors, that it belongs to another model. Reads a header only."""
    if not places.is_converted(unet):
        return
    head = places.header(unet)
    stated = head.notes.get("latentsync.resolution")
    if stated is not None and stated != str(config.resolution):
        raise WeightsError(
            f"{unet} was trained with {stated} px faces (model {head.notes.get('latentsync.model', 'unknown')}), but model {config.name} asks for "
            f"{config.resolution}: weights and resolution belong together; correct {DESCRIPTION} or take the right file"
        )
    found = deduce(head.shapes, str(unet))
    for name in ("motion", "audio_dim", "in_channels", "channels", "layers_per_block"):
        if getattr(found, name) != getattr(config.unet, name):
            raise WeightsError(
                f"{unet} has {name} {getattr(found, name)}, but model {config.name} asks for {getattr(config.unet, name)}; correct {DESCRIPTION}"
            )


def _check_release(unet: Path, config: ModelConfig, registry: Registry, digest: str | None) -> None:
    """Refuse the U-Net of a known release under a description with another resolution."""
    name = registry.by_sha256(digest) if digest else None
    if name is None:
        return
    known = configs.preset(name)
    if known.resolution != config.resolution:
        raise WeightsError(
            f"{unet} is the U-Net of release {name}, trained with {known.resolution} px faces, but {config.name} asks for {config.resolution}: "
            "weights and resolution belong together"
        )


# What is missing


def gigabytes(size: int | None) -> str:
    """A size for people: 5.07 GB, 3.8 MB; '?' where it is not known."""
    if size is None:
        return "?"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _published(name: str, registry: Registry) -> tuple[RemoteFile, ...]:
    return registry.of(name) if name in registry.bundles else ()


def _bundle_with(role: str, registry: Registry, roles: Collection[str] = ()) -> str:
    """The smallest bundle that has these roles."""
    wanted = set(roles) | {role}
    fitting = [b for b in registry.bundles.values() if wanted <= {f.role for f in registry.of(b.name)}]
    return min(fitting, key=lambda b: len(b.files)).name if fitting else next(iter(registry.bundles), "NAME")


def _missing(found: ModelFiles, roles: list[str]) -> WeightsError:
    registry, config = found.registry, found.config
    if "tracker" in roles:
        return shipped.absent(["tracker"])
    searched = ([found.folder] if found.folder else []) + places.search_folders(found.home) + [places.hub_cache()]
    looked = "looked in: " + ", ".join(map(str, searched))
    own = [r for r in roles if (r == "whisper" and config.whisper != WhisperConfig()) or (r == "vae" and config.vae != VAEConfig())]
    if found.folder is not None and own:
        names = "; ".join(f"{r}: {' or '.join(IN_FOLDER[r][:3])}" for r in own)
        return WeightsError(f"{found.folder} lacks files of its own model ({names}); {looked}")
    source = registry.of(config.name) if found.folder is None and config.name in registry.bundles else tuple(registry.files.values())
    remotes = [next((f for f in source if f.role == role), None) for role in roles]
    parts = ", ".join(f"{role} ({Path(f.path).name}, {gigabytes(f.size)})" if f else role for f, role in zip(remotes, roles, strict=True))
    total = gigabytes(sum(f.size or 0 for f in remotes if f))
    name = config.name if found.folder is None else _bundle_with(roles[0], registry, roles)
    other = ""
    if found.folder is None and not shipped.lacking():
        other = f"\nOr try {shipped.OFFER}"
    elif set(roles) <= set(FACE) and shipped.file("tracker") is not None:
        other = "\nOr pass --face-backend demo, a small face finder that comes with the package"
    return WeightsError(
        f"model {config.name} is not complete here; missing: {parts}, {total} in all. Run: latentsync models download {name}{other}\n{looked}"
    )


# Listing, describing, fetching


@dataclass(frozen=True)
class ModelRow:
    """One line of `models list`."""

    name: str
    summary: str
    resolution: int | None  # px; None for files that are no model
    size: int | None  # bytes of the whole download
    state: Literal["complete", "partial", "absent", "untrained only", "shipped"]
    where: Path | None  # of its first file
    missing: int = 0  # bytes still to fetch
    downloadable: bool = True

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "where": str(self.where) if self.where else None}

    def line(self) -> str:
        """For people."""
        pixels = f"{self.resolution} px" if self.resolution else ""
        state: str = f"partial, {gigabytes(self.missing)} missing" if self.state == "partial" else self.state
        if self.state == "shipped":
            state = "shipped with the package"
        place = f"  {self.where.parent}" if self.where else ""
        return f"{self.name:<10} {pixels:<7} {gigabytes(self.size) if self.size else '-':<9} {state:<16} {self.summary}{place}"


def available(*, home: str | Path | None = None, registry: Registry = PUBLISHED) -> list[ModelRow]:
    """Every name that can be asked for: what can be downloaded and how much of it is here, the model that comes with the package, then the presets
    without published weights."""
    root = places.home_folder(home)
    rows = []
    for name, bundle in registry.bundles.items():
        remotes = registry.of(name)
        found = [_locate_equal(f, root, registry) for f in remotes]
        missing = sum(f.size or 0 for f, path in zip(remotes, found, strict=True) if path is None)
        # files shared with other models do not make a model present
        state: Literal["complete", "partial", "absent"] = "complete" if all(found) else "partial" if found[0] is not None else "absent"
        resolution = configs.preset(name).resolution if bundle.model else None
        rows.append(ModelRow(name, bundle.summary, resolution, sum(f.size or 0 for f in remotes), state, found[0], missing))
    rows.append(_shipped_row(root, registry))
    for name in configs.presets():
        if name not in registry.bundles and name != shipped.NAME:
            preset = configs.preset(name)
            rows.append(ModelRow(name, preset.summary, preset.resolution, None, "untrained only", None, downloadable=False))
    return rows


def _shipped_row(home: Path, registry: Registry) -> ModelRow:
    summary = "small, offline, trained on rendered heads"
    if shipped.lacking():
        return ModelRow(shipped.NAME, summary, None, None, "absent", None, downloadable=False)
    found = _shipped(home, registry)
    size = sum(path.stat().st_size for path in shipped.here().values())
    return ModelRow(shipped.NAME, found.config.summary or summary, found.config.resolution, size, "shipped", found.files["unet"], downloadable=False)


@dataclass(frozen=True)
class FileInfo:
    """One file of a model."""

    role: str
    path: Path | None  # None: not here
    size: int | None
    sha256: str | None  # of the file here, where it is known or was asked for
    state: Literal["missing", "here", "verified", "differs"]
    tensors: int | None = None
    parameters: int | None = None
    source: str = ""
    licence: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "path": str(self.path) if self.path else None}


@dataclass(frozen=True)
class ModelInfo:
    """What `models info` shows."""

    name: str
    config: ModelConfig
    files: tuple[FileInfo, ...]
    untrained: bool = False

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "untrained": self.untrained,
            "resolution": self.config.resolution,
            "window": self.config.window,
            "config": configs.plain(self.config),
            "files": [f.plain() for f in self.files],
        }

    def text(self) -> str:
        """For people."""
        c = self.config
        lines = [
            f"{self.name}: {c.summary}" + (" (untrained: its pictures are noise)" if self.untrained else ""),
            f"{c.resolution} px faces, windows of {c.window} frames, motion modules: {c.unet.motion}, audio width {c.unet.audio_dim}",
        ]
        for f in self.files:
            counts = f", {f.tensors:,} tensors, {f.parameters:,} numbers" if f.tensors is not None else ""
            lines.append(f"{f.role:<16}{f.state:<9} {gigabytes(f.size):<9} {f.path or f.source}{counts}" + (f" [{f.licence}]" if f.licence else ""))
        return "\n".join(lines)


def info(model: str | Path, *, home: str | Path | None = None, check: bool = False, registry: Registry = PUBLISHED) -> ModelInfo:
    """What a model is and what it is made of, complete or not. check: read every file through and compare its sha256 with the known one."""
    found = resolve(model, home=home, need=(), registry=registry)
    published = _published(found.config.name, registry) if found.folder is None else ()
    needed = roles()(found.config)
    files = []
    extra = (role for role, path in found.files.items() if path != shipped.file("tracker"))  # every model may use the package's own, few do
    for role in dict.fromkeys([*(f.role for f in published), *needed, *extra]):
        remote = next((f for f in (*published, *registry.by_role(role)) if f.role == role), None)
        path = found.files.get(role)
        if path is None:
            known = remote if remote in published or role != "unet" else None
            files.append(
                FileInfo(
                    role,
                    None,
                    known.size if known else None,
                    None,
                    "missing",
                    source=known.url if known else "",
                    licence=known.licence if known else "",
                )
            )
            continue
        files.append(_inspect(role, path, remote, found, check))
    return ModelInfo(found.config.name, found.config, tuple(files), found.untrained)


def _inspect(role: str, path: Path, remote: RemoteFile | None, found: ModelFiles, check: bool) -> FileInfo:
    digest = places.digest_once(path, found.home) if check else places.known_digest(path, found.home)
    tensors = parameters = None
    stated = digest
    if places.is_converted(path):
        head = places.header(path)
        tensors, parameters = head.tensors, head.elements
        stated = head.notes.get("latentsync.source_sha256", digest)
    state: Literal["here", "verified", "differs"] = "here"
    if stated is not None and remote is not None and remote.sha256 is not None:
        same = any(f.sha256 == stated for f in found.registry.by_role(role))
        state = "verified" if same else "here" if found.folder is not None else "differs"  # a folder may well hold other weights than the published
    licence = remote.licence if remote is not None and state == "verified" else ""
    return FileInfo(role, path, path.stat().st_size, digest, state, tensors, parameters, remote.url if remote else "", licence)


def download(
    name: str,
    *,
    home: str | Path | None = None,
    progress: Report | None = None,
    only: Collection[str] | None = None,
    prune: bool = False,
    registry: Registry = PUBLISHED,
    pause: float = 1.0,
) -> dict[str, Path]:
    """Fetch what is not here yet of a bundle; returns its files by role.

    only: roles to fetch. prune: convert pickles at once and delete them (halves the disk space). pause: see `hub.fetch`.
    """
    if name not in registry.bundles:
        note = " (a preset without published weights)" if name in configs.presets() else ""
        raise UsageError(f"there is nothing to download under '{name}'{note}; names are {', '.join(registry.bundles)}")
    root = places.home_folder(home)
    out: dict[str, Path] = {}
    for remote in registry.of(name):
        if only is not None and remote.role not in only:
            continue
        path = _locate_equal(remote, root, registry)
        if path is not None:
            if progress is not None:
                progress(Progress(path.name, "present", path.stat().st_size, path.stat().st_size, str(path)))
        else:
            path = hub.fetch(remote.url, root / remote.path, size=remote.size, sha256=remote.sha256, report=progress, pause=pause)
            if remote.sha256 is not None:
                places.remember_digest(path, root, remote.sha256)
        if prune and remote.role in NETWORKS and not places.is_converted(path) and root in path.parents:
            path = _pruned(path, remote, name, root, registry, progress)
        out[remote.role] = path
    return out


def _pruned(path: Path, remote: RemoteFile, name: str, home: Path, registry: Registry, progress: Report | None) -> Path:
    config = configs.preset(name) if registry.bundles[name].model else ModelConfig(name=name)
    made = converted(path, config, remote.role, home, expected=remote.sha256, report=progress)
    if made != path:
        path.unlink()
    return made


def download_with_progress(
    name: str, *, home: str | Path | None = None, prune: bool = False, registry: Registry = PUBLISHED, every: float = 5.0
) -> Iterator[str]:
    """The same as `download`, as lines to print while it goes on: one at the start and the end of each file, one about every `every` percent."""
    lines: queue.Queue[str | BaseException | None] = queue.Queue()
    stop = threading.Event()

    def work() -> None:
        try:
            download(name, home=home, progress=_narrator(lines.put, stop, every), prune=prune, registry=registry)
        except (LatentSyncError, OSError, _Stopped) as e:
            lines.put(e)
        finally:
            lines.put(None)

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    try:
        while (line := lines.get()) is not None:
            if isinstance(line, BaseException):
                raise line
            yield line
    finally:
        stop.set()
        thread.join(5.0)


class _Stopped(Exception):
    """Whoever reads the lines has left."""


def _narrator(say: Callable[[str], None], stop: threading.Event, every: float) -> Report:
    last: dict[str, float] = {}

    def report(p: Progress) -> None:
        if stop.is_set():
            raise _Stopped
        if p.state == "downloading":
            percent = 100 * p.done / p.total if p.total else 0.0
            if percent - last.get(p.file, -100.0) < every:
                return
            last[p.file] = percent
            say(f"{p.file}: {gigabytes(p.done)} of {gigabytes(p.total)} ({percent:.0f} %)")
        else:
            say(f"{p.file}: {p.state}" + (f" ({p.note})" if p.note else ""))

    return report
