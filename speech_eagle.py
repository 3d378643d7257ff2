"""The speech decoder of EAGLE-A: characters and states of the language model in, a waveform out, while the text is written.

    states, characters -> prior encoder -> durations, prior of each frame -> flow -> latents -> vocoder -> waveform

The modules are transformers' VITS (arXiv 2106.06103), laid out as OpenVoice lays them out (arXiv 2312.01479): flow, posterior
encoder, vocoder and reference encoder take the weights of its tone-colour converter. Text comes in segments. The prior reads a
segment with the characters before it and nothing after; frames then pass flow and vocoder in windows with as much to either side
as these see. So the waveform does not depend on how it is cut into chunks, and one function renders streams and whole answers.
Shapes in this file: batch B, characters L, frames F; a frame is `hop_length` samples.

    decoder = EagleSpeechDecoder(EagleSpeechConfig())
    state = decoder.start(voice="Emma")
    decoder.extend(state, states, characters, is_last=True)
    waveform = decoder.render(state)
"""

from copy import copy
from itertools import pairwise
from math import ceil

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized
from transformers import initialization as init
from transformers.audio_utils import mel_filter_bank
from transformers.models.vits.modeling_vits import (
    VitsDurationPredictor,
    VitsEncoder,
    VitsHifiGan,
    VitsPosteriorEncoder,
    VitsPreTrainedModel,
    VitsResidualCouplingBlock,
    VitsResidualCouplingLayer,
)

from .configuration_eagle import EagleSpeechConfig
from .speech_text_eagle import CHARACTERS

MEL_MEAN, MEL_DEVIATION = -5.6, 2.2  # of the voices of training/synthesis/voices.py; "istft" works with what is left
CONVERSION_NOISE = 0.3  # share of the posterior's noise in which a voice is converted, as in OpenVoice's own interface
WHOLE_CHUNK = 512  # frames that are made sound of at a time where nobody waits for them
NOISE_BLOCK = 64  # frames whose noise one seed draws


class EagleSpeechProjector(nn.Sequential):
    """States of the language model after its last norm (..., D) -> (..., projector_size)."""

    def __init__(self, width: int, config: EagleSpeechConfig):
        super().__init__(
            nn.Linear(width, config.projector_hidden_size),
            nn.GELU(),
            nn.Linear(config.projector_hidden_size, config.projector_size),
        )


class EagleReferenceEncoder(nn.Module):
    """A voice as a vector: linear spectrogram (B, spectrogram_bins, F) -> (B, speaker_embedding_size).

    Source: the reference encoder of OpenVoice, itself of arXiv 1803.09047.
    """

    def __init__(self, config: EagleSpeechConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.spectrogram_bins)
        channels, bins = [1, *config.reference_encoder_filters], config.spectrogram_bins
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(inner, outer, 3, stride=2, padding=1)) for inner, outer in pairwise(channels)
        )
        for _ in self.convs:
            bins = (bins + 1) // 2
        self.gru = nn.GRU(channels[-1] * bins, config.reference_encoder_size, batch_first=True)
        self.proj = nn.Linear(config.reference_encoder_size, config.speaker_embedding_size)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        x = self.layernorm(spectrogram.transpose(1, 2))[:, None]  # (B, 1, F, bins)
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.proj(self.gru(x.transpose(1, 2).flatten(2))[1][0])


class EagleConvNextBlock(nn.Module):
    """ConvNeXt in one dimension: a depthwise convolution over 7 frames, then two layers a frame; (B, width, F) in and out."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.linear_1, self.linear_2 = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = self.norm(self.depthwise(x).transpose(1, 2))
        return x + self.linear_2(F.gelu(self.linear_1(frames))).transpose(1, 2)


class EagleIstftVocoder(nn.Module):
    """Normalised log-mel spectrogram (B, flow_size, F) -> waveform (B, 1, F * hop_length), float32, by magnitudes and phases.

    Source: Vocos (arXiv 2306.00814). It hears the voice in the spectrogram and needs no other sign of it.
    """

    def __init__(self, config: EagleSpeechConfig):
        super().__init__()
        width, self.hop, self.size = config.vocoder_hidden_size, config.hop_length, config.fft_size
        self.conv_pre = nn.Conv1d(config.flow_size, width, 7, padding=3)
        self.blocks = nn.Sequential(*[EagleConvNextBlock(width) for _ in range(config.vocoder_num_layers)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2 * config.spectrogram_bins)

    def forward(self, latents: torch.Tensor, global_conditioning: torch.Tensor | None = None) -> torch.Tensor:
        states = self.norm(self.blocks(self.conv_pre(latents)).transpose(1, 2))
        magnitude, phase = self.out(states).float().transpose(1, 2).chunk(2, dim=1)
        return self.overlap_add(torch.polar(magnitude.clamp(max=6).exp(), phase))

    def overlap_add(self, spectrum: torch.Tensor) -> torch.Tensor:
        """The inverse of `EagleSpeechDecoder.spectrum`: (B, bins, F) -> (B, 1, F * hop)."""
        window, frames = torch.hann_window(self.size, device=spectrum.device), spectrum.shape[-1]
        pieces = torch.fft.irfft(spectrum, self.size, dim=1) * window[:, None]
        squares = (window**2)[None, :, None].expand(1, -1, frames)
        length, edge = (frames - 1) * self.hop + self.size, (self.size - self.hop) // 2
        total, envelope = (F.fold(x, (1, length), (1, self.size), stride=(1, self.hop)) for x in (pieces, squares))
        return (total / envelope.clamp(min=1e-3))[:, :, 0, edge:-edge]


def hifigan_sight(config: EagleSpeechConfig) -> int:
    """How many frames to either side of a frame HiFi-GAN hears: 13 at OpenVoice's size."""
    first, last = -3, config.hop_length + 2  # samples that conv_post needs for the frame's own
    widest = max(
        sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)
        for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes)
    )
    for rate, kernel in reversed(list(zip(config.upsample_rates, config.upsample_kernel_sizes))):
        padding = (kernel - rate) // 2
        first, last = first - widest, last + widest
        first, last = ceil((first + padding - kernel + 1) / rate), (last + padding) // rate
    return max(-first, last) + 3


class EagleSpeechDecoder(VitsPreTrainedModel):
    """See the file's own description. `start`, `extend` and `render` speak; what training needs beside, training/speech.py computes
    with the modules themselves.

    A state, what speaking carries from segment to segment, is a plain dict of tensors and numbers: it can be saved, cloned
    and dropped, and the modules know nothing of it.
    """

    config: EagleSpeechConfig
    config_class = EagleSpeechConfig
    base_model_prefix = "speech_decoder"

    def __init__(self, config: EagleSpeechConfig):
        super().__init__(config)
        eager = copy(config)  # transformers' VITS has no other attention, whatever the language model runs
        eager._attn_implementation = "eager"
        narrow = copy(config)
        narrow.hidden_size = config.wavenet_hidden_size
        self.in_proj = nn.Linear(config.projector_size, config.hidden_size)
        self.char_emb = nn.Embedding(CHARACTERS, config.hidden_size)
        self.prior_encoder = VitsEncoder(eager)
        self.prior_proj = nn.Linear(config.hidden_size, 2 * config.flow_size)
        self.duration_predictor = VitsDurationPredictor(config)
        self.voice_emb = nn.Embedding(len(config.voices), config.speaker_embedding_size)
        styles = len(config.emotions) + len(config.speeds) + len(config.volumes)
        self.style_emb = nn.Embedding(styles, config.speaker_embedding_size)
        self.flow = VitsResidualCouplingBlock(narrow)
        if config.vocoder_type == "hifigan":
            self.posterior_encoder = VitsPosteriorEncoder(narrow)
            self.decoder, self.vocoder_sight = VitsHifiGan(config), hifigan_sight(config)
        else:
            self.decoder = EagleIstftVocoder(config)
            overlap = config.fft_size // config.hop_length // 2
            self.vocoder_sight = 3 * (config.vocoder_num_layers + 1) + overlap
        self.reference_encoder = EagleReferenceEncoder(config)
        layers = config.prior_encoder_num_flows * config.prior_encoder_num_wavenet_layers
        self.flow_sight = layers * (config.wavenet_kernel_size - 1) // 2
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """transformers' own, which leaves weight-normalised and recurrent layers alone; the flow starts as the identity, and
        HiFi-GAN's convolutions small, as in their papers' code."""
        super()._init_weights(module)
        if is_parametrized(module, "weight"):
            length, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
            init.kaiming_uniform_(direction, a=5**0.5)
            init.copy_(length, direction.flatten(1).norm(dim=1).reshape(length.shape))
        elif isinstance(module, nn.GRU):
            for weight in module.parameters():
                init.uniform_(weight, a=-(module.hidden_size**-0.5), b=module.hidden_size**-0.5)
        elif isinstance(module, VitsResidualCouplingLayer):
            init.zeros_(module.conv_post.weight)
            init.zeros_(module.conv_post.bias)
        elif isinstance(module, VitsHifiGan):
            for conv in [*module.upsampler.modules(), *module.resblocks.modules()]:
                if isinstance(conv, (nn.Conv1d, nn.ConvTranspose1d)):
                    init.normal_(conv.weight, std=0.01)

    # Sound in

    def spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        """Waveforms (B, F * hop_length) -> complex (B, spectrogram_bins, F); a frame's window is centred on its samples."""
        size, hop = self.config.fft_size, self.config.hop_length
        padded = F.pad(waveform.float()[:, None], [(size - hop) // 2] * 2, mode="reflect")[:, 0]
        window = torch.hann_window(size, device=waveform.device)
        return torch.stft(padded, size, hop, size, window, center=False, return_complex=True)

    def spectrogram(self, waveform: torch.Tensor) -> torch.Tensor:
        """Magnitudes, float32 (B, spectrogram_bins, F), with OpenVoice's floor of 1e-3."""
        spectrum = self.spectrum(waveform)
        return (spectrum.real**2 + spectrum.imag**2 + 1e-6).sqrt()

    def log_mel(self, spectrogram: torch.Tensor, bins: int) -> torch.Tensor:
        """(B, spectrogram_bins, F) -> natural logarithms of Slaney's mel bands up to half the sampling rate (B, bins, F)."""
        rate = self.config.sampling_rate
        bank = mel_filter_bank(self.config.spectrogram_bins, bins, 0, rate / 2, rate, norm="slaney", mel_scale="slaney")
        bank = torch.from_numpy(bank).to(spectrogram)
        return (bank.T @ spectrogram).clamp(min=1e-5).log()

    def normalised_mel(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """The latents of "istft": (B, spectrogram_bins, F) -> (B, flow_size, F)."""
        return ((self.log_mel(spectrogram, self.config.flow_size) - MEL_MEAN) / MEL_DEVIATION).to(self.dtype)

    # Text to frames

    def prior(self, states, characters, voice, style, mask=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is said, character by character.

        Args:
            states: (B, L, projector_size), of the language model, projected, one for each character.
            characters: (B, L), bytes and what follows them.
            voice, style: (B, speaker_embedding_size).
            mask: (B, L), 1 at characters and 0 at padding on the right; None for no padding.

        Returns:
            mean and log_deviation of a frame's prior (B, L, flow_size), and log_durations (B, L), in frames.
        """
        mask = torch.ones_like(characters) if mask is None else mask
        padding = mask[..., None].to(states)
        inputs = self.in_proj(states) + self.char_emb(characters) + torch.cat([voice, style], dim=-1)[:, None]
        hidden = self.prior_encoder(inputs, padding, mask, return_dict=True).last_hidden_state
        mean, log_deviation = (self.prior_proj(hidden) * padding).chunk(2, dim=-1)
        durations = self.duration_predictor(hidden.mT, padding.mT, (voice + style)[..., None])
        return mean, log_deviation, durations[:, 0]

    def style(self, emotion: torch.Tensor, speed: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
        """Indices into the config's emotions, speeds and volumes, (B,) each -> (B, speaker_embedding_size)."""
        speed = speed + len(self.config.emotions)
        volume = volume + len(self.config.emotions) + len(self.config.speeds)
        return self.style_emb(torch.stack([emotion, speed, volume], dim=-1)).sum(dim=-2)

    # Speaking

    @torch.no_grad()
    def start(self, voice: str | torch.Tensor, emotion="neutral", speed=1.0, volume=1.0, seed=0) -> dict:
        """The state before the first segment.

        `voice` is a name or a vector of `embed`; `speed` and `volume` are multiples of the ordinary: the nearest class that was
        trained gives the style, and durations and samples are scaled by what is left. `seed` draws the noise of the frames.
        Raises ValueError as the checks below say.
        """
        config = self.config
        device = self.char_emb.weight.device
        for name, given, known in (("speed", speed, config.speeds), ("volume", volume, config.volumes)):
            lowest, highest = min(known) / 2, max(known) * 2
            if not lowest <= given <= highest:
                raise ValueError(f"{name} is {given}; it must lie between {lowest:g} and {highest:g}")
        choice = (config.index("emotion", emotion), config.nearest("speed", speed), config.nearest("volume", volume))
        return {
            "voice": self.voice_vector(voice),
            "style": self.style(*(torch.tensor([i], device=device) for i in choice)),
            "pace": speed / config.speeds[choice[1]],
            "gain": volume / config.volumes[choice[2]],
            "seed": seed,
            "states": torch.zeros(1, 0, config.projector_size, device=device, dtype=self.dtype),
            "characters": torch.zeros(1, 0, device=device, dtype=torch.long),
            "prior": torch.zeros(1, config.flow_size, 0, device=device, dtype=self.dtype),
            "latents": torch.zeros(1, config.flow_size, 0, device=device, dtype=self.dtype),
            "first": 0,  # the frame that `prior` and `latents` begin with; what lies before is not needed again
            "rendered": 0,  # frames given out
            "is_last": False,  # whether no segment follows
        }

    def voice_vector(self, voice: str | torch.Tensor) -> torch.Tensor:
        weight = self.voice_emb.weight
        if isinstance(voice, str):
            return weight[self.config.index("voice", voice)][None]
        if voice.numel() != weight.shape[1]:
            raise ValueError(f"voice has shape {tuple(voice.shape)}; a vector of embed_voice has {weight.shape[1]} numbers")
        return voice.reshape(1, -1).to(weight)

    @torch.no_grad()
    def extend(self, state: dict, states: torch.Tensor, characters: torch.Tensor, is_last: bool = False) -> None:
        """Adds a segment to a state: its frames can be rendered as soon as those after them are known, or none will be.

        Args:
            states: (L, projector_size), see `prior`.
            characters: (L,).
        """
        states = torch.cat([state["states"], states[None].to(state["states"])], dim=1)
        characters = torch.cat([state["characters"], characters[None].to(state["characters"])], dim=1)
        old = state["characters"].shape[1]
        mean, log_deviation, log_durations = self.prior(states, characters, state["voice"], state["style"])
        # Rounding where characters end, not how long each is, keeps the pace.
        ends = (log_durations[0, old:].float().exp() / state["pace"]).cumsum(0).round().long().clamp(min=1)
        frames = ends.diff(prepend=ends.new_zeros(1))
        begin = state["first"] + state["prior"].shape[2]
        mean, log_deviation = (x[0, old:].repeat_interleave(frames, dim=0) for x in (mean, log_deviation))
        noise = frame_noise(state["seed"], begin, len(mean), self.config.flow_size).to(mean)
        prior = mean + noise * log_deviation.exp() * self.config.noise_scale
        state["prior"] = torch.cat([state["prior"], prior.T[None]], dim=2)
        context = self.config.context_characters
        state["states"], state["characters"] = states[:, -context:], characters[:, -context:]
        state["is_last"] = is_last

    @torch.no_grad()
    def render(self, state: dict, frames: int | None = None) -> torch.Tensor | None:
        """The next `frames` frames of a state (None: all that can be rendered) as float32 (samples,), or None while they
        cannot be rendered yet. After the last segment the rest, be it shorter, is rendered too."""
        self._run_flow(state)
        known = state["first"] + state["latents"].shape[2]
        ready = known - state["rendered"] - (0 if state["is_last"] and self._flow_is_done(state) else self.vocoder_sight)
        wanted = ready if frames is None else frames
        if ready <= 0 or (ready < wanted and not state["is_last"]):
            return None
        begin = state["rendered"]
        end = begin + min(wanted, ready)
        waveform = self._window(
            lambda latents: self.decoder(latents, state["voice"][..., None]),
            state["latents"], begin - state["first"], end - state["first"], self.vocoder_sight, self.config.hop_length,
        )  # fmt: skip
        state["rendered"] = end
        self._forget(state)
        return (waveform[0, 0].float() * state["gain"]).clamp(-1, 1)

    def _flow_is_done(self, state: dict) -> bool:
        return state["latents"].shape[2] == state["prior"].shape[2]

    def _run_flow(self, state: dict) -> None:
        begin, end = state["latents"].shape[2], state["prior"].shape[2]
        end -= 0 if state["is_last"] else self.flow_sight
        if end <= begin:
            return
        ones = state["prior"].new_ones(1, 1, 1)
        latents = self._window(
            lambda prior: self.flow(prior, ones, state["voice"][..., None], reverse=True),
            state["prior"], begin, end, self.flow_sight,
        )  # fmt: skip
        state["latents"] = torch.cat([state["latents"], latents], dim=2)

    @staticmethod
    def _window(module, x: torch.Tensor, begin: int, end: int, sight: int, samples: int = 1) -> torch.Tensor:
        """`module(x)[..., begin : end]`, in frames, from no more of x than the module sees."""
        start = max(begin - sight, 0)
        out = module(x[..., start : end + sight])
        return out[..., (begin - start) * samples : (end - start) * samples]

    def _forget(self, state: dict) -> None:
        """Drops frames that no window will see again."""
        keep = state["rendered"] - self.vocoder_sight - self.flow_sight
        if (drop := keep - state["first"]) > 0:
            state["prior"], state["latents"] = (state[name][..., drop:].clone() for name in ("prior", "latents"))
            state["first"] = keep

    # Voices

    @torch.no_grad()
    def embed(self, waveform: torch.Tensor) -> torch.Tensor:
        """The voice of a waveform (samples,) as a vector (speaker_embedding_size,)."""
        return self.reference_encoder(self.spectrogram(self.whole_frames(waveform)).to(self.dtype))[0]

    @torch.no_grad()
    def convert(self, waveform: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """A waveform (samples,) of the voice `source` as the voice `target` would say it: float32, as long."""
        spectrogram = self.spectrogram(self.whole_frames(waveform))
        source, target = source.reshape(1, -1, 1), target.reshape(1, -1, 1)
        mask = torch.ones_like(spectrogram[:, :1]).to(self.dtype)
        if self.config.vocoder_type == "istft":
            latents = self.normalised_mel(spectrogram)
        else:
            _, mean, log_deviation = self.posterior_encoder(spectrogram.to(self.dtype), mask, source)
            noise = frame_noise(0, 0, mean.shape[2], mean.shape[1]).T.to(mean)
            latents = mean + CONVERSION_NOISE * log_deviation.exp() * noise
        content = self.flow(latents, mask, source)
        converted = self.flow(content, mask, target, reverse=True)
        return self.decoder(converted, target)[0, 0, : len(waveform)].float()

    def whole_frames(self, waveform: torch.Tensor) -> torch.Tensor:
        """(samples,) -> (1, F * hop_length), zeros at the end."""
        return F.pad(waveform, (0, -len(waveform) % self.config.hop_length))[None]


def frame_noise(seed: int, begin: int, frames: int, size: int) -> torch.Tensor:
    """Normal noise of frames `begin` and after, (frames, size): the same for a frame, whatever the range asked for."""
    generator = torch.Generator()
    blocks = []
    for block in range(begin // NOISE_BLOCK, (begin + max(frames, 1) - 1) // NOISE_BLOCK + 1):
        generator.manual_seed(seed * 1_000_003 + block)
        blocks.append(torch.randn(NOISE_BLOCK, size, generator=generator))
    return torch.cat(blocks)[begin % NOISE_BLOCK :][:frames]
