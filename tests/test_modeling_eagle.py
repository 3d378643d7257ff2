"""The model: towers, projectors, merge, saving and loading. All on tiny random models of conftest.py."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import DECODER_MODE, ROOT
from eagle.configuration_eagle import AUTO_MAP, EagleConfig
from eagle.modeling_eagle import EagleForConditionalGeneration, EagleModel
from requests_eagle import (
    AUDIO,
    CROP,
    IMAGE,
    PAD,
    assert_close,
    batch_of,
    lively_decoder,
    mixed_sample,
    pad_left,
    sound,
    window,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, WhisperModel

# --- names --------------------------------------------------------------------------------------------------------------

GOLDEN_KEYS = (ROOT / "tests" / "golden_keys.txt").read_text().split()  # layer numbers as #
DECODER_KEYS = {
    "model.audio_tower.decoder.embed_tokens.weight",
    "model.audio_tower.decoder.layers.#.encoder_attn.k_proj.weight",
}
FACTORED_KEYS = {
    f"model.multi_modal_projector.{name}.{part}.weight" for name in ("q_proj", "proj") for part in ("up", "down")
}


def key_patterns(model):
    return sorted({re.sub(r"layers\.\d+", "layers.#", key) for key in model.state_dict()})


def test_golden_keys(brief_model):
    """Checkpoints, exporters and serving engines depend on these names."""
    assert key_patterns(brief_model()) == sorted(GOLDEN_KEYS)


def test_golden_keys_of_the_other_forms(brief_model):
    patterns = set(key_patterns(brief_model(**DECODER_MODE, text_config={"hidden_size": 256}, image_projector_rank=128)))
    assert DECODER_KEYS | FACTORED_KEYS <= patterns
    mlp = set(key_patterns(brief_model(image_projector_type="mlp2x_gelu", num_image_tokens=16)))
    assert {f"model.multi_modal_projector.linear_{n}.{p}" for n in (1, 2) for p in ("weight", "bias")} <= mlp


# --- image side ---------------------------------------------------------------------------------------------------------


def reference_resampler(r, x):
    """The resampler as llama.cpp computes it, from the state dict, head by head."""
    width = r["query"].shape[1]

    def linear(x, name):
        return F.linear(x, r[f"{name}.weight"], r.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (width,), r[f"{name}.weight"], r[f"{name}.bias"], 1e-5)

    side = int(x.shape[0] ** 0.5)
    patch = torch.arange(side * side)
    omega = 1 / 10000 ** (torch.arange(width // 4) / (width // 4))
    w, h = (patch % side)[:, None] * omega, (patch // side)[:, None] * omega
    code = torch.cat([w.sin(), w.cos(), h.sin(), h.cos()], 1)
    kv = norm(linear(x, "kv_proj"), "ln_kv")
    q, k, v = linear(norm(r["query"], "ln_q"), "q_proj"), linear(kv + code, "k_proj"), linear(kv, "v_proj")
    heads = zip(q.split(128, 1), k.split(128, 1), v.split(128, 1))
    pooled = torch.cat([(q @ k.T / 128**0.5).softmax(-1) @ v for q, k, v in heads], 1)
    return linear(norm(linear(pooled, "out_proj"), "ln_post"), "proj")


def randomised_projector(model):
    projector = model.model.multi_modal_projector
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return projector


def test_resampler_computes_llama_cpps_graph(brief_model):
    projector = randomised_projector(brief_model(text_config={"hidden_size": 256}))
    features = torch.randn(2, 16, 32)
    expected = torch.stack([reference_resampler(projector.state_dict(), x) for x in features])
    assert_close(projector(features), expected)


def test_merged_factors_compute_the_same(brief_model):
    model = brief_model(text_config={"hidden_size": 256}, image_projector_rank=128)
    randomised_projector(model)
    sample = mixed_sample()
    factored = model(**sample).logits
    model.merge_factors()
    assert_close(model(**sample).logits, factored, atol=1e-4)
    assert model.config.image_projector_rank is None
    assert set(key_patterns(model)) == set(GOLDEN_KEYS)


@pytest.mark.parametrize("width, rank", [(256, None), (384, 128), (512, 200)])
def test_local_start_pools_each_querys_neighbourhood(tiny_config, width, rank):
    """128 queries over 24 x 24 patches: a cell is 1.5 patches wide and 3 high. On random features at least nine tenths of
    each query's attention, in each head, fall within 2 patches of its cell's centre sideways and 3 up and down."""
    config = tiny_config(
        text_config={"hidden_size": width}, image_projector_rank=rank, num_image_tokens=128,
        vision_config={"image_size": 336},
    )  # fmt: skip
    torch.manual_seed(0)
    projector = EagleModel(config).multi_modal_projector
    features = torch.randn(2, 576, 32)
    q, k, _ = projector.attention_inputs(features)
    attention = (q @ k.transpose(-1, -2) / 128**0.5).softmax(-1)  # (N, heads, 128 queries, 576 patches)

    query, patch = torch.arange(128)[:, None], torch.arange(576)[None]
    across = patch % 24 - ((query % 16 + 0.5) * 1.5 - 0.5)
    down = patch // 24 - ((query // 16 + 0.5) * 3 - 0.5)
    near = ((across.abs() <= 2) & (down.abs() <= 3)).float()
    assert (attention * near).sum(-1).min() > 0.9
    tokens = projector(features)
    similarity = F.cosine_similarity(tokens[0][:, None], tokens[0][None], dim=-1).fill_diagonal_(0)
    assert similarity.abs().median() < 0.5, "tokens of different places must differ"
    assert similarity.abs().max() < 0.999, "no two queries may see the same, neighbours included"


def test_vision_tower_without_class_token_is_clips_on_its_patches(brief_model):
    model = brief_model()
    clip = CLIPVisionModel(model.config.vision_config).eval()
    model.model.vision_tower.load_state_dict(clip.state_dict())  # published weights load, key by key
    pixels = torch.randn(2, 3, 56, 56)
    patches = clip.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    patches = patches + clip.embeddings.position_embedding.weight[1:]
    hidden = clip.encoder.layers[0](clip.pre_layrnorm(patches), attention_mask=None)
    expected = model.model.multi_modal_projector(hidden)
    assert_close(model.get_image_features(pixels).pooler_output, expected)


@pytest.mark.parametrize("layer", [-2, 1, 0, -1])
def test_vision_tower_with_class_token_is_clips(brief_model, layer):
    model = brief_model(vision_use_cls=True, vision_feature_layer=layer)
    clip = CLIPVisionModel(model.config.vision_config).eval()
    clip.load_state_dict(model.model.vision_tower.state_dict())
    pixels = torch.randn(2, 3, 56, 56)
    hidden = clip(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]
    assert_close(model.get_image_features(pixels).pooler_output, model.model.multi_modal_projector(hidden))


SIGLIP = {
    "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "vision_use_head": False,
}  # fmt: skip
TIMM = {
    "model_type": "timm_wrapper",
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2},
}


@pytest.mark.parametrize("tower, use_cls", [(SIGLIP, False), (TIMM, True)])
@pytest.mark.parametrize("projector, tokens", [("resampler", 8), ("mlp2x_gelu", 16)])
def test_other_vision_towers_plug_in(tiny_config, tower, use_cls, projector, tokens):
    from conftest import TINY

    config = EagleConfig(
        **TINY | {"vision_config": tower, "vision_use_cls": use_cls, "image_projector_type": projector,
                  "num_image_tokens": tokens}
    )  # fmt: skip
    model = EagleForConditionalGeneration(config).eval()
    one, other = torch.randn(2, 1, 3, 56, 56).unbind()
    ids = torch.tensor([[30, *[IMAGE] * tokens, 31]])
    assert model.get_image_features(one).pooler_output.shape == (1, tokens, 128)
    assert not torch.equal(model(ids, pixel_values=one).logits[:, -1], model(ids, pixel_values=other).logits[:, -1])


@pytest.mark.parametrize("text", [
    {"model_type": "phi", "num_key_value_heads": 2, "rope_parameters": {"partial_rotary_factor": 0.5}},
    {"model_type": "stablelm", "num_key_value_heads": 2},
    {"model_type": "llama", "num_key_value_heads": 1},
])  # fmt: skip
def test_other_language_models_plug_in(brief_model, text):
    model = brief_model(text_config=text)
    sample = mixed_sample()
    assert model(**sample).logits.shape == (*sample["input_ids"].shape, 160)
    assert model.generate(**sample, max_new_tokens=3, do_sample=False).shape[1] > sample["input_ids"].shape[1]


# --- audio side ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds, trimmed", [((3.0,), 10), ((30.0, 1.0), 94 + 4), ((30.0, 30.0, 30.0, 5.0), 3 * 94 + 16)]
)
def test_audio_of_any_length_in_both_layouts(brief_model, seconds, trimmed):
    """3 s, 31 s and 95 s: ceil(encoder frames / 16) tokens a window, 94 where every frame counts."""
    model = brief_model(audio_config={"max_source_positions": 1500})
    inputs = sound(*seconds, window=30)
    features = model.get_audio_features(**inputs)
    assert features.pooler_output.shape == (trimmed, 128)
    padded = inputs | {"input_features_mask": torch.ones(len(seconds), 3000)}
    everything = model.get_audio_features(**padded).pooler_output
    assert everything.shape == (94 * len(seconds), 128)
    assert_close(model.get_audio_features(inputs["input_features"]).pooler_output, everything)
    counts = [-(-round(100 * length) // 32) for length in seconds]
    cut = torch.cat([rows[:count] for rows, count in zip(everything.split(94), counts)])
    assert_close(features.pooler_output, cut)
    alone = model.get_audio_features(inputs["input_features"][-1:], inputs["input_features_mask"][-1:]).pooler_output
    assert_close(features.pooler_output[-counts[-1] :], alone)


def test_audio_projector_computes_llama_cpps_ultravox_graph(brief_model):
    projector = brief_model().model.audio_projector
    for norm in (projector.ln_pre, projector.ln_mid):
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 512)

    def rms(x, weight):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight

    value, gate = (rms(x, projector.ln_pre.weight) @ projector.linear_1.weight.T).chunk(2, -1)
    expected = rms(value * F.silu(gate), projector.ln_mid.weight) @ projector.linear_2.weight.T
    assert_close(projector(x), expected)


def test_published_whisper_weights_load_into_the_audio_tower(brief_model):
    """Key by key, and encoder and decoder then compute what WhisperModel computes."""
    model = brief_model(**DECODER_MODE)
    whisper = WhisperModel(model.config.audio_config).eval()
    tower = model.model.audio_tower
    tower.load_state_dict(whisper.state_dict())
    inputs, ids = sound(2.0, 2.0)["input_features"], torch.randint(3, 48, (2, 5))
    expected = whisper(inputs, decoder_input_ids=torch.cat([torch.ones(2, 1).long(), ids[:, :-1]], 1)).last_hidden_state
    assert_close(tower(inputs, ids, torch.ones_like(ids)).last_hidden_state, expected)


def test_decoder_mode_takes_the_states_that_emit_the_transcript(brief_model):
    """Greedy emission is the check: the state that emits token i has token i as its likeliest."""
    tower = lively_decoder(brief_model(**DECODER_MODE, audio_prompt_ids=[1, 5])).model.audio_tower
    inputs = sound(2.0, 2.0, 2.0)["input_features"]
    outputs = tower(inputs)
    ids, mask = outputs.audio_transcript_ids, outputs.audio_transcript_mask.bool()
    assert ids.shape[0] == 3 and mask.any()
    assert torch.equal(tower.logits(outputs.last_hidden_state).argmax(-1)[mask], ids[mask])
    given = tower(inputs, ids, mask)
    assert_close(given.last_hidden_state, outputs.last_hidden_state)
    with torch.no_grad():  # by hand, without a cache: prompt, then one token after the other
        encoded = tower.encoder(inputs[:1]).last_hidden_state
        written = [1, 5]
        while len(written) < 24:
            states = tower.decoder(input_ids=torch.tensor([written]), encoder_hidden_states=encoded).last_hidden_state
            token = int((states[0, -1] @ tower.decoder.embed_tokens.weight.T).argmax())
            if token == 2:
                break
            written.append(token)
    assert written[2:] == ids[0, mask[0]].tolist()[: len(written) - 2]


def test_decoder_mode_inserts_the_likeliest_language(brief_model):
    model = lively_decoder(brief_model(**DECODER_MODE, audio_prompt_ids=[1, 5], audio_language_ids=[7, 8, 9]))
    tower = model.model.audio_tower
    encoded = tower.encoder(sound(*[2.0] * 6)["input_features"]).last_hidden_state
    prompt = tower.prompt(encoded)
    assert prompt.shape == (6, 3) and set(prompt[:, 1].tolist()) <= {7, 8, 9}
    logits = tower.logits(tower.decoder(input_ids=prompt[:, :1], encoder_hidden_states=encoded).last_hidden_state[:, 0])
    assert torch.equal(logits[:, 7:10].argmax(-1) + 7, prompt[:, 1])


# --- merging ------------------------------------------------------------------------------------------------------------


def test_changing_one_modality_changes_only_its_features(brief_model):
    model = brief_model()
    sample = mixed_sample(crops=2, seconds=(2.0, 1.0))
    base = model(**sample)
    picture = model(**sample | {"pixel_values": sample["pixel_values"] + 1})
    noise = model(**sample | {"input_features": sample["input_features"].flip(-1)})
    text = model(**sample | {"input_ids": sample["input_ids"].where(sample["input_ids"] != 51, 60)})
    for other, image_same, audio_same in ((picture, False, True), (noise, True, False), (text, True, True)):
        assert torch.equal(base.image_hidden_states, other.image_hidden_states) == image_same
        assert torch.equal(base.audio_hidden_states, other.audio_hidden_states) == audio_same
        assert (base.logits[:, -1] - other.logits[:, -1]).abs().max() > 1e-6


def test_media_land_at_their_placeholders_in_order(brief_model):
    model = brief_model()
    sample = mixed_sample(crops=2, seconds=(2.0, 1.0))
    outputs = model.model(**sample)
    embeds = model.get_input_embeddings()(sample["input_ids"])
    embeds[sample["input_ids"] == IMAGE] = outputs.image_hidden_states
    embeds[sample["input_ids"] == AUDIO] = outputs.audio_hidden_states
    assert_close(outputs.last_hidden_state, model.model(inputs_embeds=embeds).last_hidden_state)


def test_media_are_found_by_embedding_where_only_embeddings_are_given(brief_model):
    model = brief_model()
    sample = mixed_sample()
    embeds = model.get_input_embeddings()(sample["input_ids"])
    by_embedding = model(**{k: v for k, v in sample.items() if k != "input_ids"}, inputs_embeds=embeds)
    assert_close(by_embedding.logits, model(**sample).logits)


def test_projected_media_may_be_given_instead_of_raw(brief_model):
    model = brief_model()
    sample = mixed_sample()
    first = model(**sample)
    text = {name: sample[name] for name in ("input_ids", "attention_mask")}
    again = model(**text, image_hidden_states=first.image_hidden_states, audio_hidden_states=first.audio_hidden_states)
    assert_close(again.logits, first.logits)


def test_batch_equals_single_with_padding_on_either_side(brief_model):
    model = brief_model()
    samples = [
        mixed_sample(1, (1.0,), (50, 51)),
        mixed_sample(3, (2.0, 0.5), (60, 61, 62, 63)),
        mixed_sample(2, (0.3,)),
    ]
    left = batch_of(*samples)
    right = {**left, **{name: torch.stack([row.roll(-int((1 - mask).sum())) for row, mask in
                                           zip(left[name], left["attention_mask"])])
                        for name in ("input_ids", "attention_mask")}}  # fmt: skip
    left_logits, right_logits = model(**left).logits, model(**right).logits
    for row, sample in enumerate(samples):
        single, length = model(**sample).logits[0], sample["input_ids"].shape[1]
        assert_close(left_logits[row, -length:], single)
        assert_close(right_logits[row, :length], single)


def test_labels_logits_to_keep_and_the_loss_of_a_changed_sound(brief_model):
    model = brief_model()
    sample = mixed_sample()
    labels = sample["input_ids"].clone()
    labels[:, :-4] = -100
    outputs = model(**sample, labels=labels)
    expected = F.cross_entropy(outputs.logits[0, -5:-1], labels[0, -4:])
    assert_close(outputs.loss, expected)
    assert_close(model(**sample, logits_to_keep=3).logits, outputs.logits[:, -3:])
    assert_close(model(**sample, logits_to_keep=torch.tensor([0, 5])).logits, outputs.logits[:, [0, 5]])
    mask = torch.arange(outputs.logits.shape[1])[None] % 3 == 0
    assert_close(model(**sample, logits_to_keep=mask).logits, outputs.logits[mask])
    deaf = sample | {"input_features": torch.zeros_like(sample["input_features"])}
    assert model(**deaf, labels=labels).loss != outputs.loss
    hidden = model.base_model(**sample).last_hidden_state  # what trainers with a fused head call
    assert_close(model.lm_head(hidden), outputs.logits)


def test_gradients_reach_every_part_also_with_checkpointing(brief_model):
    model = brief_model(text_config={"hidden_size": 256}, image_projector_rank=128).train()
    sample = mixed_sample(crops=2)
    plain = model(**sample, labels=sample["input_ids"]).loss
    plain.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused == {
        "model.audio_tower.encoder.embed_positions.weight",  # fixed sinusoids
        "model.vision_tower.embeddings.class_embedding",  # there for checkpoints that use it
        "model.vision_tower.post_layernorm.weight", "model.vision_tower.post_layernorm.bias",
    } | {name for name in unused if name.startswith("model.vision_tower.encoder.layers.1.")}  # fmt: skip
    assert [name for name, gradient in gradients.items() if gradient.abs().sum() == 0] == []

    model.zero_grad()
    model.gradient_checkpointing_enable()
    checkpointed = model(**sample, labels=sample["input_ids"]).loss
    checkpointed.backward()
    assert_close(checkpointed, plain)
    for name, gradient in gradients.items():
        assert_close(dict(model.named_parameters())[name].grad, gradient)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
def test_attention_implementations_agree(brief_model, implementation):
    if implementation == "flash_attention_2" and not torch.cuda.is_available():
        pytest.skip("flash attention runs on a GPU only")
    model, sample = brief_model(), mixed_sample()
    expected = model(**sample).logits
    model.set_attn_implementation(implementation)
    assert model.model.vision_tower.config._attn_implementation == implementation
    assert_close(model(**sample).logits, expected, atol=1e-4)


def test_features_come_with_hidden_states_and_attentions(brief_model):
    model = brief_model()
    model.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    image = model.get_image_features(torch.randn(2, 3, 56, 56), **asked)
    audio = model.get_audio_features(**sound(1.0), **asked)
    for outputs in (image, audio):
        assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    assert isinstance(model.get_audio_features(**sound(1.0), return_dict=False), tuple)


# --- bad requests -------------------------------------------------------------------------------------------------------


def test_a_picture_without_text_and_sound_is_refused(brief_model):
    model = brief_model()
    picture = {**pad_left([PAD, *CROP, 4]), "pixel_values": torch.randn(1, 3, 56, 56)}
    for call in (model, model.model, model.generate):
        with pytest.raises(ValueError, match="neither text nor sound"):
            call(**picture)
    spoken = {**pad_left([*CROP, *window(4)]), "pixel_values": picture["pixel_values"], **sound(1.0)}
    model(**spoken)  # a spoken question is a question
    asked = mixed_sample(seconds=())
    with pytest.raises(ValueError, match="neither text nor sound"):  # also as one of a batch
        model(**pad_left(CROP, [50, *CROP]), pixel_values=torch.randn(2, 3, 56, 56))
    assert asked["pixel_values"].shape[0] == 1


COUNTS = [
    ({"pixel_values": torch.randn(2, 3, 56, 56)}, "8 image placeholders.* 16 image tokens"),
    ({"pixel_values": None}, "8 image placeholders.* 0 image tokens"),
    (sound(2.0), "4 audio placeholders.* 7 audio tokens"),
    ({"input_features": None}, "4 audio placeholders.* 0 audio tokens"),
]


@pytest.mark.parametrize("change, message", COUNTS)
def test_counts_of_placeholders_and_media_that_differ_are_refused_with_both_numbers(brief_model, change, message):
    model = brief_model()
    sample = mixed_sample() | change
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=message):
            call(**sample)
    with pytest.raises(ValueError, match=message):
        model.generate(**sample, num_beams=2)


def test_wrong_arguments_are_refused_by_name(brief_model):
    model, sample = brief_model(), mixed_sample()
    with pytest.raises(TypeError, match="'input_feature'; the closest it knows is 'input_features'"):
        model(input_ids=sample["input_ids"], input_feature=sample["input_features"])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="no speech decoder"):
        model.generate(**sample, generation_mode="audio")
    with pytest.raises(ValueError, match="audio_token_source 'decoder'"):
        model.generate(**sample, return_transcript=True)


def test_media_for_a_missing_tower_are_refused(brief_model):
    sample = mixed_sample()
    with pytest.raises(ValueError, match="vision_config is null"):
        brief_model(vision_config=None)(**sample)
    with pytest.raises(ValueError, match="audio_config is null"):
        brief_model(audio_config=None)(**sample)


def test_wrong_transcripts_are_refused(brief_model):
    model = brief_model(**DECODER_MODE)
    prompt, media = pad_left([30, *window(1), 31]), sound(1.0)
    ids = torch.ones(1, 24, dtype=torch.long)
    with pytest.raises(ValueError, match="needs audio_transcript_ids"):
        model(**prompt, **media)
    with pytest.raises(ValueError, match="together"):
        model(**prompt, **media, audio_transcript_ids=ids)
    for wrong, message in ((ids.repeat(2, 1), "2 rows, but there are 1"), (torch.ones(1, 25).long(), "room for 24")):
        with pytest.raises(ValueError, match=message):
            model(**prompt, **media, audio_transcript_ids=wrong, audio_transcript_mask=torch.ones_like(wrong))
    with pytest.raises(ValueError, match="2 audio placeholders for 1 audio windows"):
        model.generate(**pad_left([30, *window(2), 31]), **media)


def test_a_conversation_over_the_context_length_is_refused(brief_model):
    model = brief_model(text_config={"max_position_embeddings": 32})
    prompt = torch.full((1, 33), 50)
    with pytest.raises(ValueError, match="33 tokens long, but the model reads at most 32"):
        model(prompt)
    with pytest.raises(ValueError, match="32 tokens long, but the model reads at most 32"):
        model.generate(prompt[:, :32], max_new_tokens=4)
    full = model.generate(prompt[:, :28], max_new_tokens=20, min_new_tokens=4, do_sample=False)
    assert full.shape == (1, 32), "generation ends where the context does"


def test_a_mask_of_another_number_of_windows_is_an_error(brief_model):
    sample = mixed_sample(1, (1.0,))
    sample["input_features_mask"] = sample["input_features_mask"].repeat(2, 1)
    with pytest.raises(ValueError, match="input_features has 1 windows, but input_features_mask 2"):
        brief_model()(**sample)


def test_the_head_may_have_a_bias(brief_model, tmp_path):
    model = brief_model(lm_head_bias=True)
    model.lm_head.bias.data.normal_()
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.randint(50, 160, (1, 5))}
    assert torch.equal(type(model).from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)
    without = brief_model()
    without.load_state_dict({name: w for name, w in model.state_dict().items() if name != "lm_head.bias"})
    assert_close(without(**inputs).logits + model.lm_head.bias, model(**inputs).logits)


# --- saving and loading -------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(brief_model, tmp_path):
    """A saved tiny model as a Hub repository: weights, config and all root code files."""
    model = brief_model()
    folder = tmp_path / "repository"
    model.save_pretrained(folder)
    for code in ROOT.glob("*_eagle.py"):
        shutil.copy(code, folder)
    return model, folder


LOADER = """
import sys, torch, transformers
from safetensors.torch import load_file, save_file
folder, inputs, out, names = sys.argv[1], load_file(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")
config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
results = {"vocab_size": torch.tensor(config.text_config.vocab_size)}
for name in names:
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
    outputs = model(**inputs)
    results[name] = outputs.last_hidden_state if name == "AutoModel" else outputs.logits
    if name != "AutoModel":
        results[name + ".ids"] = model.generate(**inputs, generation_mode="text", max_new_tokens=4, do_sample=False)
model.save_pretrained(out)
save_file({key: value.contiguous() for key, value in results.items()}, out + "/results.safetensors")
"""


def load_in_fresh_process(folder, sample, out, names, home):
    save_file({key: value.contiguous() for key, value in sample.items()}, home / "inputs.safetensors")
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", LOADER, folder, home / "inputs.safetensors", out, ",".join(names)]
    done = subprocess.run(
        list(map(str, command)), check=False, env=environment, cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / "results.safetensors")


AUTO_CLASSES = [name for name in AUTO_MAP if name.startswith("AutoModel")]


def test_round_trip_through_every_auto_class_in_a_fresh_process(repository, tmp_path):
    """Save, load with trust_remote_code, run, generate, save again, load that again: bit by bit the same."""
    model, folder = repository
    sample = mixed_sample(crops=2, seconds=(2.0, 1.0))
    results = load_in_fresh_process(folder, sample, tmp_path / "again", AUTO_CLASSES, tmp_path)
    ids = model.generate(**sample, max_new_tokens=4, do_sample=False)
    for name in AUTO_CLASSES:
        expected = model.model(**sample).last_hidden_state if name == "AutoModel" else model(**sample).logits
        assert torch.equal(results[name], expected)
        if name != "AutoModel":
            assert torch.equal(results[f"{name}.ids"], ids)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    for code in ("configuration_eagle.py", "modeling_eagle.py"):
        assert (tmp_path / "again" / code).read_bytes() == (ROOT / code).read_bytes()
    second = load_in_fresh_process(tmp_path / "again", sample, tmp_path / "third", ["AutoModelForCausalLM"], tmp_path)
    assert torch.equal(second["AutoModelForCausalLM"], results["AutoModelForCausalLM"])


@pytest.mark.parametrize("changes", [
    {},
    {"text_config": {"tie_word_embeddings": True}},
    {"text_config": {"hidden_size": 256}, "image_projector_rank": 128, "vision_use_cls": True},
    {"image_projector_type": "mlp2x_gelu", "num_image_tokens": 16},
    {**DECODER_MODE, "audio_prompt_ids": [1, 5], "audio_language_ids": [7, 8]},
])  # fmt: skip
def test_save_and_load_give_the_same_weights_and_constants(brief_model, tmp_path, changes):
    model = brief_model(**changes)
    model.save_pretrained(tmp_path)
    loaded = EagleForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in [*model.state_dict().items(), *model.named_buffers()]:
        assert torch.equal(loaded.state_dict().get(name, dict(loaded.named_buffers()).get(name)), tensor), name
    pixels = torch.randn(1, 3, 56, 56)
    assert torch.equal(loaded.get_image_features(pixels).pooler_output, model.get_image_features(pixels).pooler_output)
    tied = loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
    assert tied == model.config.tie_word_embeddings


def test_backbone_and_full_model_read_each_others_checkpoints(brief_model, tmp_path):
    model = brief_model(text_config={"tie_word_embeddings": True})
    model.save_pretrained(tmp_path / "full")
    backbone = EagleModel.from_pretrained(tmp_path / "full")
    backbone.save_pretrained(tmp_path / "backbone")
    again = EagleForConditionalGeneration.from_pretrained(tmp_path / "backbone")
    sample = mixed_sample()
    assert torch.equal(again(**sample).logits, model(**sample).logits)


def test_in_bfloat16_every_part_gives_nearly_the_same(brief_model, tmp_path):
    model = brief_model()
    model.save_pretrained(tmp_path / "float32")
    loaded = EagleForConditionalGeneration.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "bfloat16")
    again = EagleForConditionalGeneration.from_pretrained(tmp_path / "bfloat16")
    sample = mixed_sample()
    expected, rounded = model.model(**sample), loaded.model(**sample)
    for name in ("image_hidden_states", "audio_hidden_states", "last_hidden_state"):
        assert rounded[name].dtype == torch.bfloat16
        error = (rounded[name].float() - expected[name]).norm() / expected[name].norm()
        assert 0 < error < 0.04, name  # three digits a number; a deaf or blind model is off by 1
    for half in (loaded, again):
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert torch.equal(half(**sample).logits, loaded(**sample).logits)


@pytest.mark.parametrize("room", [600_000, 1_250_000])  # bytes: the vision tower; all but the language model's layers
def test_parts_that_find_no_room_lie_on_disk(brief_model, tmp_path, room):
    model = brief_model()
    model.save_pretrained(tmp_path)
    placement = {"device_map": "auto", "max_memory": {"cpu": room}, "offload_folder": tmp_path / "disk"}
    loaded = EagleForConditionalGeneration.from_pretrained(tmp_path, **placement)
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    assert not [part for part in loaded.hf_device_map if "projector." in part], "they use their weights directly"
    assert all(parameter.is_meta for parameter in loaded.model.language_model.layers.parameters())
    sample = mixed_sample()
    assert torch.equal(loaded(**sample).logits, model(**sample).logits)
    assert torch.equal(loaded.generate(**sample, max_new_tokens=3), model.generate(**sample, max_new_tokens=3))


def test_missing_weights_are_an_error_unless_the_caller_asks_for_them(brief_model, tmp_path):
    model = brief_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    cut = {name: tensor for name, tensor in weights.items() if "multi_modal_projector" not in name}
    save_file(cut, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 17 of the weights .*multi_modal_projector.k_proj.bias"):
        EagleForConditionalGeneration.from_pretrained(tmp_path)
    loaded, info = EagleForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    projector = loaded.model.multi_modal_projector
    assert len(info["missing_keys"]) == 17
    assert_close(projector.query, projector.query_code()), "what is missing starts local, not as garbage"
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.fixture
def checkpoint(brief_model, tmp_path):
    """A folder with a checkpoint that loads."""
    brief_model().save_pretrained(tmp_path)
    EagleForConditionalGeneration.from_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda content: content[: len(content) // 2], "file not fully covered"),
        (lambda content: content[:-1], "file not fully covered"),
        (lambda content: content + b"\0", "file not fully covered"),
        (lambda content: b"", "header too small"),
        (lambda content: bytes(len(content)), "invalid JSON in header"),
    ],
)
def test_damaged_weights_are_an_error(checkpoint, damage, reason):
    file = checkpoint / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(SafetensorError, match=reason):
        EagleForConditionalGeneration.from_pretrained(checkpoint)


def test_a_checkpoint_without_its_weights_is_an_error(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        EagleForConditionalGeneration.from_pretrained(checkpoint)


def test_a_checkpoint_that_lacks_a_part_of_its_weights_is_an_error(brief_model, tmp_path):
    brief_model().save_pretrained(tmp_path, max_shard_size="400KB")
    EagleForConditionalGeneration.from_pretrained(tmp_path)
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    parts[-1].unlink()
    with pytest.raises(OSError, match=parts[-1].name):
        EagleForConditionalGeneration.from_pretrained(tmp_path)


def test_a_checkpoint_of_another_model_is_an_error(checkpoint):
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "llava"}))
    with pytest.raises(ValueError, match="'llava'.*must be 'eagle_slm'"):
        EagleForConditionalGeneration.from_pretrained(checkpoint)


def test_weights_of_another_shape_are_an_error(brief_model, tmp_path):
    brief_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_image_tokens": 4}))
    with pytest.raises(RuntimeError, match="mismatched"):
        EagleForConditionalGeneration.from_pretrained(tmp_path)
