"""What a model is, as frozen and strict data. Presets (`presets/*.yaml`) hold only what differs from the defaults here.

The defaults are the published 1.5 network; numbers and names follow the paper (arXiv 2412.09262) and its releases.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from latentsync.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The denoising U-Net: Stable Diffusion 1.5 inflated over frames."""

    in_channels: int = 13  # noisy latent 4, mask 1, masked latent 4, reference latent 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    heads: int = 8  # the published files call this number of heads `attention_head_dim`
    audio_dim: int = 384
    groups: int = 32
    motion: Literal["none", "decoder", "all"] = "all"
    motion_positions: int = 24  # rows of each temporal position table; a window may not be longer


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The autoencoder between pixels and latents (Stable Diffusion's AutoencoderKL).

    Of kind `small`, `channels` are three, from half the pixels' grid to the latents', and groups, scaling_factor and shift_factor are not used.
    """

    kind: Literal["kl", "tiny", "small"] = "kl"  # tiny = TAESD, for previews; small = the one of the model that ships
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """The speech encoder: Whisper's, `tiny` by default."""

    mels: int = 80
    positions: int = 1500
    width: int = 384
    heads: int = 6
    layers: int = 4
    depths: Literal["all", "last"] = "all"  # what the U-Net hears of each position: the states of all depths, or the last layer's alone


@dataclass(frozen=True, kw_only=True)
class SyncEncoderConfig:
    """One of SyncNet's two encoders: a ResNet block per width, each followed by its stride, here and there by self-attention.

    The strides must bring the input down to 1x1: height and width are divided by each stride in turn, rounding down.
    """

    in_channels: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, int], ...]  # (height, width) of each block; (1, 1) keeps the size
    attention: tuple[int, ...] = ()  # indexes, from 0, of the blocks behind which self-attention stands

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.channels) or any(len(s) != 2 for s in self.strides):
            raise UsageError(f"a SyncNet encoder has one stride (height, width) for each of its {len(self.channels)} widths, found {self.strides}")
        unknown = [i for i in self.attention if not 0 <= i < len(self.channels)]
        if unknown:
            raise UsageError(f"a SyncNet encoder of {len(self.channels)} blocks has no block {unknown[0]} for attention; they count from 0")


_PIXEL_AUDIO = SyncEncoderConfig(
    in_channels=1,
    channels=(32, 64, 128, 256, 512, 1024, 2048),
    strides=((2, 1), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2), (2, 3)),
)
_PIXEL_VISUAL = SyncEncoderConfig(
    in_channels=48,
    channels=(64, 128, 256, 256, 512, 1024, 2048, 2048),
    strides=((1, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
)


@dataclass(frozen=True, kw_only=True)
class SyncNetConfig:
    """The judge of lip sync: a window of frames and its sound become two vectors, near each other where they belong together.

    The defaults are the released network (stable_syncnet.pt), published as syncnet_16_pixel_attn.
    """

    frames: int = 16  # of a window
    resolution: int = 256  # of the aligned face crop, pixels
    lower_half: bool = True  # the visual encoder sees the lower half of the crop only; latents are always seen whole
    latent: bool = False  # the visual encoder sees the VAE's latents instead of pixels
    audio: SyncEncoderConfig = field(default_factory=lambda: dataclasses.replace(_PIXEL_AUDIO, attention=(3, 4)))
    visual: SyncEncoderConfig = field(default_factory=lambda: dataclasses.replace(_PIXEL_VISUAL, attention=(4, 5)))

    @property
    def mel_columns(self) -> int:
        """Columns of SyncNet's mel, 80 a second, that a window of frames at 25 a second spans, rounded up: 52 for 16 frames."""
        return -(-80 * self.frames // 25)

    @property
    def visual_size(self) -> tuple[int, int]:
        """(height, width) of what the visual encoder sees."""
        if self.latent:
            return self.resolution // 8, self.resolution // 8
        return self.resolution // 2 if self.lower_half else self.resolution, self.resolution


# The published networks by the names of their configuration files.
SYNCNETS = {
    "syncnet_16_pixel_attn": SyncNetConfig(),
    "syncnet_16_pixel": SyncNetConfig(audio=_PIXEL_AUDIO, visual=_PIXEL_VISUAL),
    "syncnet_16_latent": SyncNetConfig(
        latent=True,
        lower_half=False,
        audio=SyncEncoderConfig(
            in_channels=1,
            channels=(32, 64, 128, 256, 512, 1024),
            strides=((2, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 3)),
        ),
        visual=SyncEncoderConfig(
            in_channels=64,
            channels=(64, 128, 256, 256, 512, 1024),
            strides=((2, 2), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2)),
        ),
    ),
    # Repaired: the published file has no attn_blocks, without which the published code stops. With none, its sizes do end in 1x1.
    "syncnet_25_pixel": SyncNetConfig(
        frames=25,
        audio=SyncEncoderConfig(
            in_channels=1,
            channels=(64, 128, 256, 256, 512, 1024),
            strides=((2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
        ),
        visual=SyncEncoderConfig(
            in_channels=75,
            channels=(128, 128, 256, 256, 512, 512, 1024, 1024),
            strides=((1, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class VideoMAEConfig:
    """VideoMAE V2's vision transformer (Wang et al., arXiv 2303.16727). The defaults are its giant, which TREPA uses."""

    size: int = 224  # side of a frame, pixels
    patch: int = 14  # side of a patch, pixels
    width: int = 1408
    depth: int = 40
    heads: int = 16
    mlp_ratio: float = 48 / 11
    classes: int = 174  # of the head: Something-Something V2's, on which the published giant was tuned
    frames: int = 16
    tubelet: int = 2  # frames that one token spans


# The published sizes.
VIDEOMAES = {
    "small": VideoMAEConfig(patch=16, width=384, depth=12, heads=6, mlp_ratio=4.0),
    "base": VideoMAEConfig(patch=16, width=768, depth=12, heads=12, mlp_ratio=4.0),
    "large": VideoMAEConfig(patch=16, width=1024, depth=24, heads=16, mlp_ratio=4.0),
    "huge": VideoMAEConfig(patch=16, width=1280, depth=32, heads=16, mlp_ratio=4.0),
    "giant": VideoMAEConfig(),
}


@dataclass(frozen=True, kw_only=True)
class FaceNetConfig:
    """The small face finder of the model that ships: one network that finds faces in a picture, and one that places points on a face."""

    detector: int = 160  # longer side of the picture that faces are found in, pixels
    detector_channels: tuple[int, ...] = (16, 32, 64, 96)
    crop: int = 96  # side of the face crop that points are placed on, pixels
    crop_channels: tuple[int, ...] = (24, 48, 96, 128)
    points: int = 68  # iBUG's order


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise schedule the U-Net was trained with."""

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 1


@dataclass(frozen=True, kw_only=True)
class DefaultsConfig:
    """What a job takes where its user does not choose."""

    steps: int = 20
    guidance: float = 1.5
    scheduler: str = "ddim"
    face_backend: str = "mediapipe"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that must travel with a set of weights."""

    name: str
    summary: str = ""
    resolution: int = 256  # of the aligned face crop, pixels
    window: int = 16  # frames denoised together
    shift: int = 0  # frames by which windows begin earlier at each step, so that neighbours agree (see `shifted`); 0: they stay where they are
    temperature: float = 1.0  # what the noise that denoising begins with is multiplied by; below 1, mouths keep nearer to the likeliest one
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    whisper: WhisperConfig = field(default_factory=WhisperConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    defaults: DefaultsConfig = field(default_factory=DefaultsConfig)
    reference: Literal["self", "fixed"] = "self"  # the face that shows what to draw: each frame's own, or one frame of its shot for all
    still_guidance: float | None = None  # guidance of what is the same in all frames of a window; None: the guidance of everything
    hull: bool = False  # paste within the outline of the face only
    muzzle: bool = False  # paste mouth and chin only, not the cheeks

    @property
    def latent_size(self) -> int:
        """Side of the latent grid for one face crop."""
        return self.resolution // 8


def build(kind: type[T], values: dict[str, Any], where: str = "") -> T:
    """Dataclass from plain data, strictly: an unknown key or a value of the wrong kind is a `UsageError` that names it."""
    if not isinstance(values, dict):
        raise UsageError(f"{where or kind.__name__}: expected named values, found {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UsageError(f"{where + ': ' if where else ''}unknown key '{key}'; known keys are {', '.join(fields)}{nearest(key, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UsageError(f"{where + ': ' if where else ''}the key '{name}' is missing")
    return kind(**{k: _convert(hints[k], v, f"{where}.{k}" if where else k) for k, v in values.items()})


def nearest(word: object, known: Iterable[str]) -> str:
    """What was probably meant, to end a message with: "; did you mean 'steps'?", or nothing."""
    import difflib

    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise UsageError(f"{where}: '{value}' is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, found {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _convert(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def plain(config: Any) -> dict[str, Any]:
    """A config as plain data, without the values that equal the defaults (the inverse of `build`)."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = f.default if f.default is not dataclasses.MISSING else None
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        if dataclasses.is_dataclass(value):
            inner = plain(value)
            if inner:
                out[f.name] = inner
        elif value != default:
            out[f.name] = _listed(value)
    return out


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


def presets() -> list[str]:
    """Names of the presets that ship in the package, sorted."""
    folder = resources.files("latentsync") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def preset(name: str) -> ModelConfig:
    """The shipped preset of that name."""
    file = resources.files("latentsync") / "presets" / f"{name}.yaml"
    if name not in presets():
        raise UsageError(f"no preset '{name}'; known presets are {', '.join(presets())}")
    return parse(file.read_text(encoding="utf-8"), f"preset {name}")


def load(path: Path) -> ModelConfig:
    """The model description in a YAML file."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not a text file: {e}") from e


def parse(text: str, where: str) -> ModelConfig:
    """The model description in YAML text; `where` names it in errors."""
    config = parse_as(ModelConfig, text, where)
    _check(config, where)
    return config


def parse_as(kind: type[T], text: str, where: str) -> T:
    """Any of these dataclasses from YAML text; `where` names it in errors."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UsageError(f"{where} is not valid YAML: {e}") from e
    return build(kind, values or {}, where)


def _check(config: ModelConfig, where: str) -> None:
    if config.resolution <= 0 or config.resolution % 64:
        raise UsageError(f"{where}: resolution {config.resolution} is not a positive multiple of 64")
    if not 1 <= config.window <= config.unet.motion_positions:
        raise UsageError(f"{where}: window {config.window} is not within 1..{config.unet.motion_positions}, the rows of the motion modules")
    if config.shift and not (0 < config.shift < config.window and config.window % config.shift == 0):
        fit = ", ".join(str(n) for n in range(1, config.window) if config.window % n == 0)
        raise UsageError(f"{where}: shift is 0 or one of {fit}, which divide a window of {config.window} frames; found {config.shift}")
    if not 0 < config.temperature <= 1:
        raise UsageError(f"{where}: temperature is above 0 and at most 1; found {config.temperature:g}")
    if config.unet.audio_dim != config.whisper.width:
        raise UsageError(f"{where}: unet.audio_dim {config.unet.audio_dim} differs from whisper.width {config.whisper.width}")
    bad = [c for c in config.unet.channels if c % config.unet.groups or c % config.unet.heads]
    if bad:
        raise UsageError(f"{where}: U-Net width {bad[0]} is not a multiple of groups {config.unet.groups} and heads {config.unet.heads}")


def dump(config: Any) -> str:
    """YAML text of a description, only what differs from the defaults."""
    import yaml

    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
