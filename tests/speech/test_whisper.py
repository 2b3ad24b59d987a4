"""The encoder's features and the loading of its weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import WhisperConfig as TransformersConfig
from transformers import WhisperModel

from latentsync.config import WhisperConfig
from latentsync.errors import WeightsError
from latentsync.speech.whisper import SpeechEncoder, load_whisper, openai_checkpoint, sinusoids

SMALL = WhisperConfig(positions=40, width=16, heads=2, layers=3)


@pytest.fixture
def whole_model() -> WhisperModel:
    """A complete small Whisper of transformers, decoder included."""
    torch.manual_seed(1)
    config = TransformersConfig(
        vocab_size=32,
        num_mel_bins=80,
        max_source_positions=SMALL.positions,
        max_target_positions=8,
        d_model=SMALL.width,
        encoder_layers=SMALL.layers,
        encoder_attention_heads=SMALL.heads,
        encoder_ffn_dim=4 * SMALL.width,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return WhisperModel(config).eval()


def mel_of(frames: int) -> torch.Tensor:
    return torch.rand(80, frames, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_weights_of_transformers_give_its_own_answer(whole_model: WhisperModel, prefix: str) -> None:
    state = {prefix + k: v for k, v in whole_model.state_dict().items()}
    encoder = load_whisper(state, SMALL)
    mel = mel_of(80)
    ours = encoder.features(mel)
    with torch.no_grad():
        theirs = whole_model.encoder(mel[None], output_hidden_states=True)
    assert ours.shape == (40, 4, 16)
    torch.testing.assert_close(encoder.norm(ours[:, -1]), theirs.last_hidden_state[0])
    for depth in range(SMALL.layers):  # the last of theirs is normed, the others are not
        torch.testing.assert_close(ours[:, depth], theirs.hidden_states[depth][0])


def test_first_depth_is_convolutions_plus_positions() -> None:
    encoder = SpeechEncoder(SMALL)
    mel = mel_of(80)
    convolved = functional.gelu(encoder.encoder.conv2(functional.gelu(encoder.encoder.conv1(mel[None]))))
    expected = convolved[0].T + sinusoids(40, 16)
    torch.testing.assert_close(encoder.features(mel)[:, 0], expected)


@pytest.mark.parametrize(("frames", "positions"), [(1, 1), (2, 1), (3, 1), (4, 2), (79, 39), (80, 40)])
def test_short_blocks_are_padded_with_zeros(frames: int, positions: int) -> None:
    encoder = SpeechEncoder(SMALL)
    mel = mel_of(frames)
    features = encoder.features(mel)
    assert features.shape == (positions, 4, 16)
    padded = torch.cat([mel, torch.zeros(80, 80 - frames)], dim=1)
    torch.testing.assert_close(features, encoder.features(padded)[:positions])


@pytest.mark.parametrize("shape", [(80, 0), (80, 81), (40, 80)])
def test_a_mel_of_the_wrong_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected a mel"):
        SpeechEncoder(SMALL).features(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    encoder = SpeechEncoder(SMALL)
    mel = mel_of(80)
    exact = encoder.features(mel)
    half = encoder.to(dtype).features(mel)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.05)


def test_features_can_enter_a_training_graph() -> None:
    features = SpeechEncoder(SMALL).features(mel_of(80))
    weight = torch.ones(16, requires_grad=True)
    (features * weight).sum().backward()
    assert weight.grad is not None


def test_openai_form_goes_around() -> None:
    encoder = SpeechEncoder(SMALL)
    again = load_whisper(openai_checkpoint(encoder), SMALL)
    torch.testing.assert_close(again.features(mel_of(80)), encoder.features(mel_of(80)), rtol=0, atol=0)


def test_a_stored_position_table_wins_over_sinusoids() -> None:
    checkpoint = openai_checkpoint(SpeechEncoder(SMALL))
    state = checkpoint["model_state_dict"]
    state["encoder.positional_embedding"] = torch.full((40, 16), 0.25)
    assert torch.all(load_whisper(checkpoint, SMALL).encoder.embed_positions.weight == 0.25)
    del state["encoder.positional_embedding"]
    torch.testing.assert_close(load_whisper(checkpoint, SMALL).encoder.embed_positions.weight.data, sinusoids(40, 16), rtol=0, atol=0)


def test_misfits_are_named() -> None:
    def broken(change: Any) -> dict[str, Any]:
        checkpoint = openai_checkpoint(SpeechEncoder(SMALL))
        change(checkpoint["model_state_dict"], checkpoint["dims"])
        return checkpoint

    cases = [
        (lambda s, d: s.pop("encoder.blocks.1.attn.value.bias"), r"lacks 'encoder\.blocks\.1\.attn\.value\.bias'"),
        (
            lambda s, d: s.update({"encoder.blocks.2.mlp.0.weight": torch.zeros(3, 16)}),
            r"'encoder\.blocks\.2\.mlp\.0\.weight'.*\(3, 16\).*\(64, 16\)",
        ),
        (lambda s, d: s.update({"encoder.blocks.3.mlp.0.weight": torch.zeros(64, 16)}), r"holds 'encoder\.blocks\.3\.mlp\.0\.weight'"),
        (lambda s, d: s.update({"surprise": torch.zeros(1)}), "holds 'surprise'"),
        (lambda s, d: s.update({"encoder.conv1.weight": "text"}), r"'encoder\.conv1\.weight'.*str"),
        (lambda s, d: d.update(n_audio_state=384), r"n_audio_state 384.*whisper\.width 16"),
        (lambda s, d: d.update(n_audio_head=6), r"n_audio_head 6.*whisper\.heads 2"),
        (lambda s, d: s.clear(), "lacks"),
    ]
    for change, message in cases:
        with pytest.raises(WeightsError, match=message):
            load_whisper(broken(change), SMALL)


def test_misfits_of_transformers_weights_are_named(whole_model: WhisperModel) -> None:
    state = dict(whole_model.state_dict())
    del state["encoder.layers.0.fc1.weight"]
    with pytest.raises(WeightsError, match=r"lacks 'encoder\.layers\.0\.fc1\.weight'"):
        load_whisper(state, SMALL)


def test_accepts_exactly_the_released_key_list(golden: Path) -> None:
    listed = json.loads((golden / "c_whisper_tiny_keys.json").read_text())
    dims = listed["dims"]
    config = WhisperConfig()
    assert [config.mels, config.positions, config.width, config.heads, config.layers] == [
        dims[k] for k in ("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
    ]
    state = {k: torch.full(shape, 0.01, dtype=getattr(torch, dtype)) for k, (shape, dtype) in listed["keys"].items()}
    state["encoder.blocks.3.mlp_ln.bias"] += 1
    encoder = load_whisper({"dims": dims, "model_state_dict": state}, config)
    assert torch.all(encoder.encoder.layers[3].final_layer_norm.bias == 1.01)
    assert torch.all(encoder.encoder.embed_positions.weight == 0.01)
    ours = openai_checkpoint(encoder)["model_state_dict"]
    assert {k: list(v.shape) for k, v in ours.items()} == {k: s for k, (s, _) in listed["keys"].items() if k.startswith("encoder.")}


def test_golden_segment(golden_encoder: SpeechEncoder, goldenlib: Any, whisper_index: dict[str, Any], whisper_numbers: dict[str, np.ndarray]) -> None:
    """One whole block of a made-up mel; the stored rows are every 25th (`_s25`)."""
    shape = (golden_encoder.config.mels, golden_encoder.frames)
    features = golden_encoder.features(torch.from_numpy(goldenlib.u((1, *shape), whisper_index["seed"], "input:mel"))[0])
    np.testing.assert_allclose(features[::25].transpose(0, 1).numpy(), whisper_numbers["enc.embeddings_s25"][0], atol=1e-4)
    np.testing.assert_allclose(golden_encoder.norm(features[:, -1])[::25].numpy(), whisper_numbers["enc.out_ln_post_s25"][0], atol=1e-4)


def test_golden_position_rows(golden_encoder: SpeechEncoder, whisper_numbers: dict[str, np.ndarray]) -> None:
    table = golden_encoder.encoder.embed_positions.weight.numpy()
    for row in whisper_numbers["positional_embedding_rows"]:
        assert np.abs(table - row).max(axis=1).min() < 1e-6
