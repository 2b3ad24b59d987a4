"""What a training run is, as frozen and strict data: presets, YAML files, and `key=value` on top.

A configuration is layered: the defaults here, then a preset (`presets/KIND/*.yaml`, which hold only what differs), then a file, then the values
of the command line. The published project's own YAML files are understood as well (`published`). Figures are those of the paper (arXiv 2412.09262)
and of the published configurations.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

from latentsync.config import SYNCNETS, FaceNetConfig, SyncNetConfig, VAEConfig, WhisperConfig, build, nearest
from latentsync.errors import UsageError
from latentsync.options import MAX_SEED

Kind = Literal["unet", "syncnet", "autoencoder", "speech", "tracker"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The clips: aligned faces with sound, see `docs/train.md`."""

    train: str = ""  # a folder of clips, or a list of files (`latentsync prepare list` writes one)
    validation: str = ""  # the same; empty: every 50th clip of `train` is held out
    fps: int = 25  # frames a second that the network sees
    size: Literal["exact", "resize"] = "exact"  # clips of another size than the training's: refuse them, or resize them
    on_bad: Literal["error", "skip"] = "error"  # clips that cannot be used: stop, or leave them out and name them
    workers: int = 2  # processes that read clips, for each process that trains; 0: none of their own
    cache: str = ""  # folder of features that are computed once; empty: `cache` in run.out


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) and the way its rate goes."""

    learning_rate: float = 1e-5
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0  # longer gradients are shortened to this
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: to zero at run.steps
    warmup: int = 0  # steps over which the rate rises from zero


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, how large, where, and how often something is written."""

    out: str = ""  # folder of checkpoints, charts and logs; the same folder again goes on from its last checkpoint
    seed: int = 1247
    steps: int = 10_000_000  # of the optimizer; as published, so many means: until stopped
    batch: int = 1  # samples at a time, in each process
    accumulation: int = 1  # batches for one step of the optimizer
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the arithmetic; the trained weights themselves are float32
    gradient_checkpointing: bool = True  # compute activations again instead of keeping them: much less memory, about a third more time
    compile: bool = False  # minutes at the start, faster after
    ema: float = 0.0  # decay of the running mean of the weights, such as 0.9999; 0: none
    log_every: int = 10  # steps
    checkpoint_every: int = 1000  # steps
    keep: int = 3  # newest checkpoints that stay
    keep_every: int = 0  # checkpoints at every so many steps that stay for good; 0: none
    validate_every: int = 1000  # steps; 0: only at the end
    validation_clips: int = 32  # held-out clips on which losses are measured
    validation_videos: int = 2  # held-out clips of which videos are made
    resume: str = "auto"  # auto: from the last checkpoint in `out`; never; or a checkpoint's folder


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How much each term of the U-Net's loss counts; what counts nothing is not computed."""

    recon: float = 1.0  # squared error of the predicted noise
    sync: float = 0.0  # SyncNet
    lpips: float = 0.0  # LPIPS on the lower half of the face
    trepa: float = 0.0  # temporal representation alignment


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How the U-Net's samples are drawn and weighed. The defaults are the published way."""

    latents: Literal["each step", "once"] = "each step"  # encode the pictures at every step, or once before the first and keep them in data.cache
    late: float = 0.0  # share of the samples whose timestep is drawn from the noisier half only
    shared_noise: float = 0.0  # share of the windows in which all frames have one noise, as they have in use
    audio_dropout: float = 0.0  # share of the windows that hear nothing, for guidance
    fixed_reference: float = 0.0  # share of the windows whose references are one frame, repeated, as in use where the model's reference is fixed
    flip: bool = False  # mirror half of the windows
    kept: float = 1.0  # what an error outside of the mask counts, where inside it counts 1
    mouth: float = 1.0  # what an error around the mouth counts


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) instead of training the weights themselves: for one speaker, from minutes of footage."""

    rank: int = 0  # 0: no adapters
    alpha: int = 0  # 0: the same as rank
    patterns: tuple[str, ...] = ("attn1.", "attn2.")  # layers whose name contains any of these
    save: Literal["merged", "separate"] = "merged"  # write a whole U-Net, or the adapters alone


@dataclass(frozen=True, kw_only=True)
class UNetTrain:
    """Training of the denoising U-Net."""

    kind: Literal["unet"] = "unet"
    summary: str = ""
    model: str = "1.5"  # what is trained: a preset (1.0, 1.5, 1.6, efficient, tiny) or a model.yaml
    resolution: int | None = None  # of the aligned face, pixels; empty: the model's
    start: str = ""  # weights to begin with: 1.5, 1.6, a folder, a file (Stable Diffusion 1.5's U-Net too); empty: random ones
    vae: str = ""  # autoencoder's file; empty: the published one
    whisper: str = ""  # speech encoder's file; empty: the published one
    syncnet: str = ""  # for losses.sync: a checkpoint of `train syncnet`, or a file; empty: the published one
    videomae: Literal["small", "base", "large", "huge", "giant"] = "giant"  # for losses.trepa: its size
    videomae_file: str = ""  # its weights; empty: the published ones, which are giant
    trainable: tuple[str, ...] = ()  # parameters whose name contains any of these are trained; empty: all
    noise_alpha: float = 1.0  # mixed noise: share of the noise that all frames have in common is a/sqrt(1+a^2)
    losses: LossConfig = field(default_factory=LossConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class SyncRecipeConfig:
    """How SyncNet's samples are drawn and compared. The defaults are the published way: one window with its own or another sound."""

    windows: int = 1  # of one clip in a sample; from 2 on, each is compared with the sounds of all windows of the batch
    apart: int = 3  # frames that the starts of such windows are apart, at least
    span: int = 40  # frames within which they start
    temperature: float = 0.07  # of that comparison: the lower, the more the nearest wrong sounds count
    augment: bool = False  # mirror, shift, zoom and light the pictures, and change loudness, colour and noise of the sound
    lips: float = 0.0  # what it counts to tell the opening of the lips from either vector; clips need their truth beside them (.npz: lip_gap)


@dataclass(frozen=True, kw_only=True)
class SyncNetTrain:
    """Training of SyncNet."""

    kind: Literal["syncnet"] = "syncnet"
    summary: str = ""
    net: SyncNetConfig = field(default_factory=SyncNetConfig)  # also by name: net: syncnet_16_pixel
    start: str = ""  # weights to begin with: a checkpoint's folder or a file; empty: random ones
    vae: str = ""  # autoencoder's file, where the network sees latents; empty: the published one
    recipe: SyncRecipeConfig = field(default_factory=SyncRecipeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class AutoencoderLosses:
    """How much each term of the small autoencoder's loss counts."""

    l1: float = 1.0
    gradient: float = 1.0  # L1 of the differences between neighbouring pixels, at two scales
    squared: float = 3.0
    latent: float = 0.001  # squared latents, so that they stay small
    mouth: float = 2.0  # what an error in the middle of the mouth counts, where one far from it counts 1


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrain:
    """Training of a small autoencoder (kind `small`) on face crops."""

    kind: Literal["autoencoder"] = "autoencoder"
    summary: str = ""
    net: VAEConfig = field(default_factory=lambda: VAEConfig(kind="small"))
    resolution: int = 128  # of the aligned face, pixels
    crop: int = 64  # side of the pieces that are trained on, pixels
    mouth: float = 0.6  # share of the pieces that are aimed at the mouth
    masked: float = 0.2  # share of the pieces that are cut from masked faces, which the U-Net sees too
    noise: float = 0.1  # standard deviation of noise on the latents, in theirs: the U-Net's latents are not exact either
    start: str = ""  # weights to begin with: a checkpoint's folder or a file; empty: random ones
    losses: AutoencoderLosses = field(default_factory=AutoencoderLosses)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class SpeechTrain:
    """Training of a speech encoder of Whisper's shape on articulation: what mouth and tongue do while one hears this."""

    kind: Literal["speech"] = "speech"
    summary: str = ""
    net: WhisperConfig = field(default_factory=WhisperConfig)
    seconds: float = 6.0  # of a sample
    lip_gap: float = 1.0  # what the opening of the lips counts, where each articulation channel counts 1
    start: str = ""  # weights to begin with: a checkpoint's folder or a file; empty: random ones
    data: DataConfig = field(default_factory=DataConfig)  # sounds with a track beside them (.npz: articulation, lip_gap)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class TrackerTrain:
    """Training of the small face finder on whole frames whose landmarks are known."""

    kind: Literal["tracker"] = "tracker"
    summary: str = ""
    net: FaceNetConfig = field(default_factory=FaceNetConfig)
    start: str = ""  # weights to begin with: a checkpoint's folder or a file; empty: random ones
    data: DataConfig = field(default_factory=DataConfig)  # clips with their truth beside them (.npz: landmarks)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


Train = UNetTrain | SyncNetTrain | AutoencoderTrain | SpeechTrain | TrackerTrain
KINDS: dict[Kind, type[Train]] = {
    "unet": UNetTrain,
    "syncnet": SyncNetTrain,
    "autoencoder": AutoencoderTrain,
    "speech": SpeechTrain,
    "tracker": TrackerTrain,
}


def load(kind: Kind, config: str | Path, overrides: Sequence[str] = ()) -> tuple[Train, list[str]]:
    """A run's whole configuration, and notes on what was understood otherwise than it was written.

    kind: what is trained. config: a preset's name, or a YAML file; a file may name a `preset` and say only what differs, and the published
    project's files are translated. overrides: "run.steps=100", the value as YAML. Raises UsageError that names what cannot be used.
    """
    values, notes, where = _values(kind, str(config))
    for text in overrides:
        _override(KINDS[kind], values, text)
    made = cast(Train, build(cast(Any, KINDS[kind]), _fitted(KINDS[kind], values), where))
    _check(made, where)
    return made, notes + _remarks(made)


def presets(kind: Kind) -> list[str]:
    """Names of the presets for training that network, sorted."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder(kind).iterdir() if p.name.endswith(".yaml"))


def dump(config: Train) -> str:
    """The whole configuration as YAML, every value of it, in the form that `load` reads."""
    return _yaml(full(config))


def full(config: Any) -> dict[str, Any]:
    """A dataclass as plain data, values that equal the defaults included."""
    return cast(dict[str, Any], _lists(dataclasses.asdict(config)))


def kind_of(config: str) -> Kind:
    """Which network a preset or a file is meant to train. Raises UsageError where that cannot be told."""
    from latentsync.train import published

    fitting = [kind for kind in KINDS if config in presets(cast(Kind, kind))]
    if len(fitting) > 1:
        raise UsageError(f"there is a preset '{config}' for each of {' and '.join(fitting)}; say which by --kind")
    if fitting:
        return cast(Kind, fitting[0])
    values = read_values(Path(config).expanduser())
    if published.recognised(values):
        return published.kind_of(values)
    if values.get("kind") in KINDS:
        return cast(Kind, values["kind"])
    named = [kind for kind in KINDS if values.get("preset") in presets(cast(Kind, kind))]
    if len(named) == 1:
        return cast(Kind, named[0])
    own = {kind: {f.name for f in dataclasses.fields(KINDS[kind])} for kind in KINDS}
    fitting = [kind for kind in KINDS if set(values) - {"preset"} <= own[kind] and _net_fits(KINDS[kind], values.get("net"))]
    if len(fitting) != 1:
        kinds = " or ".join(f"`kind: {kind}`" for kind in KINDS)
        raise UsageError(f"{config} does not say which network it trains; write {kinds} into it, or say it by --kind")
    return cast(Kind, fitting[0])


def _net_fits(kind: type[Train], net: Any) -> bool:
    """Whether what a file says of its network may be said of this kind's; only SyncNets have names."""
    if isinstance(net, str):
        return kind is SyncNetTrain
    return not isinstance(net, Mapping) or set(net) <= {f.name for f in dataclasses.fields(typing.get_type_hints(kind)["net"])}


def require(config: Train) -> None:
    """Raise UsageError where a run lacks what has no default: the clips, and a place for what it makes."""
    if not config.data.train:
        raise UsageError("which clips? Set data.train to a folder of clips or a list of files, such as data.train=clips/")
    if not config.run.out:
        raise UsageError("where should the checkpoints go? Set run.out to a folder, such as run.out=runs/first")
    if config.data.fps != 25 and (isinstance(config, SyncNetTrain) or (isinstance(config, UNetTrain) and (config.losses.sync or config.syncnet))):
        raise UsageError(f"data.fps is {config.data.fps}, but SyncNet hears the sound of 25 frames a second; leave data.fps at 25")


# From texts to values


def _values(kind: Kind, config: str) -> tuple[dict[str, Any], list[str], str]:
    """What a preset or a file says, without the defaults; notes; and its name for errors."""
    from latentsync.train import published

    if kind not in KINDS:
        raise UsageError(f"'{kind}' cannot be trained; kinds are {', '.join(KINDS)}")
    if config in presets(kind):
        return _preset(kind, config), [], f"preset {config}"
    path = Path(config).expanduser()
    values = read_values(path, kind)
    meant = published.kind_of(values) if published.recognised(values) else values.get("kind", kind)
    if meant != kind and meant in KINDS:
        raise UsageError(f"{path} configures the training of another network; use: latentsync train {meant} {path}")
    if published.recognised(values):
        return *published.translate(values, path), str(path)
    _name_net(values, str(path))
    base = values.pop("preset", None)
    if base is None:
        return values, [], str(path)
    if base not in presets(kind):
        raise UsageError(f"{path}: no preset '{base}' for training {kind}; presets are {', '.join(presets(kind))}{nearest(base, presets(kind))}")
    return _merged(_preset(kind, base), values), [], str(path)


def read_values(path: Path, kind: Kind | None = None) -> dict[str, Any]:
    """The named values in a YAML file. `kind` is for the error where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(_unknown(str(path), kind)) from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not a text file: {e}") from e
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror or e}; give a preset's name or a YAML file") from e
    return _parse(text, str(path))


def _unknown(config: str, kind: Kind | None) -> str:
    kinds = [kind] if kind else list(KINDS)
    names = [name for k in kinds for name in presets(cast(Kind, k))]
    other = next((k for k in KINDS if k not in kinds and config in presets(cast(Kind, k))), None)
    if other is not None:
        return f"'{config}' is a preset for another network; use: latentsync train {other} {config}"
    return f"'{config}' is neither a preset ({', '.join(dict.fromkeys(names))}) nor a file{nearest(config, names)}"


def _parse(text: str, where: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UsageError(f"{where} is not valid YAML: {e}") from e
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected named values, found {type(values).__name__}")
    return values


def _folder(kind: Kind) -> Any:
    return resources.files("latentsync.train") / "presets" / kind


def _preset(kind: Kind, name: str) -> dict[str, Any]:
    values = _parse((_folder(kind) / f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}")
    _name_net(values, f"preset {name}")
    return values


def _name_net(values: dict[str, Any], where: str) -> None:
    """Put a published network's description where its name stands."""
    if isinstance(values.get("net"), str):
        values["net"] = _net(values["net"], where)


def _net(name: str, where: str) -> dict[str, Any]:
    if name not in SYNCNETS:
        raise UsageError(f"{where}: no network '{name}'; known ones are {', '.join(SYNCNETS)}{nearest(name, SYNCNETS)}")
    return full(SYNCNETS[name])


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The upper values laid over the lower ones, section by section; lists are replaced whole."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _override(kind: type, values: dict[str, Any], text: str) -> None:
    """Set one value, given as "run.steps=100", in the plain data of a configuration. What it stands in is filled with the defaults."""
    name, equals, raw = text.partition("=")
    if not equals:
        raise UsageError(f"'{text}' is not KEY=VALUE, such as run.steps=100")
    keys = [key.strip() for key in name.split(".")]
    place, hint, at = values, cast(Any, kind), ""
    for depth, key in enumerate(keys):
        if not dataclasses.is_dataclass(hint):
            raise UsageError(f"{text}: '{at}' is a value, it holds nothing named '{key}'")
        fields = {f.name: f for f in dataclasses.fields(hint)}
        if key not in fields:
            inside = f" in '{at}'" if at else ""
            raise UsageError(f"{text}: unknown key '{key}'{inside}; known keys are {', '.join(fields)}{nearest(key, fields)}")
        hint = typing.get_type_hints(hint)[key]
        at = f"{at}.{key}" if at else key
        if depth == len(keys) - 1:
            place[key] = _scalar(hint, raw.strip(), text)
            _name_net(values, text)
        elif dataclasses.is_dataclass(hint):
            if place.get(key) is None:
                factory = fields[key].default_factory
                place[key] = full(factory()) if factory is not dataclasses.MISSING else {}
            place = place[key]
            if not isinstance(place, dict):
                raise UsageError(f"{text}: '{at}' holds {place!r}, not named values")


def _scalar(hint: Any, raw: str, text: str) -> Any:
    """The value in "run.steps=100": for texts as it is written, for anything else as YAML."""
    import yaml

    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as e:
        raise UsageError(f"{text}: the value is not valid YAML: {e}") from e
    return raw if hint is str and not isinstance(value, str) else value


def _fitted(hint: Any, value: Any) -> Any:
    """Values as YAML has them -> as the fields want them.

    YAML takes `model: 1.5` for a number, `1e-5` for a text and a name with nothing behind it for null; they mean the text, the number, and
    nothing. What fits no better is left for `build` to refuse.
    """
    if dataclasses.is_dataclass(hint):
        if value is None:
            return {}
        if isinstance(value, Mapping):
            hints = typing.get_type_hints(hint)
            return {k: _fitted(hints.get(k), v) for k, v in value.items()}
    elif typing.get_origin(hint) is tuple:
        if value is None:
            return []
        if isinstance(value, list | tuple):
            return [_fitted(typing.get_args(hint)[0], v) for v in value]
    elif hint is str and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
        return "" if value is None else str(value)
    elif hint in (float, int, int | None) and isinstance(value, str | float):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if hint is float else int(number) if number.is_integer() else value
    return value


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value


def _yaml(values: dict[str, Any]) -> str:
    """Sections one below the other, lists in one line."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True))
    return str(yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=150))


# What cannot work, and what is odd


def _check(config: Train, where: str) -> None:
    run, optimizer, data = config.run, config.optimizer, config.data
    wholes = [("run.seed", run.seed, 0), ("data.workers", data.workers, 0), ("data.fps", data.fps, 1), ("optimizer.warmup", optimizer.warmup, 0)]
    wholes += [(f"run.{name}", getattr(run, name), 1) for name in ("steps", "batch", "accumulation", "keep")]
    repeated = ("log_every", "checkpoint_every", "keep_every", "validate_every", "validation_clips", "validation_videos")
    wholes += [(f"run.{name}", getattr(run, name), 0) for name in repeated]
    if isinstance(config, UNetTrain):
        wholes += [("lora.rank", config.lora.rank, 0), ("lora.alpha", config.lora.alpha, 0)]
        if config.resolution is not None and (config.resolution <= 0 or config.resolution % 64):
            raise UsageError(f"{where}: resolution {config.resolution} is not a positive multiple of 64")
        losses = dataclasses.asdict(config.losses)
        _finite(where, [(f"losses.{name}", weight) for name, weight in losses.items()] + [("noise_alpha", config.noise_alpha)])
        if not any(losses.values()):
            raise UsageError(f"{where}: every one of losses ({', '.join(losses)}) is 0, so there is nothing to learn from")
        if config.losses.trepa and config.videomae != "giant" and not config.videomae_file:
            raise UsageError(f"{where}: only the giant VideoMAE can be downloaded; give the weights of {config.videomae} by videomae_file")
        if config.lora.rank and not config.lora.patterns:
            raise UsageError(f"{where}: lora.patterns is empty, so no layer would get an adapter")
        recipe = config.recipe
        _shares(where, [(f"recipe.{name}", getattr(recipe, name)) for name in ("late", "shared_noise", "audio_dropout", "fixed_reference")])
        _finite(where, [("recipe.kept", recipe.kept), ("recipe.mouth", recipe.mouth)])
    if isinstance(config, SyncNetTrain):
        _finite(where, [("recipe.lips", config.recipe.lips)])
        if config.recipe.lips and config.recipe.windows == 1:
            raise UsageError(f"{where}: recipe.lips is for samples of several windows; set recipe.windows=4")
    if isinstance(config, AutoencoderTrain):
        if config.net.kind != "small":
            raise UsageError(f"{where}: net.kind is {config.net.kind}; only autoencoders of kind small are trained here")
        if not 0 < config.crop <= config.resolution or config.crop % 8 or config.resolution % 64:
            raise UsageError(
                f"{where}: crop {config.crop} of resolution {config.resolution}: crop must be a multiple of 8, resolution one of 64 and not smaller"
            )
        _shares(where, [("mouth", config.mouth), ("masked", config.masked)])
        _finite(where, [(f"losses.{name}", weight) for name, weight in dataclasses.asdict(config.losses).items()] + [("noise", config.noise)])
    for name, value, low in wholes:
        if value < low:
            raise UsageError(f"{where}: {name} is {value}; it must be at least {low}")
    if run.seed > MAX_SEED:
        raise UsageError(f"{where}: run.seed is {run.seed}; it must be at most {MAX_SEED}")
    _finite(where, [("optimizer.weight_decay", optimizer.weight_decay)])
    _finite(where, [(f"optimizer.{name}", getattr(optimizer, name)) for name in ("learning_rate", "eps", "max_grad_norm")], zero=False)
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise UsageError(f"{where}: optimizer.betas is {list(optimizer.betas)}; it must be two numbers from 0 up to, not including, 1")
    if not 0 <= run.ema < 1:
        raise UsageError(f"{where}: run.ema is {run.ema}; it must be from 0 (none) up to, not including, 1")
    if not run.resume:
        raise UsageError(f"{where}: run.resume is empty; it must be auto, never, or a checkpoint's folder")
    if optimizer.schedule == "cosine" and optimizer.warmup >= run.steps:
        raise UsageError(f"{where}: optimizer.warmup {optimizer.warmup} leaves nothing of run.steps {run.steps}")


def _finite(where: str, values: Iterable[tuple[str, float]], *, zero: bool = True) -> None:
    for name, value in values:
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise UsageError(f"{where}: {name} is {value}; it must be a number {'of at least' if zero else 'above'} 0")


def _shares(where: str, values: Iterable[tuple[str, float]]) -> None:
    for name, value in values:
        if not 0 <= value <= 1:
            raise UsageError(f"{where}: {name} is {value}; it is a share, from 0 to 1")


def _remarks(config: Train) -> list[str]:
    """What is allowed and may still surprise."""
    notes = []
    if isinstance(config, UNetTrain) and config.lora.rank and config.trainable:
        notes.append("lora.rank is set, so adapters are trained and nothing else: `trainable` is not used")
    if config.optimizer.schedule == "cosine" and config.run.steps == RunConfig.steps:
        notes.append(f"optimizer.schedule is cosine over run.steps {config.run.steps:,}: set run.steps to how long you mean to train")
    return notes
