"""How EAGLE answers: transformers' `generate` with media, as text or as speech, at once or while it is being written.

    ids, waveforms = model.generate(**inputs, generation_mode="audio", voice="Emma", emotion="cheerful", speed=1.1)
    for event in model.stream(**inputs, voice="Emma"):
        print(event.text, end="") if event.audio is None else play(event.audio)
"""

import codecs
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedTokenizerFast
from transformers.generation import GenerationMixin
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import torch_compilable_check

from .configuration_eagle import EagleConfig
from .speech_eagle import WHOLE_CHUNK
from .speech_text_eagle import Segment, SpokenText

SPEECH_OPTIONS = ("voice", "emotion", "speed", "volume", "seed")
SHORTEST_REFERENCE = 0.5  # seconds that a voice is known by
SILENCE = 1e-3  # root mean square below which a recording holds no speech


@dataclass
class EagleSpeechEvent:
    """A piece of text that was written, or a chunk of its sound: float32 (samples,), with its time in seconds."""

    text: str = ""
    audio: torch.Tensor | None = None
    start: float | None = None
    end: float | None = None


class Speaker:
    """Speaks one answer, token by token, with the modules of a model and a state of its speech decoder."""

    def __init__(self, model, state: dict, tokenizer, chunk_frames: int):
        self.model, self.state, self.chunk_frames = model, state, chunk_frames
        self.text = SpokenText(tokenizer)
        self.states, self.count = {}, 0  # by the number of their tokens; how many tokens there were

    def add(self, token: int, state: torch.Tensor) -> Iterator[torch.Tensor]:
        """The next token and the state (D,) that predicts it -> the chunks of sound that it sets free."""
        segment = self.text.add(token)
        self.states[self.count] = state
        self.count += 1
        if segment:
            yield from self.say(segment)
            text = self.text
            self.states = {n: state for n, state in self.states.items() if n >= text.first or n == text.last}

    def finish(self) -> Iterator[torch.Tensor]:
        """The rest of the sound, once no token follows. An answer with nothing to say is one frame of silence."""
        segments = self.text.finish()
        for number, segment in enumerate(segments, 1):
            yield from self.say(segment, is_last=number == len(segments))
        if not segments:
            yield torch.zeros(self.model.speech_decoder.config.hop_length, device=self.state["voice"].device)

    def say(self, segment: Segment, is_last: bool = False) -> Iterator[torch.Tensor]:
        characters, owners = segment
        states = self.model.speech_projector(torch.stack([self.states[owner] for owner in owners]))
        decoder = self.model.speech_decoder
        decoder.extend(self.state, states, torch.tensor(characters, device=states.device), is_last)
        while (chunk := decoder.render(self.state, self.chunk_frames)) is not None:
            yield chunk


class Writing(BaseStreamer, StoppingCriteria):
    """Iterates over the tokens of an answer and the states (D,) that predict them, while a thread writes it."""

    def __init__(self, model, inputs, generation_config, kwargs: dict):
        self.model, self.queue, self.is_stopped, self.has_prompt = model, SimpleQueue(), False, False
        criteria = StoppingCriteriaList([*(kwargs.pop("stopping_criteria", None) or []), self])
        arguments = (inputs, generation_config, False)
        self.thread = threading.Thread(
            target=self.run, args=arguments, kwargs=kwargs | {"streamer": self, "stopping_criteria": criteria}, daemon=True
        )

    @torch.no_grad()
    def run(self, *args, **kwargs) -> None:
        try:
            with self.model.recorded_states() as self.states:
                self.model.write(*args, **kwargs)
            self.queue.put(None)
        except BaseException as error:  # it belongs to the thread that iterates
            self.queue.put(error)

    def put(self, value: torch.Tensor) -> None:
        if self.has_prompt:
            self.queue.put((int(value), self.states.pop()[0]))
        self.has_prompt = True

    def end(self) -> None:
        pass  # the last sign to the queue comes when the model has returned

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), self.is_stopped, device=input_ids.device)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        while (item := self.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def __enter__(self) -> "Writing":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.is_stopped = True
        self.thread.join()


def check_counts(mask: torch.Tensor, features: torch.Tensor, kind: str):
    """Raises ValueError unless `mask` (B, T) has as many placeholders as there are `features` (n, D)."""
    torch_compilable_check(
        mask.sum() == features.shape[0],
        lambda: (
            f"the text holds {int(mask.sum())} {kind} placeholders, but the {kind} input gives {features.shape[0]} "
            f"{kind} tokens; the two must be equal"
        ),
    )


def context_error(length: int, config: EagleConfig) -> str:
    return (
        f"the conversation is {length} tokens long, but the model reads at most "
        f"{config.text_config.max_position_embeddings}; drop old turns, or give fewer or smaller media"
    )


class EagleGenerationMixin(GenerationMixin):
    """`generate` and `stream` of `EagleForConditionalGeneration`."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config=None,
        generation_mode: str | None = None,
        return_transcript: bool = False,
        **kwargs,
    ):
        """transformers' `generate`, with media. Every medium is encoded once, whatever the number of beams.

        Args:
            inputs: `input_ids` (B, T), also accepted under that name.
            generation_mode: "text" or None; "audio": the answer is also spoken.
            return_transcript: decoder mode: also return what the audio tower heard.
            kwargs: the inputs of `forward` and the options of transformers' `generate`; for speech also `voice` (a name, or a
                vector of `embed_voice`), `emotion`, `speed`, `volume` and `seed`, see `EagleSpeechDecoder.start`, and
                `tokenizer`, if the checkpoint's folder holds none.

        In decoder mode without `audio_transcript_ids` the tower writes the transcript. The text then holds **one** audio
        placeholder for each window, between its `<audio>` and `</audio>`; each is expanded to the number of tokens of its
        window's transcript (none for silence) before the language model reads it. Given transcripts come with
        placeholders already expanded.

        Returns:
            ids (B * num_return_sequences, T + new), the prompt as it was given; with `return_dict_in_generate=True`
            transformers' output, whose cache covers the expanded prompt. With `return_transcript` (ids, transcript ids
            (W, L)), right-padded with the audio tower's end token, or the output with `audio_transcript_ids` in it. With
            speech (ids, waveforms), a float32 tensor (samples,) in [-1, 1] for each row, or the output with `audio` and
            `sampling_rate` in it. An answer without a character that can be spoken is a moment of silence.

        Raises:
            ValueError: as `forward`; a prompt that fills the context; no transcript to return; no speech decoder, a way to
                speak that it does not know, beams or other decoding that does not write token by token.
        """
        speech = {name: kwargs.pop(name) for name in SPEECH_OPTIONS if name in kwargs}
        if generation_mode in (None, "text"):
            if speech:
                raise ValueError(f"{', '.join(speech)}: only speech has these; give generation_mode='audio' with them")
            return self.write(inputs, generation_config, return_transcript, **kwargs)
        if generation_mode != "audio":
            raise ValueError(f"generation_mode is {generation_mode!r}; it must be 'text' or 'audio'")
        self.speaker(speech, kwargs.get("tokenizer"))  # what is wrong with the options is known before anything is written
        with self.recorded_states() as recorded:
            outputs = self.write(inputs, generation_config, return_transcript, **kwargs)
        sequences = outputs[0] if isinstance(outputs, tuple) else outputs
        sequences = sequences if isinstance(sequences, torch.Tensor) else sequences["sequences"]
        given = next((x.shape[1] for x in (inputs, kwargs.get("input_ids")) if x is not None), 0)
        written = sequences[:, 0 if kwargs.get("inputs_embeds") is not None else given :]
        if len(recorded) != written.shape[1] or len(recorded[0]) != len(written):
            raise ValueError("speech needs decoding that writes one token after the other, greedily or sampled: no beams, no assistant")
        waveforms = []
        for i, ids in enumerate(written.tolist()):
            speaker = self.speaker(speech, kwargs.get("tokenizer"))
            chunks = [chunk for token, states in zip(ids, recorded, strict=True) for chunk in speaker.add(token, states[i])]
            waveforms.append(torch.cat([*chunks, *speaker.finish()]))
        if isinstance(outputs, torch.Tensor):
            return outputs, waveforms
        if isinstance(outputs, tuple):
            return outputs[0], waveforms, *outputs[1:]
        outputs["audio"], outputs["sampling_rate"] = waveforms, self.config.sampling_rate
        return outputs

    def write(self, inputs, generation_config, return_transcript: bool, **kwargs):
        """`generate` without speech."""
        kwargs.pop("image_sizes", None)
        prompt = kwargs.pop("input_ids") if inputs is None and "input_ids" in kwargs else inputs
        input_ids, transcript = self.encode_media(prompt, kwargs)
        if return_transcript and transcript is None:
            raise ValueError("return_transcript needs input_features and a model with audio_token_source 'decoder'")
        if input_ids is not None and kwargs.get("past_key_values") is None and kwargs.get("inputs_embeds") is None:
            media = (kwargs.get("image_hidden_states"), kwargs.get("audio_hidden_states"))
            self.model.check_request(input_ids, kwargs.get("attention_mask"), *media)
        outputs = super().generate(input_ids, generation_config, **kwargs)
        if input_ids is not prompt:
            outputs = restore_prompt(outputs, prompt, input_ids.shape[1])
        if not return_transcript:
            return outputs
        if isinstance(outputs, torch.Tensor):
            return outputs, transcript
        outputs["audio_transcript_ids"] = transcript
        return outputs

    # Speech

    def stream(
        self, inputs: torch.LongTensor | None = None, generation_config=None, chunk_frames: int = 24, **kwargs
    ) -> Iterator["EagleSpeechEvent"]:
        """Writes and speaks one answer at a time: text comes as soon as it is written, sound as soon as what it depends on is.

        The arguments are those of `generate`, and `chunk_frames`: how many frames of `hop_length` samples a chunk of sound has
        (the last may be shorter). All chunks together are the waveform that `generate` gives, to 1e-4. The text is written in a
        thread of its own; to stop before the end, close the iterator.

        Raises ValueError as `generate`, at the call, but for what is wrong with the request itself: that comes with the first event.
        """
        speech = {name: kwargs.pop(name) for name in SPEECH_OPTIONS if name in kwargs}
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames is {chunk_frames}; it must be at least 1")
        prompt = inputs if inputs is not None else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if prompt is not None and prompt.shape[0] != 1:
            raise ValueError(f"stream() got {prompt.shape[0]} requests; it answers one, generate() answers many")
        speaker = self.speaker(speech, kwargs.get("tokenizer"), chunk_frames)
        return self.events(Writing(self, inputs, generation_config, kwargs), speaker)

    @torch.no_grad()
    def speak(self, input_ids: torch.LongTensor, assistant_masks: torch.LongTensor, tokenizer=None, **kwargs) -> torch.Tensor:
        """Speaks an answer that is written already: float32 (samples,).

        Args:
            input_ids: (1, T), a conversation with the answer in it.
            assistant_masks: (1, T), 1 at the answer's tokens, as `apply_chat_template` gives it with
                return_assistant_tokens_mask=True; of several answers the last is spoken.
            kwargs: the other inputs of `forward`, and how to speak as for `generate`.

        Raises ValueError as `generate`, and where the mask marks nothing.
        """
        speech = {name: kwargs.pop(name) for name in SPEECH_OPTIONS if name in kwargs}
        speaker = self.speaker(speech, tokenizer)
        places = assistant_masks[0].nonzero().flatten().tolist()
        if not places:
            raise ValueError("assistant_masks marks no token, so there is no answer to speak")
        begin = next(place for place in reversed(places) if place - 1 not in places)
        states = self.model(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state[0]
        tokens = input_ids[0, begin : places[-1] + 1].tolist()
        chunks = [chunk for i, token in enumerate(tokens) for chunk in speaker.add(token, states[begin + i - 1])]
        return torch.cat([*chunks, *speaker.finish()])

    @torch.no_grad()
    def events(self, writing: "Writing", speaker: "Speaker") -> Iterator["EagleSpeechEvent"]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        rate, samples = self.config.sampling_rate, 0
        with writing:
            for token, state in writing:
                if text := decoder.decode(speaker.text.written(token)):
                    yield EagleSpeechEvent(text=text)
                for chunk in speaker.add(token, state):
                    yield EagleSpeechEvent(audio=chunk, start=samples / rate, end=(samples + len(chunk)) / rate)
                    samples += len(chunk)
        for chunk in speaker.finish():
            yield EagleSpeechEvent(audio=chunk, start=samples / rate, end=(samples + len(chunk)) / rate)
            samples += len(chunk)

    def speaker(self, speech: dict, tokenizer=None, chunk_frames: int = WHOLE_CHUNK) -> "Speaker":
        """Raises ValueError without a speech decoder, for a way to speak that it does not know, or without tokenizer."""
        if self.config.speech_config is None:
            raise ValueError("the model has no speech decoder (speech_config is null), so it only writes")
        state = self.speech_decoder.start(**{"voice": self.config.speech_config.voices[0]} | speech)
        return Speaker(self, state, tokenizer or self.tokenizer_beside_the_weights(), chunk_frames)

    def tokenizer_beside_the_weights(self) -> PreTrainedTokenizerFast:
        try:
            return PreTrainedTokenizerFast.from_pretrained(self.config.name_or_path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"to speak, the model must know what its tokens say, and {self.config.name_or_path!r} holds no tokenizer; "
                "pass tokenizer=processor.tokenizer"
            ) from error

    @contextmanager
    def recorded_states(self) -> Iterator[list[torch.Tensor]]:
        """A list to which every step of generation in this thread adds the states that predict its tokens, (B, D)."""
        states, thread = [], threading.get_ident()

        def record(module, inputs, outputs):
            if threading.get_ident() == thread:
                states.append(outputs.last_hidden_state[:, -1])

        hook = self.model.register_forward_hook(record)
        try:
            yield states
        finally:
            hook.remove()

    @torch.no_grad()
    def embed_voice(self, reference) -> torch.Tensor:
        """The voice of a recording, mono (samples,) at `config.sampling_rate`, as a vector that `voice=` takes.

        Raises ValueError for less than half a second, for silence, and for samples that are not finite.
        """
        return self.speech_decoder.embed(self.checked_recording("reference", reference, SHORTEST_REFERENCE))

    @torch.no_grad()
    def convert_voice(self, waveform, reference) -> torch.Tensor:
        """What a recording says, in the voice of another: float32 (samples,), as long as `waveform`.

        `reference` is a recording, the name of a voice or a vector of `embed_voice`. Raises ValueError as that.
        """
        waveform = self.checked_recording("waveform", waveform, 0)
        source = self.speech_decoder.embed(waveform)
        is_voice = isinstance(reference, str) or len(reference) == self.config.speech_config.speaker_embedding_size
        target = self.speech_decoder.voice_vector(reference)[0] if is_voice else self.embed_voice(reference)
        return self.speech_decoder.convert(waveform, source, target)

    def checked_recording(self, name: str, waveform, shortest: float) -> torch.Tensor:
        if self.config.speech_config is None:
            raise ValueError("the model has no speech decoder (speech_config is null), so it knows no voices")
        waveform = torch.as_tensor(waveform, dtype=torch.float32, device=self.device)
        rate, least = self.config.sampling_rate, max(shortest, self.config.speech_config.fft_size / self.config.sampling_rate)
        if waveform.ndim != 1:
            raise ValueError(f"{name} has shape {tuple(waveform.shape)}; it must be mono, (samples,)")
        if len(waveform) < least * rate:
            raise ValueError(f"{name} is {len(waveform) / rate:.2f} s long; it must be at least {least:.2f} s at {rate} Hz")
        if not waveform.isfinite().all():
            raise ValueError(f"{name} holds samples that are not finite")
        if (level := waveform.square().mean().sqrt()) < SILENCE:
            raise ValueError(f"{name} is silent: its root mean square is {level:.1e}, and speech has at least {SILENCE:g}")
        return waveform

    def encode_media(self, input_ids: torch.LongTensor | None, kwargs: dict):
        """Replaces the media among generate's `kwargs` by their tokens. Returns the prompt, expanded where the audio tower
        wrote the transcript, and in decoder mode the transcript's ids (W, L), else None."""
        if (pixel_values := kwargs.pop("pixel_values", None)) is not None:
            features = self.get_image_features(pixel_values, return_dict=True).pooler_output
            kwargs["image_hidden_states"] = features.flatten(0, 1)
        names = ("input_features_mask", "audio_transcript_ids", "audio_transcript_mask")
        audio_kwargs = {name: kwargs.pop(name, None) for name in names}
        audio = None
        if (input_features := kwargs.pop("input_features", None)) is not None:
            audio = self.get_audio_features(input_features, **audio_kwargs, return_dict=True)
            kwargs["audio_hidden_states"] = audio.pooler_output
        if audio is None or audio.audio_transcript_ids is None:
            return input_ids, None
        mask, end = audio.audio_transcript_mask, self.config.audio_config.eos_token_id
        if audio_kwargs["audio_transcript_ids"] is None:
            input_ids, kwargs["attention_mask"] = self.expand_placeholders(
                input_ids, kwargs.get("attention_mask"), mask.sum(-1)
            )
        return input_ids, audio.audio_transcript_ids.where(mask.bool(), end)

    def expand_placeholders(self, input_ids, attention_mask, counts: torch.LongTensor):
        """Repeats the i-th audio placeholder of the batch `counts[i]` times; (B, T) -> left-padded (B, longest) ids, mask."""
        if input_ids is None:
            raise ValueError(
                "the audio tower's own transcript needs input_ids, in which its placeholders can be expanded"
            )
        placeholders = input_ids == self.config.audio_token_id
        if placeholders.sum() != len(counts):
            raise ValueError(
                f"the text holds {int(placeholders.sum())} audio placeholders for {len(counts)} audio windows; before the "
                "transcript is known it must hold one a window"
            )
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        repeats = torch.ones_like(input_ids).masked_scatter(placeholders, counts.to(input_ids))
        pad = self.config.text_config.pad_token_id or 0
        return tuple(
            pad_sequence(
                [row.repeat_interleave(times) for row, times in zip(rows, repeats)],
                batch_first=True,
                padding_value=padding,
                padding_side="left",
            )
            for rows, padding in ((input_ids, pad), (attention_mask, 0))
        )

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """The media tokens of a sample are repeated together; the generic expansion would repeat token by token."""
        kinds = [kind for kind in ("image", "audio") if model_kwargs.get(f"{kind}_hidden_states") is not None]
        media = {kind: model_kwargs.pop(f"{kind}_hidden_states") for kind in kinds}
        for kind, features in media.items():
            if expand_size > 1:
                inputs_embeds = model_kwargs.get("inputs_embeds")  # then input_ids may be empty: (B, 0)
                mask = self.model.placeholder_mask(None if inputs_embeds is not None else input_ids, inputs_embeds, kind)
                check_counts(mask, features, kind)
                samples = features.split(mask.sum(-1).tolist())
                media[kind] = torch.cat([sample for sample in samples for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | {f"{kind}_hidden_states": features for kind, features in media.items()}

    def _prepare_generated_length(self, generation_config, model_input_name, input_ids_length, inputs_tensor, **kwargs):
        """Generation ends where the context does."""
        generation_config = super()._prepare_generated_length(
            generation_config,
            model_input_name=model_input_name,
            input_ids_length=input_ids_length,
            inputs_tensor=inputs_tensor,
            **kwargs,
        )
        prompt_length = inputs_tensor.shape[1] if model_input_name == "inputs_embeds" else input_ids_length
        room = self.config.text_config.max_position_embeddings - prompt_length
        if room <= 0:
            raise ValueError(context_error(prompt_length, self.config))
        generation_config.max_length = min(generation_config.max_length, input_ids_length + room)
        return generation_config

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        is_first_iteration: bool = False,
        image_hidden_states: torch.FloatTensor | None = None,
        audio_hidden_states: torch.FloatTensor | None = None,
        **kwargs,
    ):
        """transformers' own, with media tokens in the first step (and in every one without a cache)."""
        kwargs.pop("tokenizer", None)  # transformers' decoding loop hands it on where it came with stop_strings
        positions = kwargs.get("position_ids", input_ids)  # input_ids alone may lack a prompt given as embeddings
        length = positions.shape[-1]
        if self.crosses_longrope_switch(length, past_key_values):
            # The cached keys were rotated with the short factors: start over with the long ones, as Phi3ForCausalLM does.
            past_key_values, next_sequence_length, is_first_iteration = None, None, True
            if inputs_embeds is not None:
                written = input_ids[:, input_ids.shape[1] - (length - inputs_embeds.shape[1]) :]
                inputs_embeds = torch.cat([inputs_embeds, self.get_input_embeddings()(written)], dim=1)
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            model_inputs["image_hidden_states"] = image_hidden_states
            model_inputs["audio_hidden_states"] = audio_hidden_states
        return model_inputs

    def crosses_longrope_switch(self, length: int, past_key_values: Cache | None) -> bool:
        text = self.config.text_config
        if past_key_values is None or (getattr(text, "rope_parameters", None) or {}).get("rope_type") != "longrope":
            return False
        return 0 < past_key_values.get_seq_length() <= text.original_max_position_embeddings < length


def restore_prompt(outputs, prompt: torch.LongTensor, expanded_length: int):
    """Puts the prompt as it was given in place of the expanded one: callers cut off what they passed in."""
    sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
    given = prompt.repeat_interleave(sequences.shape[0] // prompt.shape[0], dim=0).to(sequences.device)
    sequences = torch.cat([given, sequences[:, expanded_length:]], dim=1)
    if isinstance(outputs, torch.Tensor):
        return sequences
    outputs["sequences"] = sequences
    return outputs
