"""EAGLE: text, pictures, video frames and sound in, text out.

    image  -> crops       -> vision tower -> resampler or MLP        \
    audio  -> 30 s windows -> audio tower -> stacked-frame projector  -> placeholders of the text -> language model

`EagleModel` is the backbone: it encodes, projects and merges (trainers call it directly); the head and `generate` are in
`EagleForConditionalGeneration`. Shapes in this file: crops N, windows W, batch B, sequence T, language-model width D.

    model = EagleForConditionalGeneration(EagleConfig.from_json_file("configs/eagle-tiny.json"))
"""

from dataclasses import dataclass
from difflib import get_close_matches
from math import isqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, Cache, CLIPVisionModel, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder, WhisperPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, torch_compilable_check

from .configuration_eagle import HEAD_WIDTH, EagleConfig
from .generation_eagle import EagleGenerationMixin, check_counts, context_error
from .speech_eagle import EagleSpeechDecoder, EagleSpeechProjector

# Scale of W_q and W_k in the local start: attention logits are its square times the similarity of two positions, so that
# most of a query's attention falls on its own neighbourhood (a test holds it there).
LOCAL_START_SCALE = 2.0
# Start of LN_kv's weight: patch features enter the keys this much weaker than positions, or random features would
# drown them. The values lose nothing: LN_post rescales what is pooled.
LOCAL_START_CONTENT = 0.25


# --- image side ---------------------------------------------------------------------------------------------------------


def position_code(column: torch.Tensor, row: torch.Tensor, width: int) -> torch.Tensor:
    """Sine/cosine code [sin w, cos w, sin h, cos h], base 10000, of positions in patches: (n,), (n,) -> (n, width).

    Source: llama.cpp's MiniCPM-V resampler graph, which computes the same numbers (float32).
    """
    frequency = 10000.0 ** -(torch.arange(width // 4, device=column.device, dtype=torch.float32) / (width // 4))
    w, h = column.float()[:, None] * frequency, row.float()[:, None] * frequency
    return torch.cat([w.sin(), w.cos(), h.sin(), h.cos()], dim=-1)


def grid_code(rows: int, columns: int, width: int, step_h=1.0, step_w=1.0, device=None) -> torch.Tensor:
    """`position_code` of the cell centres of a grid, row-major; a step is a cell's side in patches."""
    cells = torch.arange(rows * columns, device=device)
    return position_code(
        (cells % columns + 0.5) * step_w - 0.5,
        (cells.div(columns, rounding_mode="floor") + 0.5) * step_h - 0.5,
        width,
    )


class EagleFactoredLinear(nn.Module):
    """A linear layer whose matrix is the product of `up` (out, rank) and `down` (rank, in)."""

    def __init__(self, width_in: int, width_out: int, rank: int, bias: bool):
        super().__init__()
        self.down = nn.Linear(width_in, rank, bias=False)
        self.up = nn.Linear(rank, width_out, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))

    def merged(self) -> nn.Linear:
        """The same layer with the two factors multiplied out (product in float32)."""
        up, down = self.up, self.down
        linear = nn.Linear(down.in_features, up.out_features, up.bias is not None, up.weight.device, up.weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(up.weight.float() @ down.weight.float())
        linear.bias = up.bias
        return linear


def square_linear(width: int, rank: int | None, bias: bool = True) -> nn.Module:
    return nn.Linear(width, width, bias) if rank is None else EagleFactoredLinear(width, width, rank, bias)


class EagleResampler(nn.Module):
    """Learned queries that pool a crop's patches: (N, patches, vision width) -> (N, num_image_tokens, D).

    kv = LN_kv(W_kv x), K = W_k (kv + P) + b_k, V = W_v kv + b_v, Q = W_q LN_q(query) + b_q, heads 128 wide,
    out = W_proj LN_post(W_o softmax(QK')V + b_o): the mathematics of llama.cpp's MiniCPM-V resampler (itself of
    Qwen-VL's), so that a stock runtime can run it. With `image_projector_rank` the five square matrices are factored.
    """

    def __init__(self, config: EagleConfig, vision_width: int, patches_per_side: int):
        super().__init__()
        width, rank = config.text_config.hidden_size, config.image_projector_rank
        eps = getattr(config.vision_config, "layer_norm_eps", 1e-6)  # timm's default where the config names none
        self.patches_per_side = patches_per_side
        self.query = nn.Parameter(torch.empty(config.num_image_tokens, width))
        self.kv_proj = nn.Linear(vision_width, width, bias=False)
        self.ln_q = nn.LayerNorm(width, eps=eps)
        self.ln_kv = nn.LayerNorm(width, eps=eps)
        self.q_proj = square_linear(width, rank)
        self.k_proj = square_linear(width, rank)
        self.v_proj = square_linear(width, rank)
        self.out_proj = square_linear(width, rank)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.proj = square_linear(width, rank, bias=False)

    def attention_inputs(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Q (1, heads, tokens, 128), K and V (N, heads, patches, 128)."""
        kv = self.ln_kv(self.kv_proj(features))
        side = isqrt(kv.shape[1])
        code = grid_code(side, side, kv.shape[-1], device=kv.device).to(kv.dtype)
        q, k, v = self.q_proj(self.ln_q(self.query))[None], self.k_proj(kv + code), self.v_proj(kv)
        return tuple(x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for x in (q, k, v))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attention_inputs(features)
        pooled = F.scaled_dot_product_attention(q.expand(k.shape[0], -1, -1, -1), k, v)
        pooled = pooled.transpose(1, 2).flatten(2)
        return self.proj(self.ln_post(self.out_proj(pooled)))

    @torch.no_grad()
    def init_weights(self, std: float):
        """Random values and projections, and the local start: at step 0 each query pools its own neighbourhood.

        The queries are the position code of a grid of cells over the crop (16 columns by 8 rows for 128: text is wider
        than high). LN_q takes the mean out of that code, its bias gives it back. W_q and W_k are near scaled identities
        that give every head the same 32 frequencies of all four parts of the code, so that each head sees both axes.
        """
        code = self.query_code()
        init.copy_(self.query, code)
        init.copy_(self.ln_q.bias, (code.mean(-1) / code.std(-1)).mean().expand(code.shape[1]))
        init.constant_(self.ln_kv.weight, LOCAL_START_CONTENT)
        for linear in (self.q_proj, self.k_proj):
            init_head_identity(linear)
        for linear in (self.v_proj, self.out_proj, self.proj):
            init_normal(linear, std)

    def query_code(self) -> torch.Tensor:
        tokens, width = self.query.shape
        rows = max(n for n in range(1, isqrt(max(tokens // 2, 1)) + 1) if tokens % n == 0)
        columns, side = tokens // rows, self.patches_per_side
        return grid_code(rows, columns, width, side / rows, side / columns, self.query.device)

    def merge_factors(self):
        """Replaces every factored matrix by its product: what is quantized and shipped."""
        for name, module in list(self.named_children()):
            if isinstance(module, EagleFactoredLinear):
                setattr(self, name, module.merged())


def init_normal(linear: nn.Module, std: float):
    """Entries of the matrix, or of the product of its two factors, get standard deviation `std`."""
    if isinstance(linear, nn.Linear):
        init.normal_(linear.weight, std=std)
    else:
        factor_std = (std / linear.down.out_features**0.5) ** 0.5
        init.normal_(linear.down.weight, std=factor_std)
        init.normal_(linear.up.weight, std=factor_std)


def head_selection(width: int) -> torch.Tensor:
    """(128, width) rows of the identity: 32 frequencies of each of the code's four parts, the finer half of the range."""
    stride = max(width // HEAD_WIDTH // 2, 1)
    frequencies = torch.arange(HEAD_WIDTH // 4) * stride
    parts = torch.arange(4)[:, None] * (width // 4)
    return torch.eye(width)[(parts + frequencies).flatten()]


def init_head_identity(linear: nn.Module):
    """The scaled identity that maps the same 128 dimensions of the code to every head, plus a little noise."""
    if isinstance(linear, nn.Linear):
        identity = head_selection(linear.in_features).repeat(linear.out_features // HEAD_WIDTH, 1)
        init_near(linear.weight, identity * LOCAL_START_SCALE)
    else:
        rank, width = linear.down.weight.shape
        init_near(
            linear.down.weight, F.pad(head_selection(width), (0, 0, 0, rank - HEAD_WIDTH)) * LOCAL_START_SCALE**0.5
        )
        init_near(linear.up.weight, torch.eye(HEAD_WIDTH, rank).repeat(width // HEAD_WIDTH, 1) * LOCAL_START_SCALE**0.5)


def init_near(weight: torch.Tensor, target: torch.Tensor):
    """`target` plus noise of a tenth of a unit per output; the noise lets the unused dimensions learn."""
    init.copy_(weight, target.to(weight) + torch.randn_like(weight) * (0.1 * weight.shape[1] ** -0.5))


class EagleMlpProjector(nn.Module):
    """`mlp2x_gelu` of LLaVA, Bunny and Mipha: one token per patch, (N, patches, vision width) -> (N, patches, D)."""

    def __init__(self, config: EagleConfig, vision_width: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, config.text_config.hidden_size)
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))


class EaglePatchEmbeddings(CLIPVisionEmbeddings):
    """CLIP's embeddings without the class token. Parameters keep CLIP's names and shapes, so published weights load."""

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        return patches.flatten(2).transpose(1, 2) + self.position_embedding(self.position_ids[:, 1:])


class EaglePatchVisionModel(CLIPVisionModel):
    """CLIP's vision tower run on the patches alone, as llama.cpp's resampler graph runs it."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = EaglePatchEmbeddings(config)
        self.post_init()


# --- audio side ---------------------------------------------------------------------------------------------------------


@dataclass
class EagleAudioFeatures(BaseModelOutputWithPooling):
    """The audio tower's states; `pooler_output` (audio tokens, D) once projected. Decoder mode adds what was heard:
    `audio_transcript_ids` (W, L), padded on the right with the tower's end token, and `audio_transcript_mask` (W, L)."""

    audio_transcript_ids: torch.LongTensor | None = None
    audio_transcript_mask: torch.LongTensor | None = None


class EagleAudioTower(WhisperPreTrainedModel):
    """Whisper's encoder, and in decoder mode its decoder, behind one `forward` (exporters call towers that way).

    Sub-modules carry WhisperModel's names, so its weights load under `audio_tower.`; the decoder's output matrix is its
    embedding, as in Whisper.
    """

    def __init__(self, config: EagleConfig):
        super().__init__(config.audio_config)
        self.encoder = WhisperEncoder._from_config(config.audio_config)
        self.decoder = None
        if config.audio_token_source == "decoder":
            self.decoder = WhisperDecoder._from_config(config.audio_config)
            self.prompt_ids = config.audio_prompt_ids or [config.audio_config.decoder_start_token_id]
            self.language_ids = config.audio_language_ids
        self.post_init()

    def forward(
        self,
        input_features: torch.Tensor,
        transcript_ids: torch.LongTensor | None = None,
        transcript_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EagleAudioFeatures:
        """(W, mels, 3000) log-mel windows of 30 s -> encoder states (W, 1500, width), 50 a second.

        In decoder mode: the decoder's states (W, L, width), each at the place that emits its token of the transcript
        (W, L), which the tower writes itself, greedily, where none is given.
        """
        encoded = self.encoder(input_features.to(self.dtype), return_dict=True, **kwargs)
        if self.decoder is None:
            return EagleAudioFeatures(**encoded)
        prompt = self.prompt(encoded.last_hidden_state)
        if transcript_ids is None:
            transcript_ids, transcript_mask = self.transcribe(encoded.last_hidden_state, prompt)
        self.check_transcript(transcript_ids, prompt)
        decoded = self.decoder(
            input_ids=torch.cat([prompt, transcript_ids], dim=1)[:, : self.config.max_target_positions],
            encoder_hidden_states=encoded.last_hidden_state,
            use_cache=False,
            return_dict=True,
            **kwargs,
        )
        emitting = slice(prompt.shape[1] - 1, prompt.shape[1] - 1 + transcript_ids.shape[1])
        return EagleAudioFeatures(
            last_hidden_state=decoded.last_hidden_state[:, emitting],
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
            audio_transcript_ids=transcript_ids,
            audio_transcript_mask=transcript_mask,
        )

    def check_transcript(self, transcript_ids: torch.LongTensor, prompt: torch.LongTensor):
        if transcript_ids.shape[0] != prompt.shape[0]:
            raise ValueError(
                f"audio_transcript_ids has {transcript_ids.shape[0]} rows, but there are {prompt.shape[0]} audio windows; "
                "give one row a window"
            )
        longest = self.config.max_target_positions - prompt.shape[1] + 1
        if transcript_ids.shape[1] > longest:
            raise ValueError(
                f"audio_transcript_ids is {transcript_ids.shape[1]} tokens long, but the audio decoder has room for "
                f"{longest} a window"
            )

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.decoder.embed_tokens.weight)

    @torch.no_grad()
    def prompt(self, encoder_states: torch.Tensor) -> torch.LongTensor:
        """Ids that open each window's transcript, (W, P), with the likeliest of `audio_language_ids` in second place."""
        ids = torch.tensor(self.prompt_ids, device=encoder_states.device).expand(encoder_states.shape[0], -1)
        if self.language_ids is None:
            return ids
        first = self.decoder(input_ids=ids[:, :1], encoder_hidden_states=encoder_states, use_cache=False)
        languages = torch.tensor(self.language_ids, device=ids.device)
        heard = languages[self.logits(first.last_hidden_state[:, -1])[:, languages].argmax(-1)]
        return torch.cat([ids[:, :1], heard[:, None], ids[:, 1:]], dim=1)

    @torch.no_grad()
    def transcribe(self, encoder_states: torch.Tensor, prompt: torch.LongTensor):
        """The greedy transcript of each window: ids (W, L) without prompt and end token, and their mask (W, L)."""
        cache, end = EncoderDecoderCache(DynamicCache(), DynamicCache()), self.config.eos_token_id
        tokens, running = prompt, torch.ones_like(prompt[:, :1], dtype=torch.bool)
        written = [prompt[:, :0]]
        for _ in range(self.config.max_target_positions - prompt.shape[1] + 1):
            states = self.decoder(
                input_ids=tokens, encoder_hidden_states=encoder_states, past_key_values=cache, use_cache=True
            ).last_hidden_state
            tokens = self.logits(states[:, -1:]).argmax(-1).where(running, end)
            running = tokens != end
            if not running.any():
                break
            written.append(tokens)
        ids = torch.cat(written, dim=1)
        return ids, (ids != end).long()


class EagleAudioProjector(nn.Module):
    """Stacked tower states -> audio tokens: (n, audio_stack_factor * tower width) -> (n, D).

    RMSNorm -> Linear -> first half * silu(second half) -> RMSNorm -> Linear, llama.cpp's `ultravox` graph.
    """

    def __init__(self, config: EagleConfig):
        super().__init__()
        stacked = config.audio_config.d_model * config.audio_stack_factor
        hidden = config.audio_projector_hidden_size
        self.ln_pre = nn.RMSNorm(stacked, eps=1e-6)
        self.linear_1 = nn.Linear(stacked, 2 * hidden, bias=False)
        self.ln_mid = nn.RMSNorm(hidden, eps=1e-6)
        self.linear_2 = nn.Linear(hidden, config.text_config.hidden_size, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        value, gate = self.linear_1(self.ln_pre(states)).chunk(2, dim=-1)
        return self.linear_2(self.ln_mid(value * F.silu(gate)))


# --- what can be wrong with a request ------------------------------------------------------------------------------------


def reject_unknown_arguments(kwargs: dict):
    """A misspelt `input_features` would otherwise vanish in the language model, and training would be deaf in silence."""
    known = set(TransformersKwargs.__annotations__)
    for name in kwargs:
        if name not in known:
            inputs = list(EagleModel.forward.__wrapped__.__annotations__)
            closest = get_close_matches(name, inputs, n=1, cutoff=0.0)[0]
            raise TypeError(
                f"EagleModel.forward got an unexpected argument {name!r}; the closest it knows is {closest!r}"
            )


# --- the model ----------------------------------------------------------------------------------------------------------


@dataclass
class EagleModelOutputWithPast(BaseModelOutputWithPast):
    """`image_hidden_states` (image tokens, D) and `audio_hidden_states` (audio tokens, D): the projected features."""

    image_hidden_states: torch.Tensor | None = None
    audio_hidden_states: torch.Tensor | None = None


@dataclass
class EagleCausalLMOutputWithPast(CausalLMOutputWithPast):
    """As `EagleModelOutputWithPast`, with `loss` and `logits`."""

    image_hidden_states: torch.Tensor | None = None
    audio_hidden_states: torch.Tensor | None = None


class EaglePreTrainedModel(PreTrainedModel):
    config: EagleConfig
    base_model_prefix = "model"
    input_modalities = ("image", "audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["EagleResampler", "EagleAudioProjector"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, EagleResampler):
            module.init_weights(getattr(self.config.text_config, "initializer_range", 0.02))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """transformers' own, but a checkpoint that lacks weights is a ValueError: transformers would fill them with random
        numbers and only log it. Who asks for the loading info gets the model, and decides."""
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, info
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} of the weights that {cls.__name__} needs, such as "
                f"{missing[0]!r}; to start those at random, load with output_loading_info=True"
            )
        return model


class EagleModel(EaglePreTrainedModel):
    """The backbone: towers, projectors and language model, without a head."""

    def __init__(self, config: EagleConfig):
        super().__init__(config)
        if config.vision_config is not None:
            self._build_vision(config)
        if config.audio_config is not None:
            self.audio_tower = EagleAudioTower(config)
            self.audio_projector = EagleAudioProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def _build_vision(self, config: EagleConfig):
        if config.vision_use_cls or config.vision_config.model_type != "clip_vision_model":
            self.vision_tower = AutoModel.from_config(config.vision_config)
        else:
            self.vision_tower = EaglePatchVisionModel._from_config(config.vision_config)
        if config.vision_config.model_type == "timm_wrapper":
            width = self.vision_tower.timm_model.num_features
            side = self.vision_tower.timm_model.patch_embed.grid_size[0]
            self.crop_size = self.vision_tower.timm_model.patch_embed.img_size[0]
        else:
            width, side = config.vision_config.hidden_size, config.patches_per_side
            self.crop_size = config.vision_config.image_size
        if config.image_projector_type == "resampler":
            self.multi_modal_projector = EagleResampler(config, width, side)
        else:
            self.multi_modal_projector = EagleMlpProjector(config, width)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """Crops (N, 3, height, width), float -> `pooler_output` (N, num_image_tokens, D)."""
        if self.config.vision_config is None:
            raise ValueError("pixel_values is given, but the model has no vision tower (vision_config is null)")
        layer = self.config.vision_feature_layer
        is_timm = self.config.vision_config.model_type == "timm_wrapper"
        if not kwargs.get("output_hidden_states"):
            kwargs["output_hidden_states"] = True if is_timm else [layer]
        outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), return_dict=True, **kwargs)
        features = outputs.hidden_states[layer]
        if is_timm:  # NCHW, without class token
            features = features.flatten(2).transpose(1, 2)
        elif self.config.vision_use_cls:
            features = features[:, 1:]
        outputs.pooler_output = self.multi_modal_projector(features)
        return outputs

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        audio_transcript_ids: torch.LongTensor | None = None,
        audio_transcript_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EagleAudioFeatures:
        """Log-mel windows (W, mels, 3000), float -> `pooler_output` (audio tokens of all windows, D).

        Encoder mode: `input_features_mask` (W, 3000) is 1 where a frame (10 ms) holds sound; a window gives
        ceil(its encoder frames / audio_stack_factor) tokens. Without a mask, or with one of ones (the padded layout), that
        is all of them: 94 at a stack of 16.
        Decoder mode: one token per token of the transcript, `audio_transcript_ids` (W, L) right-padded and its mask; the
        tower writes the transcript where none is given.
        """
        if self.config.audio_config is None:
            raise ValueError("input_features is given, but the model has no audio tower (audio_config is null)")
        if input_features_mask is not None and len(input_features_mask) != len(input_features):
            raise ValueError(
                f"input_features has {len(input_features)} windows, but input_features_mask {len(input_features_mask)}; "
                "give one row of the mask a window"
            )
        if (audio_transcript_ids is None) != (audio_transcript_mask is None):
            raise ValueError("give audio_transcript_ids and audio_transcript_mask together")
        outputs = self.audio_tower(input_features, audio_transcript_ids, audio_transcript_mask, **kwargs)
        if self.audio_tower.decoder is None:
            states = self.stack_frames(outputs.last_hidden_state, input_features_mask)
        else:
            states = outputs.last_hidden_state[outputs.audio_transcript_mask.bool()]
        outputs.pooler_output = self.audio_projector(states)
        return outputs

    def stack_frames(self, states: torch.Tensor, input_features_mask: torch.Tensor | None) -> torch.Tensor:
        """Encoder states (W, 1500, width) -> (audio tokens, audio_stack_factor * width), zeros after the last frame."""
        stack = self.config.audio_stack_factor
        states = F.pad(states, (0, 0, 0, -states.shape[1] % stack)).unflatten(1, (-1, stack)).flatten(2)
        if input_features_mask is None:
            return states.flatten(0, 1)
        mel_frames = input_features_mask.sum(-1, keepdim=True).to(states.device)
        tokens = (mel_frames + 2 * stack - 1).div(2 * stack, rounding_mode="floor")  # the encoder halves the frame rate
        return states[torch.arange(states.shape[1], device=states.device) < tokens]

    def placeholder_mask(self, input_ids, inputs_embeds, kind: str) -> torch.Tensor:
        """(B, T) true at the placeholders of "image" or "audio"; by their embedding where only embeddings are given."""
        token_id = {"image": self.config.image_token_id, "audio": self.config.audio_token_id}[kind]
        if input_ids is not None:
            return input_ids == token_id
        embedding = self.get_input_embeddings()(torch.tensor(token_id, device=inputs_embeds.device))
        return (inputs_embeds == embedding).all(-1)

    def merge(self, input_ids, inputs_embeds, features, kind: str) -> torch.Tensor:
        """Puts `features` (n, D) at the placeholders of the text, in order."""
        mask = self.placeholder_mask(input_ids, inputs_embeds, kind)
        check_counts(mask, features, kind)
        return inputs_embeds.masked_scatter(mask[..., None], features.to(inputs_embeds))

    def check_request(self, input_ids, attention_mask, image_hidden_states, audio_hidden_states):
        """Raises ValueError where placeholders and media differ in number, and for pictures with neither text nor sound."""
        for kind, features in (("image", image_hidden_states), ("audio", audio_hidden_states)):
            mask = self.placeholder_mask(input_ids, None, kind)
            check_counts(mask, torch.empty(0) if features is None else features, kind)
        if image_hidden_states is None:
            return
        text = self.config.text_config
        silent = [self.config.image_token_id, text.bos_token_id, text.pad_token_id]
        for ids in (self.config.image_markup_token_ids, text.eos_token_id):
            silent += ids if isinstance(ids, list) else [ids]
        silent = torch.tensor([token for token in silent if token is not None], device=input_ids.device)
        says = ~torch.isin(input_ids, silent)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            says = says & attention_mask[:, -input_ids.shape[1] :].bool()
        has_image = (input_ids == self.config.image_token_id).any(-1)
        torch_compilable_check(
            (says.any(-1) | ~has_image).all(),
            "a request holds pictures but neither text nor sound: add a question, in writing or spoken",
        )

    def others_wait_in(self, *modules: str) -> bool:
        """Whether other processes of a training wait until this one has been through `modules`: for its gradients (DDP), or
        for its part of the parameters (FSDP2 makes DTensors of them, ZeRO-3 gives them a `ds_id`)."""
        distributed = torch.distributed
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return False
        if distributed.get_world_size() == 1:
            return False
        from torch.distributed.tensor import DTensor  # a torch built without torch.distributed lacks it

        parameters = [p for name in modules if hasattr(self, name) for p in getattr(self, name).parameters()]
        return any(p.requires_grad or isinstance(p, DTensor) or hasattr(p, "ds_id") for p in parameters)

    def blank_image(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """0 times the tokens of a blank crop: takes this process through vision tower and projector, and changes nothing."""
        crop = inputs_embeds.new_zeros(1, 3, self.crop_size, self.crop_size)
        features = self.get_image_features(crop, return_dict=True).pooler_output
        return (0 * features).sum().to(inputs_embeds)

    def blank_audio(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The same with a silent window, whose transcript in decoder mode is the end token alone."""
        audio, transcript = self.config.audio_config, (None, None)
        window = inputs_embeds.new_zeros(1, audio.num_mel_bins, 2 * audio.max_source_positions)
        if self.audio_tower.decoder is not None:
            ids = torch.full((1, 1), audio.eos_token_id, device=inputs_embeds.device)
            transcript = ids, torch.ones_like(ids)
        features = self.get_audio_features(window, None, *transcript, return_dict=True).pooler_output
        return (0 * features).sum().to(inputs_embeds)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_sizes: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_transcript_ids: torch.LongTensor | None = None,
        audio_transcript_mask: torch.Tensor | None = None,
        image_hidden_states: torch.FloatTensor | None = None,
        audio_hidden_states: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EagleModelOutputWithPast:
        """Encodes the media, puts their tokens at the placeholders and runs the language model.

        Args:
            input_ids: (B, T); or `inputs_embeds` (B, T, D), exactly one of the two.
            attention_mask: (B, T), 0 at padding, on either side.
            pixel_values: (N, 3, height, width), the crops of all samples in order of appearance.
            image_sizes: not needed here; accepted because the processor gives it.
            input_features: (W, mels, 3000), the 30 s windows of all samples in order of appearance.
            input_features_mask: (W, 3000), see `get_audio_features`.
            audio_transcript_ids, audio_transcript_mask: (W, L), decoder mode only, see `get_audio_features`; the text holds
                as many placeholders as the mask has ones. (Only `generate` takes sound without its transcript.)
            image_hidden_states, audio_hidden_states: (n, D), the projected media where they are known already, instead of
                pixel_values and input_features.

        Raises:
            ValueError: both or none of `input_ids` and `inputs_embeds`; counts of placeholders and media that differ;
                pictures without text or sound; decoder mode without transcript; more tokens than the context holds.
            TypeError: an argument that nobody knows.
        """
        reject_unknown_arguments(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if inputs_embeds.shape[1] > self.config.text_config.max_position_embeddings:
            raise ValueError(context_error(inputs_embeds.shape[1], self.config))

        if pixel_values is not None:
            image_hidden_states = self.get_image_features(pixel_values, return_dict=True).pooler_output.flatten(0, 1)
        elif self.others_wait_in("vision_tower", "multi_modal_projector"):
            inputs_embeds = inputs_embeds + self.blank_image(inputs_embeds)
        if input_features is not None:
            if self.config.audio_token_source == "decoder" and audio_transcript_ids is None:
                raise ValueError(
                    "audio_token_source is 'decoder': forward needs audio_transcript_ids and audio_transcript_mask; "
                    "generate() has the audio tower write them"
                )
            audio_hidden_states = self.get_audio_features(
                input_features, input_features_mask, audio_transcript_ids, audio_transcript_mask, return_dict=True
            ).pooler_output
        elif self.others_wait_in("audio_tower", "audio_projector"):
            inputs_embeds = inputs_embeds + self.blank_audio(inputs_embeds)
        is_prefill = past_key_values is None or (inputs_embeds.shape[1] > 1 and past_key_values.get_seq_length() == 0)
        if input_ids is not None and is_prefill:
            self.check_request(input_ids, attention_mask, image_hidden_states, audio_hidden_states)
        if image_hidden_states is not None:
            inputs_embeds = self.merge(input_ids, inputs_embeds, image_hidden_states, "image")
        if audio_hidden_states is not None:
            inputs_embeds = self.merge(input_ids, inputs_embeds, audio_hidden_states, "audio")

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return EagleModelOutputWithPast(
            **outputs, image_hidden_states=image_hidden_states, audio_hidden_states=audio_hidden_states
        )


class EagleForConditionalGeneration(EaglePreTrainedModel, EagleGenerationMixin):
    """EAGLE with its language-model head."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan: ClassVar = {"lm_head": "colwise_gather_output"}
    def __init__(self, config: EagleConfig):
        super().__init__(config)
        self.model = EagleModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=config.lm_head_bias)
        if config.speech_config is not None:
            self.speech_projector = EagleSpeechProjector(text.hidden_size, config.speech_config)
            self.speech_decoder = EagleSpeechDecoder._from_config(config.speech_config)
        self.post_init()

    @property
    def output_modalities(self) -> tuple[str, ...]:
        return ("text",) if self.config.speech_config is None else ("text", "audio")

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]):
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_audio_features(self, input_features: torch.Tensor, *args, **kwargs: Unpack[TransformersKwargs]):
        return self.model.get_audio_features(input_features, *args, **kwargs)

    def merge_factors(self):
        """Multiplies the image projector's factors out, in place and in the configuration; call before quantization."""
        if self.config.vision_config is not None and self.config.image_projector_rank is not None:
            self.model.multi_modal_projector.merge_factors()
            self.config.image_projector_rank = None

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_sizes: torch.LongTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_transcript_ids: torch.LongTensor | None = None,
        audio_transcript_mask: torch.Tensor | None = None,
        image_hidden_states: torch.FloatTensor | None = None,
        audio_hidden_states: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EagleCausalLMOutputWithPast:
        """See `EagleModel.forward`. `labels` (B, T) are ids or -100; `shift_labels` replaces them where a trainer that
        splits sequences has shifted them already; `logits_to_keep` is the number of last positions (0: all) or their
        indices, or without labels a bool mask (B, T) of the positions. Returns float `logits` (B, kept positions,
        vocab_size), with a mask (kept positions, vocab_size), and, with labels, `loss`."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            input_features=input_features,
            input_features_mask=input_features_mask,
            audio_transcript_ids=audio_transcript_ids,
            audio_transcript_mask=audio_transcript_mask,
            image_hidden_states=image_hidden_states,
            audio_hidden_states=audio_hidden_states,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        is_mask = isinstance(kept, torch.Tensor) and kept.dtype == torch.bool
        logits = self.lm_head(outputs.last_hidden_state[kept if is_mask else (slice(None), kept)])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], shift_labels=shift_labels, **kwargs
            )
        return EagleCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            audio_hidden_states=outputs.audio_hidden_states,
        )


class EagleForTextToWaveform(EagleForConditionalGeneration):
    """The same model, which speaks unless it is asked for text: what `pipeline("text-to-audio")` loads."""

    def generate(self, inputs=None, generation_config=None, generation_mode="audio", **kwargs):
        return super().generate(inputs, generation_config, generation_mode, **kwargs)


EagleModel.register_for_auto_class("AutoModel")  # save_pretrained copies this file and its siblings
EagleForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")

__all__ = ["EagleForConditionalGeneration", "EagleForTextToWaveform", "EagleModel", "EaglePreTrainedModel"]
