"""The speech decoder: its size, and that a waveform does not depend on how it is cut into chunks."""

import copy

import pytest
import torch
from eagle.configuration_eagle import EagleConfig, EagleSpeechConfig
from eagle.speech_eagle import EagleSpeechDecoder, EagleSpeechProjector, frame_noise
from huggingface_hub.errors import StrictDataclassError

TINY = {
    "projector_hidden_size": 64, "projector_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "ffn_dim": 64, "speaker_embedding_size": 32, "wavenet_hidden_size": 32, "flow_size": 20, "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 2, "posterior_encoder_num_wavenet_layers": 2, "duration_predictor_filter_channels": 32,
    "fft_size": 256, "hop_length": 64, "spectrogram_bins": 129, "upsample_rates": (8, 8), "upsample_kernel_sizes": (16, 16),
    "upsample_initial_channel": 32, "reference_encoder_filters": (4, 8), "reference_encoder_size": 16,
    "vocoder_hidden_size": 32, "vocoder_num_layers": 2, "context_characters": 16,
}  # fmt: skip
BOXES = {
    "in_proj": 524_800, "char_emb": 133_120, "prior_encoder": 78_733_824, "prior_proj": 196_992, "duration_predictor": 723_201,
    "voice_emb": 1_792, "style_emb": 2_560, "flow": 8_687_232, "posterior_encoder": 8_823_168, "decoder": 14_459_008,
    "reference_encoder": 813_218,
}  # fmt: skip


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(params=["hifigan", "istft"])
def decoder(request):
    torch.manual_seed(0)
    decoder = EagleSpeechDecoder(EagleSpeechConfig(**TINY, vocoder_type=request.param)).eval()
    decoder.duration_predictor.proj.bias.data.fill_(1.2)  # about three frames a character
    return decoder


@pytest.fixture(scope="module")
def segments():
    generator = torch.Generator().manual_seed(1)
    sizes = (12, 40, 1, 55, 7)
    return [(torch.randn(n, 32, generator=generator), torch.randint(0, 260, (n,), generator=generator)) for n in sizes]


def one_shot(decoder, segments, **choices):
    state = decoder.start(**choices)
    for i, segment in enumerate(segments):
        decoder.extend(state, *segment, is_last=i == len(segments) - 1)
    return decoder.render(state)


def streamed(decoder, segments, frames, **choices):
    state = decoder.start(**choices)
    for i, segment in enumerate(segments):
        decoder.extend(state, *segment, is_last=i == len(segments) - 1)
        while (chunk := decoder.render(state, frames)) is not None:
            yield chunk


def test_full_size_counts():
    with torch.device("meta"):
        decoder = EagleSpeechDecoder(EagleSpeechConfig())
        projector = EagleSpeechProjector(3072, EagleSpeechConfig())
    assert {name: count(box) for name, box in decoder.named_children()} == BOXES
    assert (count(decoder), count(projector)) == (113_098_915, 25_172_992)
    assert (decoder.vocoder_sight, decoder.flow_sight) == (13, 32)


@pytest.mark.parametrize("frames", [1, 7, 24, 32, 1000, None])
def test_chunks_are_the_whole_waveform(decoder, segments, frames):
    choices = {"voice": "Emma", "emotion": "sad", "speed": 1.1, "volume": 0.9}
    whole, chunks = one_shot(decoder, segments, **choices), list(streamed(decoder, segments, frames, **choices))
    assert len(chunks) > 1 or frames == 1000
    assert all(len(chunk) == 64 * frames for chunk in chunks[:-1] if frames)
    torch.testing.assert_close(torch.cat(chunks), whole, atol=1e-4, rtol=0)
    assert whole.abs().max() > 100 * 1e-4, "a waveform that is nearly zero would agree with anything"


def test_sound_is_there_before_the_text_ends(decoder, segments):
    state = decoder.start("Mia")
    decoder.extend(state, *segments[1])
    first = decoder.render(state, 8)
    torch.testing.assert_close(first, one_shot(decoder, segments[1:], voice="Mia")[: 8 * 64], atol=1e-4, rtol=0)
    assert decoder.render(state, 1000) is None, "frames whose neighbours are not known yet"


def test_a_segment_changes_nothing_before_it(decoder, segments):
    priors = []
    for last in (segments[2], segments[3]):
        state = decoder.start("Mia")
        decoder.extend(state, *segments[0])
        decoder.extend(state, *segments[1])
        before = state["prior"]
        decoder.extend(state, *last, is_last=True)
        priors.append(state["prior"][..., : before.shape[-1]])
        assert torch.equal(priors[-1], before) and state["prior"].shape[-1] > before.shape[-1]
    assert torch.equal(*priors)


def test_a_state_can_be_kept_and_taken_up(decoder, segments, tmp_path):
    state = decoder.start("Tom")
    decoder.extend(state, *segments[0])
    torch.save(state, tmp_path / "state.pt")
    kept, cloned = torch.load(tmp_path / "state.pt", weights_only=True), copy.deepcopy(state)
    waveforms = []
    for each in (state, kept, cloned):
        decoder.extend(each, *segments[1], is_last=True)
        waveforms.append(decoder.render(each))
    assert torch.equal(waveforms[0], waveforms[1]) and torch.equal(waveforms[0], waveforms[2])


def test_a_state_keeps_no_more_than_windows_see(decoder, segments):
    state = decoder.start("Tom")
    for _ in range(20):
        decoder.extend(state, *segments[3])
        while decoder.render(state, 8) is not None:
            pass
    kept = state["prior"].shape[-1]
    assert kept <= 2 * (decoder.flow_sight + decoder.vocoder_sight) + 8 and state["rendered"] > 10 * kept


def test_speed_scales_durations_and_volume_samples(decoder, segments):
    plain, fast, faster = (len(one_shot(decoder, segments, voice="Jim", speed=speed)) for speed in (1.0, 1.14, 0.88))
    assert fast == pytest.approx(plain / 1.14, rel=0.02) and faster == pytest.approx(plain / 0.88, rel=0.02)
    loud, quiet = (one_shot(decoder, segments, voice="Jim", volume=volume) for volume in (1.2, 0.8))
    inside = loud.abs() < 0.99  # louder samples are cut off at 1
    torch.testing.assert_close(loud[inside], 1.5 * quiet[inside], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"voice": "Bob"}, "unknown voice 'Bob'; known: Chris, Mia, Jim, Emma, Tom, Lucy, Alex"),
        ({"voice": torch.zeros(3)}, r"voice has shape \(3,\); a vector of embed_voice has 32 numbers"),
        ({"voice": "Mia", "emotion": "angry"}, "unknown emotion 'angry'; known: neutral, cheerful, sad, sarcastic"),
        ({"voice": "Mia", "speed": 0}, "speed is 0; it must lie between 0.375 and 2.6"),
        ({"voice": "Mia", "speed": 100}, "speed is 100; it must lie between"),
        ({"voice": "Mia", "speed": float("nan")}, "speed is nan; it must lie between"),
        ({"voice": "Mia", "volume": -1}, "volume is -1; it must lie between 0.25 and 3.2"),
    ],
)
def test_choices_that_cannot_be(decoder, choice, message):
    with pytest.raises(ValueError, match=message):
        decoder.start(**choice)


def test_padding_of_a_batch_changes_nothing(decoder, segments):
    (a, b), (c, d) = segments[0], segments[1]
    states = torch.nn.utils.rnn.pad_sequence([a, c], batch_first=True)
    characters = torch.nn.utils.rnn.pad_sequence([b, d], batch_first=True)
    mask = torch.arange(len(c))[None] < torch.tensor([[len(a)], [len(c)]])
    voice, style = decoder.voice_emb.weight[:2], decoder.style_emb.weight[:2]
    together = decoder.prior(states, characters, voice, style, mask.long())
    alone = decoder.prior(a[None], b[None], voice[:1], style[:1])
    for batched, single in zip(together, alone):
        torch.testing.assert_close(batched[:1, : len(a)], single, atol=1e-5, rtol=1e-4)


def test_voices_of_waveforms(decoder):
    waveform = 0.1 * torch.randn(6_401, generator=torch.Generator().manual_seed(0))
    source, target = decoder.embed(waveform), decoder.voice_vector("Lucy")
    assert source.shape == (32,)
    assert decoder.convert(waveform, source, target).shape == waveform.shape
    assert decoder.start(source)["voice"].shape == (1, 32)


def test_the_flow_is_undone(decoder):
    latents, voice = torch.randn(2, 20, 9), torch.randn(2, 32, 1)
    ones = torch.ones(2, 1, 9)
    back = decoder.flow(decoder.flow(latents, ones, voice), ones, voice, reverse=True)
    torch.testing.assert_close(back, latents, atol=1e-5, rtol=1e-5)


def test_istft_undoes_the_spectrum():
    decoder = EagleSpeechDecoder(EagleSpeechConfig(**TINY, vocoder_type="istft"))
    waveform = torch.randn(2, 64 * 20)
    torch.testing.assert_close(decoder.decoder.overlap_add(decoder.spectrum(waveform))[:, 0], waveform, atol=1e-5, rtol=1e-5)


def test_noise_belongs_to_the_frame():
    whole = frame_noise(3, 0, 300, 4)
    for begin, frames in ((0, 1), (63, 2), (100, 150), (200, 0)):
        assert torch.equal(frame_noise(3, begin, frames, 4), whole[begin : begin + frames])
    assert not torch.equal(frame_noise(4, 0, 300, 4), whole)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": 128}, "hidden_size is 128 and speaker_embedding_size 32"),
        ({"flow_size": 21}, "flow_size is 21; .* even"),
        ({"fft_size": 250}, "fft_size is 250 and hop_length 64"),
        ({"upsample_rates": (8, 4)}, "upsample_rates multiply to 32, but hop_length is 64"),
        ({"spectrogram_bins": 128}, "spectrogram_bins is 128; an fft_size of 256 gives 129"),
    ],
)
def test_configurations_that_cannot_be(change, message):
    with pytest.raises(StrictDataclassError, match=message):
        EagleSpeechConfig(**TINY | change)


def test_unknown_keys_of_speech_are_named():
    with pytest.raises(ValueError, match="speech_config .eagle_speech. has no key 'voicez'; the closest valid key is 'voices'"):
        EagleConfig(speech_config={"voicez": []})
    with pytest.raises(ValueError, match="speech_config.model_type is 'vits'; it must be 'eagle_speech'"):
        EagleConfig(speech_config={"model_type": "vits"})
