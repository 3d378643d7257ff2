"""EAGLE: text, pictures, video frames and sound in, text out.

    image  -> crops       -> vision tower -> resampler or MLP        \
    audio  -> 30 s windows -> audio tower -> stacked-frame projector  -> placeholders of the text -> language model

`EagleModel` is the backbone: it encodes, projects and merges (trainers call it directly); the head and `generate` are in
`EagleForConditionalGeneration`. Shapes in this file: crops N, windows W, batch B, sequence T, language-model width D.

    model = EagleForConditionalGeneration(EagleConfig.from_json_file("configs/eagle-tiny.json"))
"""

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, Cache, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, torch_compilable_check

from .configuration_eagle import HEAD_WIDTH, EagleConfig

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
            if hasattr(module, "merged"):
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
        init_near(linear.down.weight, F.pad(head_selection(width), (0, 0, 0, rank - HEAD_WIDTH)) * LOCAL_START_SCALE**0.5)
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
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight[1:]


class EaglePatchVisionModel(CLIPVisionModel):
    """CLIP's vision tower run on the patches alone, as llama.cpp's resampler graph runs it."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = EaglePatchEmbeddings(config)
        self.post_init()


# --- audio side ---------------------------------------------------------------------------------------------------------


class EagleAudioTower(nn.Module):
    """Whisper's encoder, and in decoder mode its decoder, behind one `forward` (exporters call towers that way)."""

    def __init__(self, config: EagleConfig):
        super().__init__()
        self.config = config.audio_config
        self.encoder = WhisperEncoder._from_config(config.audio_config)

    def forward(self, input_features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """(W, mels, 3000) log-mel windows of 30 s -> states (W, 1500, width), 50 a second."""
        return self.encoder(input_features.to(self.encoder.dtype), **kwargs)


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
        else:
            width, side = config.vision_config.hidden_size, config.patches_per_side
        if config.image_projector_type == "resampler":
            self.multi_modal_projector = EagleResampler(config, width, side)
        else:
            self.multi_modal_projector = EagleMlpProjector(config, width)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """Crops (N, 3, height, width), float -> `pooler_output` (N, num_image_tokens, D)."""
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Log-mel windows (W, mels, 3000), float -> `pooler_output` (audio tokens of all windows, D).

        `input_features_mask` (W, 3000) is 1 where a frame (10 ms) holds sound; without it, and in the padded layout, every
        frame counts. A window gives ceil(encoder frames / audio_stack_factor) tokens.
        """
        outputs = self.audio_tower(input_features, return_dict=True, **kwargs)
        stack = self.config.audio_stack_factor
        states = F.pad(outputs.last_hidden_state, (0, 0, 0, -outputs.last_hidden_state.shape[1] % stack))
        states = states.unflatten(1, (-1, stack)).flatten(2)
        if input_features_mask is None or self.config.audio_layout == "padded":
            states = states.flatten(0, 1)
        else:
            frames = input_features_mask.sum(-1, keepdim=True).add(1).div(2, rounding_mode="floor")
            tokens = frames.add(stack - 1).div(stack, rounding_mode="floor")
            states = states[torch.arange(states.shape[1], device=states.device) < tokens.to(states.device)]
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.audio_projector(states),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def placeholder_mask(self, input_ids, inputs_embeds, token_id: int) -> torch.Tensor:
        """(B, T) true at the placeholders; found by their embedding where only embeddings are given."""
        if input_ids is not None:
            return input_ids == token_id
        embedding = self.get_input_embeddings()(torch.tensor(token_id, device=inputs_embeds.device))
        return (inputs_embeds == embedding).all(-1)

    def merge(self, inputs_embeds, mask, features, kind: str) -> torch.Tensor:
        """Puts `features` (n, D) at the true places of `mask` (B, T), in order."""
        torch_compilable_check(
            mask.sum() == features.shape[0],
            lambda: f"the text holds {int(mask.sum())} {kind} placeholders, but the {kind} input gives "
            f"{features.shape[0]} {kind} tokens; the two must be equal",
        )
        return inputs_embeds.masked_scatter(mask[..., None], features.to(inputs_embeds))

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

        Raises:
            ValueError: both or none of `input_ids` and `inputs_embeds`; counts of placeholders and media that differ.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_features = audio_features = None
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values, return_dict=True).pooler_output.flatten(0, 1)
            mask = self.placeholder_mask(input_ids, inputs_embeds, self.config.image_token_id)
            inputs_embeds = self.merge(inputs_embeds, mask, image_features, "image")
        if input_features is not None:
            audio_features = self.get_audio_features(input_features, input_features_mask, return_dict=True).pooler_output
            mask = self.placeholder_mask(input_ids, inputs_embeds, self.config.audio_token_id)
            inputs_embeds = self.merge(inputs_embeds, mask, audio_features, "audio")

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return EagleModelOutputWithPast(**outputs, image_hidden_states=image_features, audio_hidden_states=audio_features)


class EagleForConditionalGeneration(EaglePreTrainedModel, GenerationMixin):
    """EAGLE with its language-model head."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan: ClassVar = {"lm_head": "colwise_gather_output"}
    output_modalities = ("text",)

    def __init__(self, config: EagleConfig):
        super().__init__(config)
        self.model = EagleModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]):
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_audio_features(self, input_features: torch.Tensor, input_features_mask=None, **kwargs):
        return self.model.get_audio_features(input_features, input_features_mask, **kwargs)

    def merge_factors(self):
        """Multiplies the image projector's factors out, in place and in the configuration; call before quantization."""
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
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EagleCausalLMOutputWithPast:
        """See `EagleModel.forward`. `labels` (B, T) are ids or -100; `logits_to_keep` the number of last positions (0: all)
        or their indices. Returns float `logits` (B, kept positions, vocab_size) and, with labels, `loss`."""
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
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return EagleCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            audio_hidden_states=outputs.audio_hidden_states,
        )


EagleModel.register_for_auto_class("AutoModel")  # save_pretrained copies this file and its siblings
EagleForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")

__all__ = ["EagleForConditionalGeneration", "EagleModel", "EaglePreTrainedModel"]
