"""Trains the speech decoder, alone or with everything else: training.sft with answers that are also spoken.

    python -m training.assemble --preset eagle-tiny-a --weights . --output runs/start-speech
    python -m training.speech --config training/recipes/speech/tiny.yaml --max_steps 20 --output_dir runs/try

Rows with `speech`, the waveform of their last answer, teach to speak; others, and the text of all, teach as in training.sft. The
objective is VITS's (arXiv 2106.06103): the posterior's latents, through the flow, are likely under the prior of the character
that an alignment search gives them to; durations; spectra of short slices; judges of waveforms and their features. A decoder
with `vocoder_type: istft` has no posterior and no judges: its latents are the log-mel spectrogram itself, as in Glow-TTS
(arXiv 2005.11129), and its vocoder learns from spectra alone.
"""

import functools
from dataclasses import dataclass
from math import log, pi
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import DistributedType, broadcast
from monotonic_alignment_search import maximum_path
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig
from trl import TrlParser

from media_eagle import is_source, read_audio, resample
from speech_text_eagle import BLANK, SpokenText
from training import sft
from training.collator import EagleCollator, from_json
from training.discriminators import Discriminator, feature_loss, judges_loss, pleasing_loss
from training.shards import SAMPLING_RATE
from training.trainer import EagleTrainer

MEL_WEIGHT, MEL_BINS = 45, 80  # the others' weights are 1
WINDOWS = (0.25, 0.5, 1, 2)  # of the spectra that "istft" learns from, in its own
DISCRIMINATOR = "discriminator.pt"


@dataclass
class SpeechArguments(sft.EagleArguments):
    """What training.sft knows, and:

    Args:
        slice_frames: so many frames of each answer are made sound of, at a random place.
        discriminator_rate: learning rate of the judges.
    """

    slice_frames: int = 32
    discriminator_rate: float = 2e-4


# --- rows to tensors ------------------------------------------------------------------------------------------------------


class SpeechCollator(EagleCollator):
    """As EagleCollator; for rows with `speech` also tensors whose names begin with `speech_`.

    `speech` is a waveform (samples,) at 16 kHz, or a sound file: bytes, a path, or a dict of both. `meta` names the voice, one of the speech decoder's or null for
    another, and where they are known emotion, speed and volume.
    Raises ValueError for a voice or an emotion that the decoder does not have, and for speech too short for its text or
    without one.
    """

    def __init__(self, processor, config):
        super().__init__(processor)
        self.config = config

    def features(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        features = super().features(row)
        if row.get("speech") is not None:
            features |= self.spoken(features["labels"], features["input_ids"], row["speech"], from_json(row["meta"]))
        return features

    def spoken(self, labels, input_ids, speech, meta: dict) -> dict[str, torch.Tensor]:
        """Of one answer: `speech_waveform` (F * hop_length,), `speech_choice` (4,), and of each character
        `speech_characters`, `speech_positions` of the states that predict its token, and `speech_segments`, (L,)."""
        waveform, rate, _ = read_audio(speech) if is_source(speech) else (speech, SAMPLING_RATE, None)
        hop = self.config.hop_length
        waveform = torch.as_tensor(resample(waveform, rate, self.config.sampling_rate))
        waveform = F.pad(waveform, (0, -len(waveform) % hop))
        labelled = (labels != -100).nonzero().flatten()
        begin = int(labelled[(labelled.diff(prepend=labelled[:1] - 2) != 1).nonzero()[-1]])
        characters, positions, segments = self.characters(input_ids[begin : int(labelled[-1]) + 1].tolist())
        if not characters:
            raise ValueError("the answer holds nothing to say, but the row has speech")
        if len(waveform) // hop < len(characters):
            raise ValueError(f"{len(characters)} characters are said in {len(waveform) // hop} frames of speech, less than one each")
        return {
            "speech_waveform": waveform,
            "speech_characters": torch.tensor(characters),
            "speech_positions": torch.tensor(positions) + begin - 1,
            "speech_segments": torch.tensor(segments),
            "speech_choice": torch.tensor(self.choice(meta)),
        }

    def characters(self, tokens: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Characters of an answer, the numbers of their tokens and of their segments."""
        text = SpokenText(self.processor.tokenizer)
        parts = [segment for token in tokens if (segment := text.add(token))] + text.finish()
        characters, owners = ([value for part in parts for value in part[i]] for i in (0, 1))
        return characters, owners, [number for number, part in enumerate(parts) for _ in part[0]]

    def choice(self, meta: dict) -> list[int]:
        """Indices of voice (-1: another), emotion, speed and volume."""
        config, voice = self.config, meta.get("voice")
        return [
            -1 if voice is None else config.index("voice", voice),
            config.index("emotion", meta.get("emotion", config.emotions[0])),
            config.nearest("speed", meta.get("speed", 1.0)),
            config.nearest("volume", meta.get("volume", 1.0)),
        ]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [dict(row.get("features", row)) for row in rows]
        rows = [row if isinstance(row.get("labels"), torch.Tensor) else self.features(row) for row in rows]
        speech = [{name: row.pop(name) for name in list(row) if name.startswith("speech_")} for row in rows]
        batch = super().__call__(rows)
        spoken = [(i, tensors) for i, tensors in enumerate(speech) if tensors]
        if spoken:
            batch["speech_rows"] = torch.tensor([i for i, _ in spoken])
            batch["speech_frames"] = torch.tensor([len(t["speech_waveform"]) // self.config.hop_length for _, t in spoken])
            batch["speech_lengths"] = torch.tensor([len(t["speech_characters"]) for _, t in spoken])
            for name in spoken[0][1]:
                batch[name] = pad_sequence([tensors[name] for _, tensors in spoken], batch_first=True)
        return batch


# --- the objective --------------------------------------------------------------------------------------------------------


class Spoken(NamedTuple):
    """What one pass gives: the losses, and slices (B, 1, samples) of what the decoder said and of what was said."""

    losses: dict[str, torch.Tensor]
    fake: torch.Tensor
    real: torch.Tensor


def speak(decoder, projector, hidden: torch.Tensor, batch: dict[str, torch.Tensor], slice_frames: int) -> Spoken:
    """Likelihood, durations and slices of a batch's speech; `hidden` (B, T, D) are the language model's last states."""
    states = hidden[batch["speech_rows"][:, None], batch["speech_positions"]]
    frames, lengths = batch["speech_frames"], batch["speech_lengths"]
    frame_mask = mask_of(frames)[:, None].to(states.dtype)
    spectrogram = decoder.spectrogram(batch["speech_waveform"])
    voice, style = voices(decoder, spectrogram, batch["speech_choice"])
    mean, log_deviation, log_durations = prior_of_segments(decoder, projector(states), batch, voice, style)

    if decoder.config.vocoder_type == "hifigan":
        latents, _, posterior_log_deviation = decoder.posterior_encoder(spectrogram, frame_mask, voice[..., None])
    else:
        latents, posterior_log_deviation = decoder.normalised_mel(spectrogram) * frame_mask, None
    content = decoder.flow(latents, frame_mask, voice[..., None])
    path = alignment(content, mean, log_deviation, lengths, frames)
    durations = path.sum(-1)
    mean, log_deviation = mean.mT @ path, log_deviation.mT @ path  # of frames, (B, flow_size, F)
    divergence = log_deviation + 0.5 * (content - mean) ** 2 * (-2 * log_deviation).exp()
    if posterior_log_deviation is None:
        divergence = divergence / decoder.config.flow_size
    else:
        divergence = divergence - posterior_log_deviation - 0.5
    character_mask = mask_of(lengths)
    error = (log_durations - durations.clamp(min=1).log()) ** 2

    start = (torch.rand(len(frames), device=frames.device) * (frames - slice_frames + 1).clamp(min=1)).long()
    fake = decoder.decoder(sliced(latents, start, slice_frames), voice[..., None])
    hop = decoder.config.hop_length
    real = sliced(batch["speech_waveform"][:, None], start * hop, slice_frames * hop)
    losses = {
        "likelihood": (divergence * frame_mask).sum() / frame_mask.sum(),
        "duration": (error * character_mask).sum() / character_mask.sum(),
    }
    if decoder.config.vocoder_type == "hifigan":
        fake_mel, real_mel = (decoder.log_mel(decoder.spectrogram(x[:, 0]), MEL_BINS) for x in (fake, real))
        losses["mel"] = MEL_WEIGHT * (fake_mel - real_mel).abs().mean()
    else:
        sizes = [int(decoder.config.fft_size * size) for size in WINDOWS]
        losses["spectra"] = sum(spectral_loss(fake[:, 0], real[:, 0], size) for size in sizes) / len(sizes)
    return Spoken(losses, fake, real)


def mask_of(lengths: torch.Tensor) -> torch.Tensor:
    """(B,) -> (B, longest), true inside."""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def voices(decoder, spectrogram: torch.Tensor, choice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Voice and style of each answer, (B, speaker_embedding_size). A voice without a name is heard by the reference
    encoder; so is every second of those with one, and it learns to tell both alike."""
    heard = decoder.reference_encoder(spectrogram)
    by_ear = (choice[:, 0] < 0) | (torch.rand(len(choice), device=choice.device) < 0.5)
    named = decoder.voice_emb(choice[:, 0].clamp(min=0))
    return torch.where(by_ear[:, None], heard, named), decoder.style(*choice[:, 1:].T)


def prior_of_segments(decoder, states, batch, voice, style) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`decoder.prior` of each segment with the characters before it, as it is when it speaks, put together again: (B, L, ...)."""
    characters, context = batch["speech_characters"], decoder.config.context_characters
    places, kept, rows = [], [], []
    for row, (segments, length) in enumerate(zip(batch["speech_segments"], batch["speech_lengths"].tolist(), strict=True)):
        sizes = segments[:length].unique_consecutive(return_counts=True)[1].tolist()
        begin = 0
        for size in sizes:
            start = max(begin - context, 0)
            places.append(torch.arange(start, begin + size))
            kept.append(torch.arange(start, begin + size) >= begin)
            rows.append(row)
            begin += size
    lengths, device = torch.tensor([len(place) for place in places]), states.device
    places, kept = (pad_sequence(x, batch_first=True).to(device) for x in (places, kept))
    rows = torch.tensor(rows, device=device)
    mask = mask_of(lengths).to(device)
    out = decoder.prior(states[rows[:, None], places], characters[rows[:, None], places], voice[rows], style[rows], mask.long())
    padded = mask_of(batch["speech_lengths"])
    together = []
    for x in out:
        whole = x.new_zeros(*padded.shape, *x.shape[2:])
        whole[padded] = x[kept]
        together.append(whole)
    return tuple(together)


@torch.no_grad()
def alignment(content, mean, log_deviation, lengths, frames) -> torch.Tensor:
    """The likeliest monotonic path, (B, L, F) of 0 and 1: which frame of `content` (B, size, F) which character says."""
    content, mean, log_deviation = content.float(), mean.float(), log_deviation.float()
    precision = (-2 * log_deviation).exp()
    constant = (-0.5 * log(2 * pi) - log_deviation - 0.5 * mean**2 * precision).sum(-1, keepdim=True)
    likelihood = constant - 0.5 * precision @ content**2 + (mean * precision) @ content
    mask = mask_of(lengths)[:, :, None] & mask_of(frames)[:, None]
    return maximum_path(likelihood, mask.float())


def sliced(x: torch.Tensor, start: torch.Tensor, length: int) -> torch.Tensor:
    """x (B, channels, n) from `start` (B,) on, (B, channels, length); zeros where x ends before."""
    places = start[:, None] + torch.arange(length, device=x.device)
    x = F.pad(x, (0, max(0, int(places.max()) + 1 - x.shape[-1])))
    return x.gather(2, places[:, None].expand(-1, x.shape[1], -1))


def spectral_loss(fake: torch.Tensor, real: torch.Tensor, size: int) -> torch.Tensor:
    """Logarithms of magnitudes and spectral convergence of waveforms (B, samples). Source: arXiv 1910.11480."""
    window = torch.hann_window(size, device=fake.device)
    magnitudes = (torch.stft(x.float(), size, size // 4, size, window, return_complex=True).abs() for x in (fake, real))
    a, b = magnitudes
    return ((a + 1e-3).log() - (b + 1e-3).log()).abs().mean() + (a - b).norm() / (b.norm() + 1e-4)


# --- training -------------------------------------------------------------------------------------------------------------


class SpeechTrainer(EagleTrainer):
    """EagleTrainer with the losses of speech beside the text's, and for "hifigan" the judges, which learn before each step.

    The decoder's objective runs as its `forward`, at which FSDP2 gathers its weights; the judges are whole in every process. Of
    several processes all go through the decoder in every step, those without speech with a weight of zero.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_engine(self.accelerator)
        decoder = self.model.speech_decoder
        decoder.forward = functools.partial(speak, decoder)
        self.judges = self.judges_optimizer = None
        if decoder.config.vocoder_type == "hifigan":
            self.judges = Discriminator().to(self.args.device)
            for weight in self.judges.parameters():  # each process drew its own
                weight.data = broadcast(weight.data)
            rate = self.recipe["discriminator_rate"]
            self.judges_optimizer = torch.optim.AdamW(self.judges.parameters(), rate, betas=(0.8, 0.99), weight_decay=0.01)

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        batch = {name: inputs.pop(name) for name in list(inputs) if name.startswith("speech_")}
        has_speech = bool(batch)
        speaking = int(self.accelerator.reduce(torch.tensor(has_speech, device=self.args.device, dtype=torch.long)))
        if not speaking and self.accelerator.num_processes == 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs | {"output_hidden_states": True}, True, num_items_in_batch)
        whole, hidden = self.accelerator.unwrap_model(model), outputs.hidden_states[-1]
        batch = batch or blank_row(whole.speech_decoder.config, self.recipe["slice_frames"], hidden.device)
        spoken = whole.speech_decoder(whole.speech_projector, hidden, batch, self.recipe["slice_frames"])
        losses = spoken.losses
        if self.judges is not None and speaking:
            losses |= self.judged(spoken, has_speech)
        self.note(losses | {"text": loss}, has_speech, speaking)
        loss = loss + has_speech * sum(losses.values())
        return (loss, outputs) if return_outputs else loss

    def judged(self, spoken: Spoken, has_speech: bool) -> dict[str, torch.Tensor]:
        """One step of the judges, and what they then think of the decoder's slices."""
        if self.model.training:
            self.judges.requires_grad_(True)
            loss = has_speech * judges_loss(self.judges(spoken.real), self.judges(spoken.fake.detach()))
            loss.backward()
            gradients = [weight.grad for weight in self.judges.parameters()]
            vector_to_parameters(self.accelerator.reduce(parameters_to_vector(gradients), "mean"), gradients)
            self.judges_optimizer.step()
            self.judges_optimizer.zero_grad()
        self.judges.requires_grad_(False)
        real, fake = self.judges(spoken.real), self.judges(spoken.fake)
        return {"judges": pleasing_loss(fake), "features": feature_loss(real, fake)}

    @torch.no_grad()
    def note(self, losses: dict[str, torch.Tensor], has_speech: bool, speaking: int) -> None:
        """Adds the losses to the log, those of speech as the mean of the `speaking` processes that have some."""
        weights = {name: 1 / self.accelerator.num_processes if name == "text" else has_speech / max(speaking, 1) for name in losses}
        values = self.accelerator.reduce(torch.stack([loss.float() * weights[name] for name, loss in losses.items()]))
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in zip(losses, values.tolist(), strict=True):
            if speaking or name == "text":
                metrics[f"{name}_loss"].append(value)

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.judges is not None and self.args.should_save:
            torch.save([self.judges.state_dict(), self.judges_optimizer.state_dict()], Path(output_dir, DISCRIMINATOR))

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.judges is not None and checkpoint:
            weights, optimizer = torch.load(Path(checkpoint, DISCRIMINATOR), map_location="cpu", weights_only=True)
            self.judges.load_state_dict(weights)
            self.judges_optimizer.load_state_dict(optimizer)


def check_engine(accelerator) -> None:
    """Raises ValueError for an engine on which the objective would fail, or be wrong without a word: weights and inputs that are
    made bfloat16, and activations that are computed twice, with other random numbers."""
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin is None or plugin.activation_checkpointing or accelerator.mixed_precision != "no":
        found = "DeepSpeed" if plugin is None else f"activation checkpointing {plugin.activation_checkpointing}"
        raise ValueError(
            f"on shards, speech is trained by FSDP2, in float32 and without activation checkpointing: launch it with "
            f"training/launch/speech.yaml and `bf16: false`; found {found}, mixed precision {accelerator.mixed_precision}"
        )


def blank_row(config, frames: int, device) -> dict[str, torch.Tensor]:
    """The tensors of a row that says two blanks in so many frames, with the first state of a batch."""
    zeros = torch.zeros(1, 2, dtype=torch.long, device=device)
    return {
        "speech_waveform": 0.01 * torch.randn(1, frames * config.hop_length, device=device),
        "speech_choice": zeros.repeat(1, 2),
        "speech_characters": zeros + BLANK,
        "speech_positions": zeros,
        "speech_segments": zeros,
        "speech_rows": zeros[0, :1],
        "speech_frames": zeros[0, :1] + frames,
        "speech_lengths": zeros[0, :1] + 2,
    }


def main() -> None:
    arguments, config = TrlParser((SpeechArguments, sft.EagleSFTConfig)).parse_args_and_config()
    sft.check_model(arguments.model)
    speech = AutoConfig.from_pretrained(arguments.model, revision=arguments.revision, trust_remote_code=True).speech_config
    if speech is None:
        raise ValueError(f"{arguments.model} has no speech decoder; training/assemble.py gives it one: --preset eagle-tiny-a --weights")
    config.ddp_find_unused_parameters = False  # DDP does not see that the decoder is used, and everything is
    sft.train(arguments, config, functools.partial(SpeechCollator, config=speech), SpeechTrainer)


if __name__ == "__main__":
    main()
