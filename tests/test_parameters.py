"""The parameter budget of full-size EAGLE against the paper (Fig. 3 and section II.A), counted on the meta device.

python -m pytest tests/test_parameters.py -s      prints the table
"""

import pytest
import torch
from conftest import ROOT
from eagle.configuration_eagle import EagleConfig
from eagle.modeling_eagle import EagleForConditionalGeneration

# box: the paper's number, ours
EAGLE = {
    "language_model": (3.7e9, 3_722_578_944),
    "vision_tower": (303e6, 303_507_456),
    "audio_tower": (244e6, 241_734_912),
    "multi_modal_projector": (20e6, 20_035_584),
    "audio_projector": (30e6, 30_088_320),
    "EAGLE without its head": (4.3e9, 4_317_945_216),
}
HEAD = 98_500_608
SPEECH = {"speech_projector": (25e6, 25_172_992), "speech_decoder": (113e6, 113_098_915), "EAGLE-A without its head": (4.5e9, 4_456_217_123)}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def meta_model(name):
    with torch.device("meta"):
        return EagleForConditionalGeneration(EagleConfig.from_json_file(ROOT / "configs" / f"{name}.json"))


def test_every_box_is_within_three_percent_of_the_paper():
    model, budget = meta_model("eagle-a"), EAGLE | SPEECH
    counted = {name: count(box) for name, box in [*model.model.named_children(), *model.named_children()]}
    counted["EAGLE without its head"] = counted.pop("model")
    counted["EAGLE-A without its head"] = count(model) - HEAD
    assert counted.pop("lm_head") == HEAD
    print(f"\n{'box':<26}{'paper':>16}{'ours':>16}{'off by':>9}")
    for box, (paper, _) in budget.items():
        print(f"{box:<26}{paper:>16,.0f}{counted[box]:>16,}{counted[box] / paper - 1:>9.1%}")
    assert counted == {box: ours for box, (_, ours) in budget.items()}
    for box, (paper, _) in budget.items():
        assert abs(counted[box] / paper - 1) < 0.03, box


def test_eagle_is_eagle_a_without_speech():
    assert count(meta_model("eagle")) == EAGLE["EAGLE without its head"][1] + HEAD


def test_merged_factors_are_what_ships():
    model = meta_model("eagle")
    model.merge_factors()
    assert count(model.model.multi_modal_projector) == 50_755_584


@pytest.mark.parametrize("part, parameters", [("encoder", 88_154_112), ("decoder", 153_580_800)])
def test_whisper_smalls_two_halves(part, parameters):
    assert count(getattr(meta_model("eagle").model.audio_tower, part)) == parameters


def test_the_phone_preset_carries_the_encoder_alone():
    model = meta_model("eagle-edge")
    assert count(model.model.audio_tower) == 88_154_112
    assert count(model.model.audio_projector) == 30_094_400


def test_eagle_tiny_stays_tiny():
    model = meta_model("eagle-tiny")
    assert 10e6 <= count(model) <= 20e6
    assert 2 * count(model) <= 40e6, "bytes in bf16"
    assert model.config.text_config.vocab_size <= 4096 and model.config.text_config.hidden_size % 128 == 0


def test_eagle_tiny_stays_tiny_with_a_voice():
    assert 2 * count(meta_model("eagle-tiny-a")) <= 48e6, "bytes in bf16, which git holds"
