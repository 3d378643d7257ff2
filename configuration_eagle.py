"""Configuration of EAGLE: a language model, optional vision and audio towers, and the projectors between them.

Every part is plug and play: `text_config`, `vision_config` and `audio_config` are configurations of transformers,
chosen by their `model_type`. A key that nobody knows and a combination that cannot run are errors.

    config = EagleConfig.from_json_file("configs/eagle-tiny.json")
"""

from dataclasses import fields
from difflib import get_close_matches
from math import prod
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PreTrainedConfig, VitsConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VISION_TOWERS = ("clip_vision_model", "siglip_vision_model", "timm_wrapper")
HEAD_WIDTH = 128  # of the resampler's attention; llama.cpp's resampler graph has this number built in

# save_pretrained writes AutoConfig and one model class; with the whole map here every re-save keeps every entry.
AUTO_MAP = {
    "AutoConfig": "configuration_eagle.EagleConfig",
    "AutoModel": "modeling_eagle.EagleModel",
    "AutoModelForCausalLM": "modeling_eagle.EagleForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_eagle.EagleForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_eagle.EagleForConditionalGeneration",
    "AutoModelForTextToWaveform": "modeling_eagle.EagleForTextToWaveform",
    "AutoProcessor": "processing_eagle.EagleProcessor",
    "AutoImageProcessor": "image_processing_eagle.EagleImageProcessor",
}

# Keys that transformers itself reads from or writes into a config.json without declaring them as fields.
HOUSEKEEPING_KEYS = {
    "model_type", "auto_map", "name_or_path", "_name_or_path", "_commit_hash", "torch_dtype", "num_labels",
    "attn_implementation", "_attn_implementation_internal", "experts_implementation",
    "_experts_implementation_internal", "output_attentions", "_output_attentions", "per_layer_config",
    "quantization_config", "custom_pipelines", "_post_init_done",
    "rope_theta", "rope_scaling", "partial_rotary_factor",
    "num_classes", "label_names", "num_features", "global_pool", "pretrained_cfg",  # of timm_wrapper
    *GenerationConfig().to_dict(),
}  # fmt: skip

# Keys of older transformers that published config.json files of towers and language models still carry.
LEGACY_KEYS = {
    "add_cross_attention", "attention_bias", "cross_attention_hidden_size", "dropout", "embd_pdrop", "finetuning_task",
    "forced_decoder_ids", "gradient_checkpointing", "initializer_factor", "is_decoder", "mlp_bias",
    "position_embedding_type", "prefix", "pretraining_tp", "projection_dim", "pruned_heads", "resid_pdrop", "sep_token_id",
    "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "torchscript", "use_bfloat16",
}  # fmt: skip


def reject_unknown_keys(owner: str, given, config_class, tolerated=frozenset()) -> None:
    """Raises ValueError naming the first key of `given` that `config_class` does not know, and the closest it does."""
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    for key in given:
        if key not in known | HOUSEKEEPING_KEYS | tolerated:
            closest = get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{owner} has no key {key!r}; the closest valid key is {closest!r}")


def reject_unknown_subconfig(name: str, subconfig: dict, spec: SubConfigSpec) -> None:
    """The same for a nested configuration, which transformers would accept with any key in it."""
    model_type = subconfig.get("model_type", spec.model_type)
    if spec.config_class is not AutoConfig:
        if model_type != spec.model_type:
            raise ValueError(f"{name}.model_type is {model_type!r}; it must be {spec.model_type!r}")
        reject_unknown_keys(f"{name} ({model_type})", subconfig, spec.config_class)
        return
    if model_type not in CONFIG_MAPPING:
        closest = get_close_matches(model_type, list(CONFIG_MAPPING.keys()), n=1, cutoff=0.0)[0]
        raise ValueError(f"{name}.model_type is {model_type!r}, unknown to transformers; the closest is {closest!r}")
    reject_unknown_keys(f"{name} ({model_type})", subconfig, CONFIG_MAPPING[model_type], LEGACY_KEYS)


@strict
class EagleSpeechConfig(VitsConfig):
    r"""
    The speech decoder: VITS, whose prior reads characters and states of the language model. The fields of `VitsConfig` keep
    their meaning; `hidden_size` and what goes with it are the prior encoder's. The defaults are full-size EAGLE-A's.

    Args:
        projector_hidden_size, projector_size: widths of the speech projector inside and at its end.
        wavenet_hidden_size: width of the WaveNets in flow and posterior encoder.
        reference_encoder_filters: channels of the convolutions that hear a voice; each halves time and frequency.
        reference_encoder_size: width of its recurrent layer.
        voices: names of the voices that the decoder was trained with.
        emotions: names of its emotions, the neutral one first.
        speeds, volumes: what its classes of speed and of loudness were spoken at, in multiples of the ordinary.
        hop_length, fft_size: samples a frame, and under its window.
        vocoder_type: "hifigan", whose latents come from a posterior encoder, or "istft": the latents are a log-mel spectrogram
            of `flow_size` bins, and small convolutions write its short-time Fourier transform.
        vocoder_hidden_size, vocoder_num_layers: of "istft" alone; HiFi-GAN's are `VitsConfig`'s.
        context_characters: how many characters before a segment the prior reads with it.
    """

    model_type = "eagle_speech"

    projector_hidden_size: int = 6144
    projector_size: int = 1024
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    ffn_dim: int = 1792
    layerdrop: float | int = 0.0
    speaker_embedding_size: int = 256
    use_stochastic_duration_prediction: bool = False
    wavenet_hidden_size: int = 192
    reference_encoder_filters: list[int] | tuple[int, ...] = (32, 32, 64, 64, 128, 128)
    reference_encoder_size: int = 128
    voices: list[str] | tuple[str, ...] = ("Chris", "Mia", "Jim", "Emma", "Tom", "Lucy", "Alex")
    emotions: list[str] | tuple[str, ...] = ("neutral", "cheerful", "sad", "sarcastic")
    speeds: list[float] | tuple[float, ...] = (0.75, 1.0, 1.3)
    volumes: list[float] | tuple[float, ...] = (0.5, 1.0, 1.6)
    sampling_rate: int = 22_050
    hop_length: int = 256
    fft_size: int = 1024
    vocoder_type: Literal["hifigan", "istft"] = "hifigan"
    vocoder_hidden_size: int = 192
    vocoder_num_layers: int = 6
    context_characters: int = 32

    def index(self, kind: str, name: str) -> int:
        """The number of a "voice" or "emotion". Raises ValueError for one that the decoder was not trained with."""
        known = list(getattr(self, f"{kind}s"))
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
        return known.index(name)

    def nearest(self, kind: str, value: float) -> int:
        """The number of the class of "speed" or "volume" that lies nearest."""
        known = getattr(self, f"{kind}s")
        return min(range(len(known)), key=lambda i: abs(known[i] - value))

    def validate_speech(self):
        if self.hidden_size != 2 * self.speaker_embedding_size:
            raise ValueError(
                f"hidden_size is {self.hidden_size} and speaker_embedding_size {self.speaker_embedding_size}; voice and style, "
                "side by side, are added to the prior's input, so the first must be twice the second"
            )
        if self.flow_size % 2:
            raise ValueError(f"flow_size is {self.flow_size}; the flow couples two halves, so it must be even")
        if self.fft_size % self.hop_length or (self.fft_size - self.hop_length) % 2:
            raise ValueError(
                f"fft_size is {self.fft_size} and hop_length {self.hop_length}; the first must be a multiple of the second, and "
                "their difference even"
            )
        if self.vocoder_type == "hifigan" and prod(self.upsample_rates) != self.hop_length:
            raise ValueError(
                f"upsample_rates multiply to {prod(self.upsample_rates)}, but hop_length is {self.hop_length}; they must be equal"
            )
        if self.spectrogram_bins != self.fft_size // 2 + 1:
            raise ValueError(
                f"spectrogram_bins is {self.spectrogram_bins}; an fft_size of {self.fft_size} gives {self.fft_size // 2 + 1}"
            )


@strict
class EagleConfig(PreTrainedConfig):
    r"""
    Args:
        text_config: any causal language model of transformers (default `phi3`).
        vision_config: `clip_vision_model`, `siglip_vision_model` or `timm_wrapper`; null for a model without eyes.
        audio_config: `whisper`; null for a model without ears.
        speech_config: `eagle_speech`; null for a model that only writes.
        image_token_id: id of `<|image_pad|>`, the placeholder of one image token.
        audio_token_id: id of `<|audio_pad|>`, the placeholder of one audio token.
        image_markup_token_ids: ids of the tokens that frame crops (`<image> </image> <slice> </slice>`, row break). They
            are no text: a request of pictures and markup alone is refused.
        image_layout: how the processor cuts a picture into crops: "grid" or "overview" (what llama.cpp produces).
        image_projector_type: "resampler" (`num_image_tokens` learned queries) or "mlp2x_gelu" (one token a patch).
        image_projector_rank: each square matrix of the resampler is a product of two matrices of this rank, between 128
            and the language model's width; null for full matrices.
        num_image_tokens: tokens per crop.
        vision_feature_layer: index into the vision tower's hidden states; -2 is the output of its penultimate layer.
        vision_use_cls: the tower runs with its class token, which is dropped after it; false runs CLIP without one.
        audio_token_source: "encoder" (stacked encoder frames) or "decoder" (states of the decoder at its transcript).
        audio_layout: "trimmed" (tokens for the frames that hold sound) or "padded" (a full window each, as llama.cpp).
        audio_stack_factor: encoder frames joined into one token; 1 in decoder mode.
        audio_projector_hidden_size: width of the audio projector after its gate.
        audio_prompt_ids: decoder mode: ids that open every transcript (start, task, no timestamps); null for the audio
            tower's `decoder_start_token_id` alone.
        audio_language_ids: decoder mode: language ids of which the tower inserts the likeliest after the first prompt
            id, window by window; null for none.
        lm_head_bias: the head has a bias, as Mipha's has.
        tie_word_embeddings: share the embedding with `lm_head`; null takes the text config's value.
    """

    model_type = "eagle_slm"
    sub_configs_defaults: ClassVar = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="phi3"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model", optional=True),
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper", optional=True),
        "speech_config": SubConfigSpec(config_class=EagleSpeechConfig, model_type="eagle_speech", optional=True),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    speech_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32022
    audio_token_id: int = 32023
    image_markup_token_ids: list[int] | None = None
    image_layout: Literal["grid", "overview"] = "grid"
    image_projector_type: Literal["resampler", "mlp2x_gelu"] = "resampler"
    image_projector_rank: int | None = None
    num_image_tokens: int = 128
    vision_feature_layer: int = -2
    vision_use_cls: bool = True
    audio_token_source: Literal["encoder", "decoder"] = "encoder"
    audio_layout: Literal["trimmed", "padded"] = "trimmed"
    audio_stack_factor: int = 16
    audio_projector_hidden_size: int = 1088
    audio_prompt_ids: list[int] | None = None
    audio_language_ids: list[int] | None = None
    lm_head_bias: bool = False
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        model_type = kwargs.pop("model_type", self.model_type)
        if model_type != self.model_type:
            raise ValueError(
                f"model_type is {model_type!r}, so this is another model's configuration; it must be "
                f"{self.model_type!r}"
            )
        reject_unknown_keys("EagleConfig", kwargs, type(self))
        for name, spec in self.sub_configs_defaults.items():
            if (part := getattr(self, name)) is not None:
                reject_unknown_subconfig(name, part if isinstance(part, dict) else part.to_dict(), spec)
        self.auto_map = AUTO_MAP | (kwargs.pop("auto_map", None) or {})
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings

    @property
    def sampling_rate(self) -> int | None:
        """Samples a second of speech that the model speaks; None for a model that only writes."""
        return None if self.speech_config is None else self.speech_config.sampling_rate

    @property
    def unread_parts(self) -> tuple[str, ...]:
        """Parts of an EagleModel, by the beginnings of their names, that published towers have and no output depends on."""
        parts = ["vision_tower.post_layernorm", "vision_tower.head"]
        if self.vision_config is not None:
            layers = getattr(self.vision_config, "num_hidden_layers", 0)
            read = self.vision_feature_layer % (layers + 1)  # of the embeddings and each layer's output
            parts += [f"vision_tower.encoder.layers.{layer}." for layer in range(read, layers)]
            parts += [] if self.vision_use_cls else ["vision_tower.embeddings.class_embedding"]
        return tuple(parts)

    @property
    def patches_per_side(self) -> int | None:
        """Patches along one side of a crop; None where only the built tower knows (timm)."""
        if self.vision_config.model_type == "timm_wrapper":
            return None
        return self.vision_config.image_size // self.vision_config.patch_size

    def validate_towers_and_language_model(self):
        text = self.text_config
        if text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(text, "is_decoder", True) is False:
            raise ValueError(
                f"text_config.model_type is {text.model_type!r}, which writes no text from left to right; it must be a "
                "causal language model such as 'phi3'"
            )
        if self.vision_config is not None and self.vision_config.model_type not in VISION_TOWERS:
            raise ValueError(
                f"vision_config.model_type is {self.vision_config.model_type!r}; it must be one of "
                f"{', '.join(map(repr, VISION_TOWERS))}"
            )
        for name, width_key, heads_key in (
            ("text_config", "hidden_size", "num_attention_heads"),
            ("vision_config", "hidden_size", "num_attention_heads"),
            ("audio_config", "d_model", "encoder_attention_heads"),
        ):
            part = getattr(self, name)
            width, heads = getattr(part, width_key, None), getattr(part, heads_key, None)
            if width and heads and not getattr(part, "head_dim", None) and width % heads:
                raise ValueError(
                    f"{name}.{width_key} is {width} and {name}.{heads_key} {heads}; the width must be a multiple of the "
                    "number of heads"
                )

    def validate_placeholders(self):
        if self.image_token_id == self.audio_token_id:
            raise ValueError(f"image_token_id and audio_token_id are both {self.image_token_id}; they must differ")
        for key in ("image_token_id", "audio_token_id"):
            needed = self.vision_config if key == "image_token_id" else self.audio_config
            if needed is not None and not 0 <= getattr(self, key) < self.text_config.vocab_size:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but text_config.vocab_size is {self.text_config.vocab_size}; "
                    "it must be an id inside the vocabulary"
                )
            if needed is not None and getattr(self, key) == self.text_config.pad_token_id:
                raise ValueError(
                    f"{key} and text_config.pad_token_id are both {getattr(self, key)}, so padding would count as a "
                    "medium; they must differ"
                )
        for token in self.image_markup_token_ids or []:
            if not 0 <= token < self.text_config.vocab_size:
                raise ValueError(
                    f"image_markup_token_ids holds {token}, but text_config.vocab_size is {self.text_config.vocab_size}; "
                    "all must be ids inside the vocabulary"
                )

    def validate_vision(self):
        if self.vision_config is None:
            return
        tower = self.vision_config.model_type
        if self.patches_per_side == 0:
            raise ValueError(
                f"vision_config.image_size is {self.vision_config.image_size}, less than one patch of "
                f"{self.vision_config.patch_size} pixels; it must be at least as large"
            )
        if tower.startswith("siglip") and self.vision_use_cls:
            raise ValueError(f"vision_use_cls is true, but {tower} has no class token; set it to false")
        if tower == "timm_wrapper" and not self.vision_use_cls:
            raise ValueError(
                "vision_use_cls is false, but a timm tower runs as timm built it; set it to true, and drop the class "
                'token with vision_config.model_args = {"class_token": false} where the architecture allows it'
            )
        layers = getattr(self.vision_config, "num_hidden_layers", None)  # timm names its depth in the architecture
        if layers is not None and not -layers - 1 <= self.vision_feature_layer <= layers:
            raise ValueError(
                f"vision_feature_layer is {self.vision_feature_layer}, but the tower has {layers} layers; "
                f"it must lie between {-layers - 1} and {layers}"
            )

    def validate_image_projector(self):
        if self.vision_config is None:
            return
        if self.num_image_tokens < 1:
            raise ValueError(f"num_image_tokens is {self.num_image_tokens}; it must be at least 1")
        if self.image_projector_type == "resampler":
            self._check_resampler()
        else:
            self._check_mlp()

    def _check_resampler(self):
        width, rank = self.text_config.hidden_size, self.image_projector_rank
        if width % HEAD_WIDTH:
            raise ValueError(
                f"image_projector_type is 'resampler', whose heads are {HEAD_WIDTH} wide, but text_config.hidden_size "
                f"is {width}; it must be a multiple of {HEAD_WIDTH}"
            )
        if rank is not None and not HEAD_WIDTH <= rank < max(width, HEAD_WIDTH + 1):
            raise ValueError(
                f"image_projector_rank is {rank}; it must be null (full matrices) or at least {HEAD_WIDTH} and below "
                f"text_config.hidden_size ({width})"
            )

    def _check_mlp(self):
        if self.image_projector_rank is not None:
            raise ValueError(
                f"image_projector_rank is {self.image_projector_rank}, but image_projector_type 'mlp2x_gelu' has no "
                "factored matrices; it must be null"
            )
        patches = self.patches_per_side and self.patches_per_side**2
        if patches is not None and self.num_image_tokens != patches:
            raise ValueError(
                f"num_image_tokens is {self.num_image_tokens}, but image_projector_type 'mlp2x_gelu' gives one token a "
                f"patch; it must be {patches}"
            )

    def validate_audio(self):
        if self.audio_config is None:
            return
        if self.audio_config.model_type != "whisper":
            raise ValueError(f"audio_config.model_type is {self.audio_config.model_type!r}; it must be 'whisper'")
        for key in ("audio_stack_factor", "audio_projector_hidden_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if self.audio_token_source == "decoder":
            self._check_decoder_mode()
        else:
            self._check_encoder_mode()

    def _check_decoder_mode(self):
        if self.audio_stack_factor != 1:
            raise ValueError(
                f"audio_stack_factor is {self.audio_stack_factor}, but audio_token_source 'decoder' makes one audio token "
                "of one transcript token; it must be 1"
            )
        if self.audio_layout != "trimmed":
            raise ValueError(
                "audio_layout is 'padded', but audio_token_source 'decoder' makes as many tokens as the transcript has; "
                "it must be 'trimmed'"
            )
        for key in ("audio_prompt_ids", "audio_language_ids"):
            vocabulary = self.audio_config.vocab_size
            if any(not 0 <= token < vocabulary for token in getattr(self, key) or []):
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but audio_config.vocab_size is {vocabulary}; "
                    "all must be ids inside that vocabulary"
                )

    def _check_encoder_mode(self):
        for key in ("audio_prompt_ids", "audio_language_ids"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but audio_token_source 'encoder' has no decoder to prompt; "
                    "it must be null"
                )


try:  # lets `transformers serve` and the any-to-any pipeline find the class by its model type
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
except ImportError:  # the name moved: only those two conveniences are lost
    pass
else:
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault(EagleConfig.model_type, "EagleForConditionalGeneration")

EagleConfig.register_for_auto_class()  # save_pretrained copies this file

__all__ = ["EagleConfig"]
