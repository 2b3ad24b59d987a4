"""The published project's training files: every key is translated, agreed with, or explained; nothing is dropped in silence."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentsync import config as configs
from latentsync.errors import UsageError
from latentsync.train.config import kind_of, load
from latentsync.train.losses import mixed_noise
from latentsync.train.published import SHARED_ONLY

load_unet = partial(load, "unet")
load_syncnet = partial(load, "syncnet")

# The keys of the published files, with values of our own where they vary.
UNET: dict[str, Any] = {
    "data": {
        "syncnet_config_path": "configs/syncnet/syncnet_16_pixel_attn.yaml",
        "train_output_dir": "debug/unet",
        "train_fileslist": "lists/train.txt",
        "train_data_dir": "",
        "audio_embeds_cache_dir": "cache/embeds",
        "audio_mel_cache_dir": "cache/mel",
        "val_video_path": "assets/a.mp4",
        "val_audio_path": "assets/a.wav",
        "batch_size": 3,
        "num_workers": 12,
        "num_frames": 16,
        "resolution": 256,
        "mask_image_path": "latentsync/utils/mask.png",
        "audio_sample_rate": 16000,
        "video_fps": 25,
        "audio_feat_length": [2, 2],
    },
    "ckpt": {"resume_ckpt_path": "checkpoints/latentsync_unet.pt", "save_ckpt_steps": 500},
    "run": {
        "pixel_space_supervise": True,
        "use_syncnet": True,
        "sync_loss_weight": 0.05,
        "perceptual_loss_weight": 0.1,
        "recon_loss_weight": 1,
        "guidance_scale": 1.5,
        "trepa_loss_weight": 10,
        "inference_steps": 20,
        "trainable_modules": ["motion_modules.", "attentions."],
        "seed": 7,
        "use_mixed_noise": True,
        "mixed_noise_alpha": 1,
        "mixed_precision_training": True,
        "enable_gradient_checkpointing": True,
        "max_train_steps": 900,
        "max_train_epochs": -1,
    },
    "optimizer": {"lr": "1e-5", "scale_lr": False, "max_grad_norm": 1.0, "lr_scheduler": "constant", "lr_warmup_steps": 0},
    "model": {
        "act_fn": "silu",
        "add_audio_layer": True,
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 384,
        "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
        "mid_block_type": "UNetMidBlock3DCrossAttn",
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 13,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": "1e-5",
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "resnet_time_scale_shift": "default",
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2, 4, 8],
        "motion_module_mid_block": False,
        "motion_module_decoder_only": False,
        "motion_module_type": "Vanilla",
        "motion_module_kwargs": {
            "num_attention_heads": 8,
            "num_transformer_block": 1,
            "attention_block_types": ["Temporal_Self", "Temporal_Self"],
            "temporal_position_encoding": True,
            "temporal_position_encoding_max_len": 24,
            "temporal_attention_dim_div": 1,
            "zero_initialize": True,
        },
    },
}
# What older files of theirs have besides.
OLDER = {
    "run.enable_xformers_memory_efficient_attention": True,
    "model.custom_audio_layer": False,
    "model.audio_condition_method": "cross_attn",
    "model.unet_use_cross_frame_attention": False,
    "model.unet_use_temporal_attention": False,
    "data.mask": "fix_mask",
}
SYNCNET: dict[str, Any] = {
    "model": {
        "audio_encoder": {
            "in_channels": 1,
            "block_out_channels": [32, 64, 128, 256, 512, 1024, 2048],
            "downsample_factors": [[2, 1], 2, 2, 1, 2, 2, [2, 3]],
            "attn_blocks": [0, 0, 0, 1, 1, 0, 0],
            "dropout": 0.0,
        },
        "visual_encoder": {
            "in_channels": 48,
            "block_out_channels": [64, 128, 256, 256, 512, 1024, 2048, 2048],
            "downsample_factors": [[1, 2], 2, 2, 2, 2, 2, 2, 2],
            "attn_blocks": [0, 0, 0, 0, 1, 1, 0, 0],
            "dropout": 0.0,
        },
    },
    "ckpt": {"resume_ckpt_path": "", "inference_ckpt_path": "checkpoints/stable_syncnet.pt", "save_ckpt_steps": 2500},
    "data": {
        "train_output_dir": "debug/syncnet",
        "num_val_samples": 2048,
        "batch_size": 256,
        "num_workers": 12,
        "latent_space": False,
        "num_frames": 16,
        "resolution": 256,
        "train_fileslist": "",
        "train_data_dir": "clips/train",
        "val_fileslist": "",
        "val_data_dir": "clips/val",
        "audio_mel_cache_dir": "cache/mel",
        "lower_half": True,
        "audio_sample_rate": 16000,
        "video_fps": 25,
    },
    "optimizer": {"lr": 2e-5, "max_grad_norm": 0.5},
    "run": {"max_train_steps": 100, "validation_steps": 50, "mixed_precision_training": False, "seed": 42},
}


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with values by dotted name; ... removes one."""
    out = copy.deepcopy(values)
    for name, value in changes.items():
        *path, last = name.split(".")
        place = out
        for key in path:
            place = place[key]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return out


def file(tmp_path: Path, values: dict[str, Any], **changes: Any) -> Path:
    path = tmp_path / "configs" / "unet" / "their.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(changed(values, changes)))
    return path


def noted(notes: list[str], key: str) -> str:
    """The one note on that key."""
    (note,) = [n for n in notes if n.startswith(f"{key}:")]
    return note


def test_stage_2_is_the_preset_with_its_own_values(tmp_path):
    theirs, notes = load_unet(file(tmp_path, UNET))
    ours, _ = load_unet(
        "stage2",
        [
            "summary=",
            "resolution=256",
            "start=checkpoints/latentsync_unet.pt",
            "data={train: lists/train.txt, workers: 12}",
            "run={out: debug/unet, batch: 3, seed: 7, steps: 900, checkpoint_every: 500, validate_every: 500}",
        ],
    )
    assert theirs == ours
    assert kind_of(str(tmp_path / "configs" / "unet" / "their.yaml")) == "unet"
    explained = {
        "data.audio_embeds_cache_dir",
        "data.audio_mel_cache_dir",
        "data.val_video_path",
        "data.val_audio_path",
        "data.mask_image_path",
        "data.syncnet_config_path",
        "data.train_output_dir",
        "ckpt.resume_ckpt_path",
        "run.mixed_precision_training",
        "model.sample_size",
    }
    assert {n.partition(":")[0] for n in notes} == explained


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({}, "1.5"),
        ({"data.resolution": 512}, "1.6"),
        ({"model.motion_module_decoder_only": True}, "efficient"),
        ({"model.use_motion_module": False}, "1.0"),
        ({"model.use_motion_module": False, "data.resolution": 512, **OLDER}, "1.0"),
    ],
)
def test_the_network_is_recognised(tmp_path, changes, model):
    made, _ = load_unet(file(tmp_path, UNET, **changes))
    assert made.model == model
    assert made.resolution == changes.get("data.resolution", 256)


def test_stage_1_learns_what_the_original_learns(tmp_path):
    changes = {"run.use_syncnet": False, "run.pixel_space_supervise": False, "model.use_motion_module": False}
    made, notes = load_unet(file(tmp_path, UNET, **changes))
    assert dataclasses.asdict(made.losses) == {"recon": 1.0, "sync": 0.0, "lpips": 0.0, "trepa": 0.0}
    assert made.trainable == ()
    for key in ("run.sync_loss_weight", "run.perceptual_loss_weight", "run.trepa_loss_weight", "run.trainable_modules", "data.syncnet_config_path"):
        assert "not used" in noted(notes, key) or "counts nothing" in noted(notes, key)


def test_older_keys_are_known(tmp_path):
    made, notes = load_unet(file(tmp_path, UNET, **OLDER))
    assert made == load_unet(file(tmp_path, UNET))[0]
    assert "picks its kernel itself" in noted(notes, "run.enable_xformers_memory_efficient_attention")


def test_other_values_are_taken_or_explained(tmp_path):
    made, notes = load_unet(
        file(
            tmp_path,
            UNET,
            **{
                "optimizer.lr_scheduler": "cosine",
                "optimizer.lr_warmup_steps": 20,
                "optimizer.lr": "3e-6",
                "run.mixed_precision_training": False,
                "run.enable_gradient_checkpointing": False,
                "run.guidance_scale": 2.0,
                "run.mixed_noise_alpha": 2,
                "run.max_train_epochs": 3,
                "data.video_fps": 30,
                "data.train_data_dir": "folder",
                "data.gradient_accumulation_steps": 4,
                "ckpt.resume_ckpt_path": "",
            },
        )
    )
    assert (made.optimizer.schedule, made.optimizer.warmup, made.optimizer.learning_rate) == ("cosine", 20, 3e-6)
    assert (made.run.dtype, made.run.gradient_checkpointing, made.run.accumulation) == ("fp32", False, 4)
    assert (made.noise_alpha, made.data.fps, made.data.train, made.start) == (2.0, 30, "lists/train.txt", "")
    for key in ("run.inference_steps, run.guidance_scale", "run.max_train_epochs", "data.train_data_dir"):
        noted(notes, key)
    constant, notes = load_unet(file(tmp_path, UNET, **{"optimizer.lr_warmup_steps": 20}))
    assert (constant.optimizer.schedule, constant.optimizer.warmup) == ("constant", 0)
    noted(notes, "optimizer.lr_warmup_steps")


def test_one_noise_for_all_frames(tmp_path):
    import torch

    made, notes = load_unet(file(tmp_path, UNET, **{"run.use_mixed_noise": False}))
    assert made.noise_alpha == SHARED_ONLY
    noted(notes, "run.use_mixed_noise")
    shared, independent = torch.randn(2, 4, 1, 8, 8), torch.randn(2, 4, 3, 8, 8)
    torch.testing.assert_close(mixed_noise(shared, independent, SHARED_ONLY), shared.expand(2, 4, 3, 8, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run.trepa_los_weight": 1}, r"unknown key 'trepa_los_weight' in 'run'; known keys are .*did you mean 'trepa_loss_weight'\?"),
        ({"model.motion_module_kwargs.heads": 8}, "unknown key 'motion_module_kwargs.heads' in 'model'"),
        ({"extra": {}}, r"unknown section 'extra'; the published files have data"),
        ({"data": 3}, "section 'data' holds 3"),
        ({"data.mask_image_path": "latentsync/utils/mask2.png"}, "here it can only be mask.png"),
        ({"data.mask": "mouth"}, "data.mask is 'mouth'; here it can only be 'fix_mask'"),
        ({"data.audio_sample_rate": 8000}, "here it can only be 16000"),
        ({"data.audio_feat_length": [4, 4]}, "data.audio_feat_length"),
        ({"data.num_frames": 24}, "data.num_frames is 24; here it can only be 16.*model.yaml"),
        ({"data.batch_size": "many"}, "data.batch_size is 'many'; it must be a number"),
        ({"data.batch_size": 1.5}, "it must be a whole number"),
        ({"run.use_syncnet": "perhaps"}, "it must be true or false"),
        ({"run.max_train_steps": -1, "run.max_train_epochs": 5}, "counted in steps here, not in epochs"),
        ({"run.trainable_modules": ...}, "run.trainable_modules is missing"),
        ({"optimizer.scale_lr": True}, "optimizer.scale_lr is True; here it can only be False"),
        ({"optimizer.lr_scheduler": "polynomial"}, "constant, constant_with_warmup or cosine"),
        ({"model.cross_attention_dim": 768}, "model.cross_attention_dim is 768; here it can only be 384.*model=model.yaml"),
        ({"model.block_out_channels": [64]}, "model.block_out_channels"),
        ({"model.motion_module_mid_block": True}, "model.motion_module_mid_block is True"),
        ({"model.add_audio_layer": 1}, "model.add_audio_layer is 1"),
        ({"data.batch_size": 0}, "run.batch is 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        load_unet(file(tmp_path, UNET, **changes))


def test_the_command_line_lies_over_their_file(tmp_path):
    made, _ = load_unet(file(tmp_path, UNET), ["run.batch=9", "losses.trepa=0", "start=1.5"])
    assert (made.run.batch, made.losses.trepa, made.start) == (9, 0.0, "1.5")


def test_the_weights_of_their_syncnet_are_found(tmp_path):
    """As their programs are started: names in the files count from the project's folder."""
    path = file(tmp_path, UNET)
    beside = tmp_path / "configs" / "syncnet" / "syncnet_16_pixel_attn.yaml"
    beside.parent.mkdir()
    beside.write_text(yaml.safe_dump(SYNCNET))
    weights = tmp_path / "checkpoints" / "stable_syncnet.pt"
    made, notes = load_unet(path)
    assert made.syncnet == "checkpoints/stable_syncnet.pt"
    assert not any(n.startswith("data.syncnet_config_path") for n in notes)
    weights.parent.mkdir()
    weights.touch()
    assert Path(load_unet(path)[0].syncnet) == weights
    plain = changed(SYNCNET, {f"model.{side}_encoder.attn_blocks": ... for side in ("audio", "visual")})
    beside.write_text(yaml.safe_dump(plain))
    assert "syncnet_16_pixel," in noted(load_unet(path)[1], "data.syncnet_config_path")
    beside.write_text(yaml.safe_dump(changed(SYNCNET, {"ckpt.inference_ckpt_path": ""})))
    with pytest.raises(UsageError, match="names no ckpt"):
        load_unet(path)


# SyncNet


def test_syncnet_is_the_preset_with_its_own_values(tmp_path):
    theirs, notes = load_syncnet(file(tmp_path, SYNCNET))
    ours, _ = load_syncnet(
        "syncnet_16_pixel_attn",
        [
            "summary=",
            "data={train: clips/train, validation: clips/val, workers: 12}",
            "run={out: debug/syncnet, batch: 256, seed: 42, steps: 100, checkpoint_every: 2500, validate_every: 50, dtype: fp32}",
            "run.validation_clips=512",
            "optimizer={learning_rate: 2e-5, max_grad_norm: 0.5}",
        ],
    )
    assert theirs == ours
    assert {n.partition(":")[0] for n in notes} == {
        "ckpt.inference_ckpt_path",
        "data.audio_mel_cache_dir",
        "data.num_val_samples",
        "data.train_output_dir",
    }


LATENT = {
    "data.latent_space": True,
    "data.lower_half": False,
    "model.audio_encoder": {
        "in_channels": 1,
        "block_out_channels": [32, 64, 128, 256, 512, 1024],
        "downsample_factors": [[2, 1], 2, 2, 2, 2, [2, 3]],
        "attn_blocks": [0] * 6,
        "dropout": 0.0,
    },
    "model.visual_encoder": {
        "in_channels": 64,
        "block_out_channels": [64, 128, 256, 256, 512, 1024],
        "downsample_factors": [2, 2, 2, 1, 2, 2],
        "attn_blocks": [0] * 6,
        "dropout": 0.0,
    },
}
FIVE_AND_TWENTY = {
    "data.num_frames": 25,
    "model.audio_encoder": {"in_channels": 1, "block_out_channels": [64, 128, 256, 256, 512, 1024], "downsample_factors": [2] * 6, "dropout": 0.0},
    "model.visual_encoder": {
        "in_channels": 75,
        "block_out_channels": [128, 128, 256, 256, 512, 512, 1024, 1024],
        "downsample_factors": [[1, 2], 2, 2, 2, 2, 2, 2, 2],
        "dropout": 0.0,
    },
}
NO_ATTENTION = {"model.audio_encoder.attn_blocks": [0] * 7, "model.visual_encoder.attn_blocks": [0] * 8}


@pytest.mark.parametrize(
    ("changes", "name"),
    [({}, "syncnet_16_pixel_attn"), (NO_ATTENTION, "syncnet_16_pixel"), (LATENT, "syncnet_16_latent"), (FIVE_AND_TWENTY, "syncnet_25_pixel")],
)
def test_every_published_syncnet_is_translated(tmp_path, changes, name):
    path = file(tmp_path, SYNCNET, **changes)
    assert load_syncnet(path)[0].net == configs.SYNCNETS[name]
    assert kind_of(str(path)) == "syncnet"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.audio_encoder.dropout": 0.1}, "model.audio_encoder.dropout is 0.1"),
        ({"model.audio_encoder.attn_blocks": [1]}, "7 block_out_channels, 7 downsample_factors and 1 attn_blocks"),
        ({"model.audio_encoder.block_out_channels": ...}, "0 block_out_channels"),
        ({"model.decoder": 1}, "unknown key 'decoder' in 'model'"),
        ({"run.validation_stepz": 1}, r"did you mean 'validation_steps'\?"),
    ],
)
def test_what_a_syncnet_cannot_be_is_refused(tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        load_syncnet(file(tmp_path, SYNCNET, **changes))


def test_files_are_given_to_the_right_command(tmp_path):
    with pytest.raises(UsageError, match="latentsync train syncnet"):
        load_unet(file(tmp_path, SYNCNET))
    with pytest.raises(UsageError, match="latentsync train unet"):
        load_syncnet(file(tmp_path, UNET))


@pytest.mark.parametrize("values", [UNET, SYNCNET], ids=["unet", "syncnet"])
def test_no_key_is_dropped_in_silence(tmp_path, values):
    """Every key, given a value that nobody could honour, changes the configuration, is explained by a note, or is refused."""
    load = load_syncnet if values is SYNCNET else load_unet
    before = load(file(tmp_path, values))

    def keys(inside: dict[str, Any], at: str = "") -> list[str]:
        return [k for key, v in inside.items() for k in (keys(v, f"{at}{key}.") if isinstance(v, dict) else [f"{at}{key}"])]

    mute = []
    for key in keys(values):
        try:
            after = load(file(tmp_path, values, **{key: 123}))
        except UsageError:
            continue
        if after[0] == before[0] and not any(key in note for note in after[1]):
            mute.append(key)
    assert mute == []
