"""The published project's training files (configs/unet/*.yaml, configs/syncnet/*.yaml) -> this package's values.

Every key of theirs is translated, or must have the one value that the networks here have, or gets a note why it has no meaning here. What is
not known at all, or cannot be honoured, is an error: a training takes days, and nothing of what it was asked for may be dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from latentsync.config import SYNCNETS, SyncNetConfig, build, nearest
from latentsync.errors import UsageError

SECTIONS = ("data", "ckpt", "run", "optimizer", "model")
SHARED_ONLY = 1e6  # noise_alpha whose independent part is a millionth: one noise for all frames
WINDOWS_PER_CLIP = 4  # of each held-out clip, on which SyncNet is validated

# Keys without meaning here, and why. Sections of both networks.
MEANINGLESS = {
    "data.audio_embeds_cache_dir": "features are kept by content in data.cache; caches named after files are not read",
    "data.audio_mel_cache_dir": "mels are kept by content in data.cache; caches named after files are not read",
    "data.audio_cache_dir": "mels are kept by content in data.cache; caches named after files are not read",
    "data.pretrained_audio_model_path": "no network here uses it",
    "data.val_video_path": "validation videos are made of held-out clips (data.validation)",
    "data.val_audio_path": "validation videos are made of held-out clips (data.validation)",
    "ckpt.inference_ckpt_path": "a training of the U-Net is told of its SyncNet by `syncnet`",
    "run.enable_xformers_memory_efficient_attention": "attention picks its kernel itself",
    "model.sample_size": "the size of the latents follows from the resolution",
}

# Keys that describe the published network, with the values that it has. The first is the usual one.
UNET_NETWORK: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "add_audio_layer": (True,),
    "custom_audio_layer": (False,),
    "audio_condition_method": ("cross_attn",),
    "attention_head_dim": (8,),
    "block_out_channels": ([320, 640, 1280, 1280],),
    "center_input_sample": (False,),
    "cross_attention_dim": (384,),
    "down_block_types": (["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],),
    "mid_block_type": ("UNetMidBlock3DCrossAttn",),
    "up_block_types": (["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,),
    "downsample_padding": (1,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "in_channels": (13,),
    "layers_per_block": (2,),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "norm_num_groups": (32,),
    "out_channels": (4,),
    "resnet_time_scale_shift": ("default",),
    "unet_use_cross_frame_attention": (False, None),
    "unet_use_temporal_attention": (False, None),
}
MOTION: dict[str, tuple[Any, ...]] = {
    "motion_module_resolutions": ([1, 2, 4, 8],),
    "motion_module_mid_block": (False,),
    "motion_module_type": ("Vanilla",),
    "motion_module_kwargs.num_attention_heads": (8,),
    "motion_module_kwargs.num_transformer_block": (1,),
    "motion_module_kwargs.attention_block_types": (["Temporal_Self", "Temporal_Self"],),
    "motion_module_kwargs.temporal_position_encoding": (True,),
    "motion_module_kwargs.temporal_position_encoding_max_len": (24,),
    "motion_module_kwargs.temporal_attention_dim_div": (1,),
    "motion_module_kwargs.zero_initialize": (True,),
}


def recognised(values: Mapping[str, Any]) -> bool:
    """Whether these are the values of one of their files: sections `ckpt` and `model`, which files of this package do not have."""
    return isinstance(values.get("model"), dict) or "ckpt" in values


def kind_of(values: Mapping[str, Any]) -> Literal["unet", "syncnet"]:
    """Which network one of their files trains."""
    model = values.get("model")
    return "syncnet" if isinstance(model, dict) and {"audio_encoder", "visual_encoder"} & set(model) else "unet"


def translate(values: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """The same training in this package's values, and notes on what is otherwise here. Raises UsageError, naming the key."""
    theirs = _Theirs(values, path)
    ours = _syncnet(theirs) if kind_of(values) == "syncnet" else _unet(theirs)
    theirs.finish()
    return ours, theirs.notes


class _Theirs:
    """Their values by dotted name; each is taken once, and what is left in the end was not understood."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._known: list[str] = list(MEANINGLESS)
        self._values: dict[str, Any] = {}
        for section, inner in values.items():
            if section not in SECTIONS:
                raise UsageError(f"{path}: unknown section '{section}'; the published files have {', '.join(SECTIONS)}{nearest(section, SECTIONS)}")
            if not isinstance(inner, dict):
                raise UsageError(f"{path}: section '{section}' holds {inner!r}, not named values")
            self._values |= _flat(inner, section)
        for key in [k for k in self._values if k in MEANINGLESS]:
            del self._values[key]
            self.note(key, MEANINGLESS[key])

    def note(self, key: str, why: str) -> None:
        self.notes.append(f"{key}: {why}")

    def refuse(self, key: str, value: Any, why: str) -> UsageError:
        return UsageError(f"{self.path}: {key} is {value!r}; {why}")

    def has(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: Any = None) -> Any:
        self._known.append(key)
        value = self._values.pop(key, default)
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        value = self.take(key, default)
        try:  # YAML takes 1e-5 for a text
            return float(value)
        except (TypeError, ValueError):
            raise self.refuse(key, value, "it must be a number") from None

    def whole(self, key: str, default: int) -> int:
        value = self.number(key, default)
        if not value.is_integer():
            raise self.refuse(key, value, "it must be a whole number")
        return int(value)

    def switch(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "it must be true or false")
        return value

    def listed(self, key: str, default: list[Any]) -> list[Any]:
        value = self.take(key, default)
        if not isinstance(value, list):
            raise self.refuse(key, value, "it must be a list")
        return value

    def must(self, key: str, allowed: tuple[Any, ...], advice: str) -> None:
        """A key that may be absent, and otherwise must have one of these values."""
        if not self.has(key):
            self._known.append(key)
            return
        value = self.take(key)
        if not any(_same(value, a) for a in allowed):
            raise self.refuse(key, value, f"here it can only be {allowed[0]!r}. {advice}")

    def move(self, key: str, place: dict[str, Any], name: str, read: Callable[[str, Any], Any], default: Any) -> None:
        """Take a value over where it is given."""
        if self.has(key):
            place[name] = read(key, default)
        else:
            self._known.append(key)

    def finish(self) -> None:
        """UsageError where something was not taken."""
        for key in self._values:
            section = key.partition(".")[0]
            known = sorted({k.partition(".")[2] for k in self._known if k.startswith(f"{section}.")})
            inside = key.partition(".")[2]
            raise UsageError(f"{self.path}: unknown key '{inside}' in '{section}'; known keys are {', '.join(known)}{nearest(inside, known)}")


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}.{key}") if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return out


def _same(a: Any, b: Any) -> bool:
    """Equal as values, but true is not 1; 1e-5 may have come as a text."""
    if isinstance(b, bool) or b is None or isinstance(a, bool):
        return a is b
    if isinstance(b, float) and isinstance(a, str):
        try:
            return float(a) == b
        except ValueError:
            return False
    return bool(a == b)


# What both files have


def _common(theirs: _Theirs) -> dict[str, Any]:
    """Data, optimizer and the course of the run."""
    data: dict[str, Any] = {}
    for name, half in (("train", "train"), ("validation", "val")):
        # theirs reads the list where there is one, and the folder otherwise
        listed, folder = theirs.take(f"data.{half}_fileslist", ""), theirs.take(f"data.{half}_data_dir", "")
        if listed or folder:
            data[name] = str(listed or folder)
        if listed and folder:
            theirs.note(f"data.{half}_data_dir", f"not read, as in the original: data.{half}_fileslist is given")
    theirs.move("data.num_workers", data, "workers", theirs.whole, 2)
    theirs.move("data.video_fps", data, "fps", theirs.whole, 25)
    theirs.must("data.audio_sample_rate", (16000,), "Whisper and SyncNet hear 16 kHz; sound of any rate is brought to it while reading")

    run: dict[str, Any] = {}
    theirs.move("data.train_output_dir", run, "out", theirs.take, "")
    if run.get("out"):
        theirs.note("data.train_output_dir", "run.out is this folder itself, not one with a date in it, so that a run that goes on finds itself")
    theirs.move("data.batch_size", run, "batch", theirs.whole, 1)
    theirs.move("data.gradient_accumulation_steps", run, "accumulation", theirs.whole, 1)
    theirs.move("run.seed", run, "seed", theirs.whole, 0)
    theirs.move("run.max_train_steps", run, "steps", theirs.whole, 0)
    if run.get("steps") == -1:
        raise theirs.refuse("run.max_train_steps", -1, "a run is counted in steps here, not in epochs: write how many")
    if theirs.whole("run.max_train_epochs", -1) != -1:
        theirs.note("run.max_train_epochs", "not used, as in the original: run.max_train_steps is given")
    theirs.move("ckpt.save_ckpt_steps", run, "checkpoint_every", theirs.whole, 0)
    if theirs.has("run.mixed_precision_training"):
        mixed = theirs.switch("run.mixed_precision_training", True)
        run["dtype"] = "auto" if mixed else "fp32"
        if mixed:
            theirs.note(
                "run.mixed_precision_training", "fp16 in the original; run.dtype auto takes what suits the device, run.dtype=fp16 is as theirs"
            )
    theirs.move("run.enable_gradient_checkpointing", run, "gradient_checkpointing", theirs.switch, True)

    optimizer: dict[str, Any] = {}
    theirs.move("optimizer.lr", optimizer, "learning_rate", theirs.number, 1e-5)
    theirs.move("optimizer.max_grad_norm", optimizer, "max_grad_norm", theirs.number, 1.0)
    theirs.must("optimizer.scale_lr", (False,), "Multiply optimizer.lr by the number of processes yourself")
    schedule, warmup = str(theirs.take("optimizer.lr_scheduler", "constant")), theirs.whole("optimizer.lr_warmup_steps", 0)
    if schedule not in ("constant", "constant_with_warmup", "cosine"):
        raise theirs.refuse("optimizer.lr_scheduler", schedule, "here it can be constant, constant_with_warmup or cosine")
    optimizer |= {"schedule": "cosine" if schedule == "cosine" else "constant", "warmup": 0 if schedule == "constant" else warmup}
    if schedule == "constant" and warmup:
        theirs.note("optimizer.lr_warmup_steps", "not used, as in the original: lr_scheduler constant has no warm-up, constant_with_warmup has")

    ours: dict[str, Any] = {"data": data, "optimizer": optimizer, "run": run}
    start = theirs.take("ckpt.resume_ckpt_path", "")
    if start:
        ours["start"] = str(start)
        theirs.note(
            "ckpt.resume_ckpt_path", "the weights to begin with (start); steps count from 0. Runs of this program go on by themselves (run.resume)"
        )
    return ours


# The U-Net


def _unet(theirs: _Theirs) -> dict[str, Any]:
    ours = {"kind": "unet", "model": _unet_model(theirs), **_common(theirs)}
    motion = ours["model"] != "1.0"
    if theirs.has("data.resolution"):
        ours["resolution"] = theirs.whole("data.resolution", 256)
    if (ours["model"], ours.get("resolution")) == ("1.5", 512):
        ours["model"] = "1.6"  # the same network under the name of its resolution
    theirs.must("data.num_frames", (16,), "The window belongs to the model: write `window:` into a model.yaml and give it as `model`")
    theirs.must("data.audio_feat_length", ([2, 2],), "Frames hear the positions that the released weights were trained with")
    _mask(theirs)

    if "checkpoint_every" in ours["run"]:  # theirs validates when it saves
        ours["run"]["validate_every"] = ours["run"]["checkpoint_every"]
    if theirs.whole("run.inference_steps", 20) != 20 or theirs.number("run.guidance_scale", 1.5) != 1.5:
        theirs.note("run.inference_steps, run.guidance_scale", "validation videos here are always made in 20 steps with guidance 1.5")
    trainable = theirs.listed("run.trainable_modules", [])
    if trainable and motion:
        ours["trainable"] = trainable
    elif trainable:
        theirs.note("run.trainable_modules", "not used, as in the original: without motion modules everything is trained")
    elif motion:
        raise UsageError(
            f"{theirs.path}: run.trainable_modules is missing, so that the original would train nothing; list motion_modules. and others"
        )

    alpha = theirs.number("run.mixed_noise_alpha", 1.0)
    if theirs.switch("run.use_mixed_noise", True):
        ours["noise_alpha"] = alpha
    else:
        ours["noise_alpha"] = SHARED_ONLY
        theirs.note("run.use_mixed_noise", f"false means one noise for all frames; noise_alpha {SHARED_ONLY:g} leaves each a millionth of its own")
    ours["losses"] = _losses(theirs)
    _which_syncnet(theirs, ours)
    return ours


def _unet_model(theirs: _Theirs) -> str:
    advice = "Describe another network in a model.yaml (see docs/weights.md) and train it with model=model.yaml"
    for key, allowed in UNET_NETWORK.items():
        theirs.must(f"model.{key}", allowed, advice)
    motion = theirs.switch("model.use_motion_module", False)
    decoder = theirs.switch("model.motion_module_decoder_only", False)
    for key, allowed in MOTION.items():
        if motion:
            theirs.must(f"model.{key}", allowed, advice)
        else:
            theirs.take(f"model.{key}")
    return "1.0" if not motion else "efficient" if decoder else "1.5"


def _mask(theirs: _Theirs) -> None:
    advice = "The released weights were trained with mask.png, which is built in"
    file = theirs.take("data.mask_image_path", "")
    if file and Path(str(file)).name != "mask.png":
        raise theirs.refuse("data.mask_image_path", file, f"here it can only be mask.png. {advice}")
    if file:
        theirs.note("data.mask_image_path", "the mask is built in; no file is read")
    theirs.must("data.mask", ("fix_mask",), advice)


def _losses(theirs: _Theirs) -> dict[str, float]:
    """Their weights, where their two switches let them count."""
    syncs, pixels = theirs.switch("run.use_syncnet", False), theirs.switch("run.pixel_space_supervise", False)
    losses = {"recon": theirs.number("run.recon_loss_weight", 1.0)}
    for name, key, switch, on in (
        ("sync", "run.sync_loss_weight", "run.use_syncnet", syncs),
        ("lpips", "run.perceptual_loss_weight", "run.pixel_space_supervise", pixels),
        ("trepa", "run.trepa_loss_weight", "run.pixel_space_supervise", pixels),
    ):
        weight = theirs.number(key, 0.0)
        losses[name] = weight if on else 0.0
        if weight and not on:
            theirs.note(key, f"counts nothing, as in the original: {switch} is false")
    return losses


def _which_syncnet(theirs: _Theirs, ours: dict[str, Any]) -> None:
    """Their file for SyncNet names the weights; found from here or from a folder above the file itself."""
    key = "data.syncnet_config_path"
    named = str(theirs.take(key, ""))
    if not named:
        return
    if not ours["losses"]["sync"]:
        theirs.note(key, "not used: there is no loss from SyncNet")
        return
    root = next((folder for folder in (Path(), *theirs.path.resolve().parents) if (folder / named).is_file()), None)
    if root is None:
        theirs.note(key, f"there is no {named}; the published SyncNet is taken. Give another one by syncnet=FOLDER_OR_FILE")
        return
    from latentsync.train.config import read_values

    values = read_values(root / named)
    files = values.get("ckpt")
    weights = files.get("inference_ckpt_path") if isinstance(files, dict) else None
    if not weights:
        raise theirs.refuse(key, named, "that file names no ckpt.inference_ckpt_path. Give one by syncnet=FOLDER_OR_FILE")
    ours["syncnet"] = str(root / weights if (root / weights).is_file() else weights)
    network = build(SyncNetConfig, translate(values, root / named)[0]["net"], named)
    if network != SyncNetConfig():
        name = next((n for n, c in SYNCNETS.items() if c == network), "another network")
        theirs.note(
            key,
            f"{named} describes {name}, but a bare file is taken to be syncnet_16_pixel_attn; put the weights as syncnet.safetensors beside a "
            "syncnet.yaml and give that folder by syncnet=FOLDER",
        )


# SyncNet


def _syncnet(theirs: _Theirs) -> dict[str, Any]:
    ours = {"kind": "syncnet", **_common(theirs)}
    run = ours["run"]
    theirs.move("run.validation_steps", run, "validate_every", theirs.whole, 0)
    if theirs.has("data.num_val_samples"):
        run["validation_clips"] = math.ceil(theirs.whole("data.num_val_samples", 0) / WINDOWS_PER_CLIP)
        theirs.note(
            "data.num_val_samples", f"run.validation_clips {run['validation_clips']}: {WINDOWS_PER_CLIP} windows are taken of each held-out clip"
        )
    net: dict[str, Any] = {
        "frames": theirs.whole("data.num_frames", 16),
        "resolution": theirs.whole("data.resolution", 256),
        "lower_half": theirs.switch("data.lower_half", True),
        "latent": theirs.switch("data.latent_space", False),
    }
    for name in ("audio", "visual"):
        net[name] = _encoder(theirs, f"model.{name}_encoder")
    ours["net"] = net
    return ours


def _encoder(theirs: _Theirs, key: str) -> dict[str, Any]:
    theirs.must(f"{key}.dropout", (0, 0.0), "No published network drops anything out")
    channels = theirs.listed(f"{key}.block_out_channels", [])
    strides = theirs.listed(f"{key}.downsample_factors", [])
    attention = theirs.listed(f"{key}.attn_blocks", [0] * len(channels))  # syncnet_25_pixel lacks it
    if not channels or len(strides) != len(channels) or len(attention) != len(channels):
        raise UsageError(
            f"{theirs.path}: {key} has {len(channels)} block_out_channels, {len(strides)} downsample_factors and {len(attention)} attn_blocks; "
            "it must have as many of each"
        )
    return {
        "in_channels": theirs.whole(f"{key}.in_channels", 1),
        "channels": channels,
        "strides": [s if isinstance(s, list) else [s, s] for s in strides],  # (height, width); a single number is both
        "attention": [i for i, on in enumerate(attention) if on],
    }
