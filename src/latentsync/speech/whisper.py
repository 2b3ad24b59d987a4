"""Log-mel -> speech features: the encoder of Whisper (arXiv 2212.04356), read before its final norm at every depth.

The network is transformers' `WhisperEncoder`; weights come in OpenAI's names (`whisper/tiny.pt` of the LatentSync repositories) or in
those of transformers (`openai/whisper-tiny`). The decoder's weights, present in both, are not needed and are left aside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import WhisperConfig as TransformersConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from latentsync.config import WhisperConfig
from latentsync.errors import WeightsError

# Prefixes of what a whole Whisper checkpoint holds besides the encoder.
_NOT_ENCODER = ("decoder.", "model.decoder.", "proj_out.")
_DIMS = {
    "n_mels": "mels",
    "n_audio_ctx": "positions",
    "n_audio_state": "width",
    "n_audio_head": "heads",
    "n_audio_layer": "layers",
}
_OPENAI_LAYER = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}


class SpeechEncoder(nn.Module):
    """(mels, frames at 100 Hz) -> (positions at 50 Hz, depths, width). Weights are random until `load_whisper` fills them."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        settings: dict[str, Any] = {
            "num_mel_bins": config.mels,
            "max_source_positions": config.positions,
            "d_model": config.width,
            "encoder_layers": config.layers,
            "encoder_attention_heads": config.heads,
            "encoder_ffn_dim": 4 * config.width,
            "attn_implementation": "sdpa",
        }
        self.encoder = WhisperEncoder(TransformersConfig(**settings))
        self.encoder.embed_positions.weight.data.copy_(sinusoids(config.positions, config.width))
        # The features are wanted before the final norm. With that norm taken out of the way, every release of transformers hands
        # out the same hidden states: the input of the first layer and the output of each. It stays at hand as `norm`.
        self.norm: nn.LayerNorm = self.encoder.layer_norm
        self.encoder.add_module("layer_norm", nn.Identity())
        self.requires_grad_(False).eval()

    @property
    def frames(self) -> int:
        """Mel frames in one block: two for each position."""
        return 2 * self.config.positions

    @property
    def depths(self) -> int:
        """States of each position among the features: that of every depth (layers + 1), or the last layer's alone."""
        return self.config.layers + 1 if self.config.depths == "all" else 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights and of the features."""
        return self.norm.weight.dtype

    @torch.no_grad()
    def features(self, mel: torch.Tensor) -> torch.Tensor:
        """(mels, n) normalised log-mel, n <= 2 * positions -> (max(1, n // 2), depths, width) on the encoder's device.

        The input of the first layer and the output of each layer, or the last layer's output alone, all before the final norm, at 50 Hz.
        The mel is padded with zeros to the whole block, after normalisation, as in the published system.
        """
        mels, n = mel.shape
        if mels != self.config.mels or not 1 <= n <= self.frames:
            raise ValueError(f"expected a mel of shape ({self.config.mels}, 1..{self.frames}), found {tuple(mel.shape)}")
        block = nn.functional.pad(mel.to(self.device, self.dtype), (0, self.frames - n))
        return torch.stack([s[0, : max(1, n // 2)] for s in self.states(block[None])[-self.depths :]], dim=1)

    def states(self, blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(b, mels, 2 * positions) whole blocks -> layers + 1 states (b, positions, width), gradients included; for training."""
        return tuple(self.encoder(blocks, output_hidden_states=True, return_dict=True).hidden_states)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """The same as `features`."""
        return self.features(mel)


def load_whisper(checkpoint: Mapping[str, Any], config: WhisperConfig) -> SpeechEncoder:
    """A checkpoint of Whisper -> the encoder, float32 on the CPU; every tensor of the encoder must be there and nothing unknown.

    `checkpoint` is OpenAI's file as read (`dims` and `model_state_dict`), or one flat state dict in OpenAI's or in transformers' names.
    A missing position table is the sinusoidal one, which is what Whisper was trained with.

    Raises:
        WeightsError: names the first dimension or key that does not fit.
    """
    _check_dims(checkpoint.get("dims"), config)
    inner = checkpoint.get("model_state_dict", checkpoint)
    state = {k: v for k, v in inner.items() if k != "dims" and not k.startswith(_NOT_ENCODER)}
    encoder = SpeechEncoder(config)
    targets = _parameters(encoder)
    openai = any(".blocks." in k or k.endswith(("positional_embedding", "ln_post.weight")) for k in state)
    prefix = "model.encoder." if any(k.startswith("model.") for k in state) else "encoder." if any(k.startswith("encoder.") for k in state) else ""
    names = {prefix + (_openai_name(k) if openai else k): k for k in targets}
    for name, key in names.items():
        if name not in state:
            if key == "embed_positions.weight":
                continue
            raise WeightsError(f"the Whisper checkpoint lacks '{name}'; is it a complete Whisper file with {config.layers} encoder layers?")
        tensor = state[name]
        found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        if found != tuple(targets[key].shape):
            raise WeightsError(f"'{name}' of the Whisper checkpoint is {found}, the configuration asks for {tuple(targets[key].shape)}")
        with torch.no_grad():
            targets[key].copy_(tensor)
    for name in state:
        if name not in names:
            raise WeightsError(f"the Whisper checkpoint holds '{name}', which an encoder of {config.layers} layers does not have")
    return encoder


def openai_checkpoint(encoder: SpeechEncoder) -> dict[str, Any]:
    """The encoder in OpenAI's form, `dims` and `model_state_dict` (no decoder): the inverse of `load_whisper`."""
    return {
        "dims": {theirs: getattr(encoder.config, ours) for theirs, ours in _DIMS.items()},
        "model_state_dict": {"encoder." + _openai_name(k): v.detach().clone() for k, v in _parameters(encoder).items()},
    }


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """(positions, width) float32 position table: sines, then cosines, of wavelengths from 2 pi to 20000 pi in geometric steps.

    In float32 throughout, as Whisper's own table was made: float64 would differ from it by up to 1e-4 at the far end.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / max(1, half - 1)))
    phases = torch.arange(positions, dtype=torch.float32)[:, None] * rates
    return torch.cat([phases.sin(), phases.cos()], dim=1)


def _parameters(encoder: SpeechEncoder) -> dict[str, torch.Tensor]:
    """transformers' name -> parameter, in the network's order, the final norm included."""
    named = dict(encoder.encoder.named_parameters())
    return {**named, **{f"layer_norm.{k}": v for k, v in encoder.norm.named_parameters()}}


def _openai_name(key: str) -> str:
    """OpenAI's name, without `encoder.`, for a key of transformers' encoder: `layers.0.fc1.bias` -> `blocks.0.mlp.0.bias`."""
    if key == "embed_positions.weight":
        return "positional_embedding"
    module, _, kind = key.rpartition(".")
    if module == "layer_norm":
        return f"ln_post.{kind}"
    if module.startswith("layers."):
        _, index, inside = module.split(".", 2)
        return f"blocks.{index}.{_OPENAI_LAYER[inside]}.{kind}"
    return key


def _check_dims(dims: Any, config: WhisperConfig) -> None:
    for theirs, ours in _DIMS.items():
        expected = getattr(config, ours)
        if dims is not None and dims.get(theirs, expected) != expected:
            raise WeightsError(f"the Whisper checkpoint has {theirs} {dims[theirs]}, the configuration asks for whisper.{ours} {expected}")
