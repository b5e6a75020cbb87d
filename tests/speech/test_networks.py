"""The small networks compute what PyTorch computes, with made-up weights; features are transformers'."""

from __future__ import annotations

import numpy as np
import pytest
from support.toys.scripted_speech import RATE, tone

from specport.speech.audio.features import log_mel
from specport.speech.audio.vad import FRAME, SileroVad
from specport.speech.speakers.embeddings import LENGTH, VoiceEncoder, _mels
from specport.speech.weights import RESEMBLYZER, SILERO, PackagedWeights


def made_up(about: PackagedWeights, scale: float = 0.1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: (scale * random.standard_normal(shape)).astype(np.float32)
        for name, (_, shape) in about.layout.items()
    }


def noise(seconds: float) -> np.ndarray:
    random = np.random.default_rng(1)
    return (0.1 * random.standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.stack
@pytest.mark.parametrize("bins", [80, 128])
def test_features_are_those_of_transformers(bins: int) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.WhisperFeatureExtractor(feature_size=bins)
    for samples in (noise(3.3), np.zeros(5000, np.float32), noise(0.0001)):
        wanted = theirs(samples, sampling_rate=RATE, return_tensors="np").input_features[0]
        np.testing.assert_allclose(log_mel(samples, bins), wanted, atol=1e-4)
    with pytest.raises(ValueError, match="more than a window"):
        log_mel(noise(30.1), bins)


def test_vad_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    weights = made_up(SILERO)
    w = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}
    cell = torch.nn.LSTMCell(128, 128)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).copy_(w[name])
        samples = noise(5.0)[: 100 * FRAME]
        state, wanted = None, []
        joined = torch.from_numpy(np.pad(samples, (64, 0)))
        for i in range(100):
            x = joined[None, None, FRAME * i : FRAME * (i + 1) + 64]
            x = torch.nn.functional.pad(x, (0, 64), mode="reflect")
            x = torch.nn.functional.conv1d(x, w["stft"][:, None], stride=128)
            x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
            for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
                x = torch.nn.functional.conv1d(
                    x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=1
                ).relu()
            state = cell(x[..., 0], state)
            wanted.append(torch.sigmoid(state[0].relu() @ w["out.weight"] + w["out.bias"]).item())
    vad = SileroVad(weights)
    np.testing.assert_allclose(vad.probabilities([samples]), wanted, atol=1e-5)
    pieces = vad.probabilities(np.array_split(samples, 13))
    np.testing.assert_allclose(pieces, wanted, atol=1e-5)
    assert len(vad.probabilities([samples[:1]])) == 1 and len(vad.probabilities([])) == 0


def test_voices_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    weights = made_up(RESEMBLYZER)
    lstm, linear = torch.nn.LSTM(40, 256, 3, batch_first=True), torch.nn.Linear(256, 256)
    windows = [noise(2.0)[:LENGTH], tone(1.6), tone(0.5)]
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
        linear.weight.copy_(torch.from_numpy(weights["linear.weight"]))
        linear.bias.copy_(torch.from_numpy(weights["linear.bias"]))
        mels = torch.from_numpy(np.stack([_mels(window) for window in windows]))
        raw = linear(lstm(mels)[1][0][-1]).relu()
        wanted = (raw / raw.norm(dim=1, keepdim=True)).numpy()
    encoder = VoiceEncoder(weights)
    np.testing.assert_allclose(encoder.embed(windows), wanted, atol=1e-4)
    assert encoder.embed([]).shape == (0, 256)
