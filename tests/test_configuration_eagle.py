"""EagleConfig: what is refused, and what survives a round trip."""

import json

import pytest
from conftest import DECODER_MODE, ROOT, TINY
from eagle.configuration_eagle import AUTO_MAP, EagleConfig
from transformers import Phi3Config

PRESETS = ("eagle", "eagle-a", "eagle-edge", "eagle-tiny", "eagle-tiny-a")

TYPOS = [
    ({"num_image_token": 64}, "'num_image_token'", "'num_image_tokens'"),
    ({"audio_source": "encoder"}, "'audio_source'", "'audio_token_source'"),
    ({"text_config": {"hiden_size": 128}}, "'hiden_size'", "'hidden_size'"),
    ({"vision_config": {"patch": 14}}, "'patch'", "'patch_size'"),
    ({"audio_config": {"encoder_layer": 3}}, "'encoder_layer'", "'encoder_layers'"),
    ({"text_config": {"model_type": "phi4"}}, "'phi4'", "'phi"),
    ({"model_type": "llava"}, "'llava'", "'eagle_slm'"),
]
WRONG_TYPES = [
    ({"num_image_tokens": "128"}, "num_image_tokens"),
    ({"vision_use_cls": "no"}, "vision_use_cls"),
    ({"audio_token_source": "both"}, "audio_token_source"),
    ({"image_projector_type": "mlp"}, "image_projector_type"),
    ({"image_layout": "tiles"}, "image_layout"),
]
SIGLIP = {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "hidden_size": 32}
# what is impossible together, and what the error must say: key, value, what would be right
IMPOSSIBLE = [
    ({"image_token_id": 17}, ["image_token_id", "audio_token_id", "17", "must differ"]),
    ({"image_token_id": 160}, ["image_token_id is 160", "vocab_size is 160", "inside"]),
    ({"vision_config": SIGLIP, "vision_use_cls": True}, ["vision_use_cls is true", "siglip", "false"]),
    ({"vision_feature_layer": -4}, ["vision_feature_layer is -4", "2 layers", "between -3 and 2"]),
    ({"num_image_tokens": 0}, ["num_image_tokens is 0", "at least 1"]),
    ({"text_config": {"hidden_size": 192}}, ["resampler", "hidden_size is 192", "multiple of 128"]),
    ({"image_projector_rank": 64}, ["image_projector_rank is 64", "at least 128"]),
    (
        {"image_projector_rank": 256, "text_config": {"hidden_size": 256}},
        ["image_projector_rank is 256", "below", "256"],
    ),
    (
        {"image_projector_type": "mlp2x_gelu", "image_projector_rank": 128, "num_image_tokens": 16},
        ["image_projector_rank is 128", "mlp2x_gelu", "null"],
    ),
    ({"image_projector_type": "mlp2x_gelu"}, ["num_image_tokens is 8", "must be 16"]),
    ({"audio_stack_factor": 0}, ["audio_stack_factor is 0", "at least 1"]),
    ({"audio_token_source": "decoder"}, ["audio_stack_factor is 16", "must be 1"]),
    (DECODER_MODE | {"audio_layout": "padded"}, ["audio_layout is 'padded'", "'trimmed'"]),
    ({"audio_prompt_ids": [1]}, ["audio_prompt_ids is [1]", "encoder", "null"]),
    (DECODER_MODE | {"audio_prompt_ids": [1, 48]}, ["audio_prompt_ids", "48", "vocabulary"]),
    ({"text_config": {"num_attention_heads": 3}}, ["text_config.num_attention_heads 3", "multiple"]),
    ({"vision_config": SIGLIP | {"num_attention_heads": 5}}, ["32", "5", "multiple"]),
    ({"audio_config": {"encoder_attention_heads": 7}}, ["audio_config.encoder_attention_heads 7", "multiple"]),
    ({"vision_config": {"image_size": 8, "patch_size": 14}}, ["image_size is 8", "14 pixels"]),
    ({"image_markup_token_ids": [10, 160]}, ["image_markup_token_ids holds 160", "vocab_size is 160"]),
    ({"text_config": {"pad_token_id": 16}}, ["image_token_id", "pad_token_id", "16", "must differ"]),
]


def message_of(tiny_config, changes):
    with pytest.raises(Exception) as error:
        tiny_config(**changes)
    return str(error.value)


@pytest.mark.parametrize("changes, key, closest", TYPOS)
def test_an_unknown_key_is_an_error_that_names_the_closest(tiny_config, changes, key, closest):
    message = message_of(tiny_config, changes)
    assert key in message and closest in message


def test_a_typo_in_a_part_given_as_an_object_is_an_error_too(tiny_config):
    with pytest.raises(ValueError, match="'hiden_act'; the closest valid key is 'hidden_act'"):
        EagleConfig(**TINY | {"text_config": Phi3Config(**TINY["text_config"], hiden_act="gelu")})


def test_keys_that_published_configurations_still_carry_are_no_typos(tiny_config, tmp_path):
    """microsoft/Phi-3.5-mini-instruct says attention_bias, openai/clip-vit-large-patch14-336 dropout."""
    config = tiny_config(text_config={"attention_bias": False}, vision_config={"dropout": 0.0})
    config.save_pretrained(tmp_path)
    assert EagleConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("changes, key", WRONG_TYPES)
def test_a_value_of_the_wrong_type_is_an_error(tiny_config, changes, key):
    assert key in message_of(tiny_config, changes)


@pytest.mark.parametrize("changes, words", IMPOSSIBLE)
def test_an_impossible_combination_is_an_error_that_says_what_would_be_right(tiny_config, changes, words):
    message = message_of(tiny_config, changes)
    assert [word for word in words if word not in message] == []


def test_timm_towers_decide_about_their_class_token_themselves(tiny_config):
    timm = {"model_type": "timm_wrapper", "architecture": "eva02_large_patch14_clip_336"}
    changes = TINY | {"vision_config": timm, "vision_use_cls": False}
    with pytest.raises(Exception, match="class_token"):
        EagleConfig(**changes)
    assert EagleConfig(**changes | {"vision_use_cls": True}).patches_per_side is None


@pytest.mark.parametrize(
    "part, model_type, right",
    [
        ("audio_config", "wav2vec2", "'whisper'"),
        ("vision_config", "siglip2_vision_model", "'siglip_vision_model'"),
        ("text_config", "bert", "a causal language model"),
        ("text_config", "t5", "a causal language model"),
    ],
)
def test_parts_that_cannot_do_the_job_are_refused(part, model_type, right):
    with pytest.raises(Exception, match=f"{part}.model_type is '{model_type}'.*must be.*{right}"):
        EagleConfig(**TINY | {part: {"model_type": model_type}})


def test_parts_are_optional_and_the_default_is_a_phi3_without_eyes_and_ears():
    config = EagleConfig()
    assert isinstance(config.text_config, Phi3Config)
    assert config.vision_config is None and config.audio_config is None


def test_tie_word_embeddings_of_the_top_level_rules(tiny_config):
    assert tiny_config(text_config={"tie_word_embeddings": True}).tie_word_embeddings is True
    assert (
        tiny_config(text_config={"tie_word_embeddings": True}, tie_word_embeddings=False).tie_word_embeddings is False
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_survive_a_round_trip(name, tmp_path):
    config = EagleConfig.from_json_file(ROOT / "configs" / f"{name}.json")
    config.save_pretrained(tmp_path)
    again = EagleConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert (tmp_path / "configuration_eagle.py").exists()


def test_eagle_a_is_eagle_with_a_speech_decoder():
    for name in ("eagle", "eagle-tiny"):
        plain, speaking = (json.loads((ROOT / "configs" / f"{which}.json").read_text()) for which in (name, f"{name}-a"))
        assert speaking.pop("speech_config")["model_type"] == "eagle_speech"
        assert speaking == plain


def test_the_published_longrope_factors_stand_in_the_presets():
    """Of microsoft/Phi-3.5-mini-instruct: a wrong digit would only show beyond 4096 tokens."""
    text = EagleConfig.from_json_file(ROOT / "configs" / "eagle.json").text_config
    assert text.rope_parameters["rope_type"] == "longrope" and text.original_max_position_embeddings == 4096
    short, long = text.rope_parameters["short_factor"], text.rope_parameters["long_factor"]
    assert len(short) == len(long) == text.hidden_size // text.num_attention_heads // 2
    assert short == sorted(short) and long == sorted(long)
    assert (round(sum(short), 3), round(sum(long), 3)) == (83.47, 1828.04)
