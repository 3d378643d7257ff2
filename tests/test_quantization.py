"""Formats of weights, equal to llama.cpp's to the last bit; training that sees them."""

import copy
import ctypes
import itertools
import json

import gguf
import numpy as np
import pytest
import torch
import xllamacpp
from conftest import make_config
from eagle.modeling_eagle import EagleForConditionalGeneration
from gguf import GGMLQuantizationType, quants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForMultimodalLM

from eval.models import TorchModel
from export import allocate
from export.formats import FORMATS, matrices, plan_of, rounded
from training import qat

BLOCKED = [name for name, f in FORMATS.items() if f.block > 1]
ROWS, WIDTH = 64, 128


def drawn(kind):
    """(ROWS, WIDTH) float32 of one of the kinds in KINDS."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((ROWS, WIDTH))
    halves = rng.integers(-64, 65, (ROWS, WIDTH)) / 64
    opposite = np.tile([1.0, -1.0], (ROWS, WIDTH // 2)) * rng.integers(1, 3, (ROWS, WIDTH))
    kinds = {
        "normal": 0.02 * normal,
        "bfloat16": torch.tensor(0.02 * normal).bfloat16().float().numpy(),
        "ties": np.concatenate([halves, opposite])[:: 2],
        "outliers": 0.02 * rng.standard_t(1.5, (ROWS, WIDTH)),
        "zeros": 0 * normal,
        "one sign": -np.abs(normal),
        "near the smallest half": np.where(rng.random((ROWS, WIDTH)) < 0.5, 0, 1e-7 * normal),
        "denormal": 1e-41 * normal,
        "all sizes": normal * 10.0 ** rng.integers(-44, 4, (ROWS, WIDTH)),
    }
    return np.ascontiguousarray(kinds[kind], np.float32)


KINDS = ("normal", "bfloat16", "ties", "outliers", "zeros", "one sign", "near the smallest half", "denormal", "all sizes")


def by_ggml(x, kind):
    """What llama.cpp's own code makes of the rows: blocks as bytes, read back by gguf-py."""
    chunk = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    chunk.restype, size = ctypes.c_size_t, ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, size, size, size, ctypes.c_void_p]
    block, stored = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((len(x), x.shape[1] // block * stored), np.uint8)
    assert chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, *x.shape, None) == out.nbytes
    return quants.dequantize(out, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "f32"])
def test_formats_are_those_of_llama_cpp_to_the_last_bit(name, kind):
    x, type_of = drawn(kind), GGMLQuantizationType[FORMATS[name].ggml]
    got = rounded(torch.from_numpy(x), name)
    with np.errstate(all="ignore"):  # gguf-py divides by what is almost nothing
        np.testing.assert_array_equal(got.numpy(), quants.dequantize(quants.quantize(x, type_of), type_of))
    np.testing.assert_array_equal(got.numpy(), by_ggml(x, type_of))
    assert torch.equal(rounded(got, name), got)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_hold_what_the_table_says(name):
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[FORMATS[name].ggml]]
    assert (block, 8 * size / block) == (FORMATS[name].block, FORMATS[name].bits)
    blocks = rounded(torch.from_numpy(drawn("normal")), name).unflatten(-1, (-1, 32)).flatten(0, 1)
    values = max(len(block.unique()) for block in blocks)
    assert values <= 2 ** {"q8_0": 8, "q5_0": 5, "q4_0": 4, "q4_1": 4}.get(name, 16)


def test_what_cannot_be_stored_is_an_error():
    x = torch.ones(2, 64)
    with pytest.raises(ValueError, match="unknown format 'q3'; known: f32, bf16"):
        rounded(x, "q3")
    with pytest.raises(ValueError, match="rows of 40 weights cannot be q4_0, whose blocks are 32"):
        rounded(torch.ones(2, 40), "q4_0")
    for value in (float("nan"), float("inf")):
        x[1, 5] = value
        with pytest.raises(ValueError, match=r"shape \[2, 64\] holds values that are not finite"):
            rounded(x, "q8_0")
    x[1, 5] = 1e9
    with pytest.raises(ValueError, match="goes beyond the range of q8_0"):
        rounded(x, "q8_0")


# --- training ---------------------------------------------------------------------------------------------------------


def build(**changes):
    torch.manual_seed(0)
    return EagleForConditionalGeneration(make_config(**{"audio_config": {"max_source_positions": 100}} | changes)).eval()


def batch(model):
    """A picture and a sound in one conversation."""
    size, ids = model.config.vision_config.image_size, model.config
    tokens = [30, *[ids.image_token_id] * 8, 40, *[ids.audio_token_id] * 7, 41, 42, 31]
    torch.manual_seed(1)
    return {
        "input_ids": torch.tensor([tokens]),
        "labels": torch.tensor([[-100] * (len(tokens) - 3) + tokens[-3:]]),
        "pixel_values": torch.randn(1, 3, size, size),
        "input_features": torch.randn(1, 80, 200),
    }


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("changes", [{}, {"text_config": {"tie_word_embeddings": True}}, {"image_projector_rank": 128, "text_config": {"hidden_size": 256}}])
def test_the_model_computes_with_the_rounded_weights(name, changes):
    model, shipped = build(**changes), build(**changes)
    keys = set(model.state_dict())
    qat.quantize(model, name)
    shipped.merge_factors()
    assert "image_projector_rank" in changes or set(model.state_dict()) == keys
    stored = matrices(shipped)
    assert {"lm_head", "model.language_model.embed_tokens", "model.vision_tower.encoder.layers.0.mlp.fc1"} < set(stored)
    with torch.no_grad():
        for module in {id(m.weight): m for m in stored.values()}.values():
            module.weight.copy_(rounded(module.weight, name))
    outputs = [m(**batch(m)) for m in (model, shipped)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    for (path, mine), theirs in zip(model.named_parameters(), shipped.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), path
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad), path  # of the rounded weights, to the masters


def test_what_no_output_depends_on_is_left_out():
    """A tower whose last layer is not read; SigLIP's head, whose attention no format could store; widths that fit no block."""
    assert not any("layers.1." in name for name in matrices(build(vision_feature_layer=-2)) if "vision_tower" in name)
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 72, "num_attention_heads": 2}
    model = build(vision_config=siglip | {"num_hidden_layers": 2, "image_size": 56, "patch_size": 14}, vision_feature_layer=-1)
    assert any("vision_tower.head" in name for name, _ in model.named_modules())
    with pytest.raises(ValueError, match=r"mlp.fc2.weight: rows of 72 weights cannot be q4_0.*a plan of export.allocate keeps such in f16"):
        qat.quantize(model, "q4_0")
    plan = allocate.make_plan(model, [batch(model)], 5.5)
    assert {name.rpartition(".")[2] for name, chosen in plan["formats"].items() if chosen == "f16"} == {"fc2"}


def test_what_cannot_be_quantized_is_named():
    model = build()
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"language_model.layers.1.mlp.down_proj.weight: .* not finite"):
        qat.quantize(model, "q4_0")
    model = build()
    qat.quantize(model, "q4_0")
    with pytest.raises(ValueError, match="is a QuantizedLinear; only Linear and Embedding can be quantized, and only once"):
        qat.quantize(model, "q4_0")


def test_adapters_are_rounded_with_their_matrix():
    """Before merging and after: both must be what is shipped, the rounded sum."""
    model, plain = build(), build()
    adapters = {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*(qkv|o|down)_proj", "init_lora_weights": False}
    qat.quantize(model, "q4_0")
    torch.manual_seed(2)
    model = get_peft_model(model, qat.adapt(LoraConfig(**adapters)))
    torch.manual_seed(2)
    plain = get_peft_model(plain, LoraConfig(**adapters)).merge_and_unload()
    qat.quantize(plain, "q4_0")
    got, expected = (m(**batch(plain)) for m in (model, plain))
    assert torch.equal(got.logits, expected.logits)
    got.loss.backward()
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.grad is not None} == {"lora_A", "lora_B"}
    with pytest.raises(ValueError, match="dropout is 0.1; with quantization it must be 0"):
        qat.adapt(LoraConfig(lora_dropout=0.1))


def test_the_harness_measures_rounded_weights(small_checkpoint):
    model = TorchModel(str(small_checkpoint), "float32", quantization="q4_0")
    expected = AutoModelForMultimodalLM.from_pretrained(small_checkpoint, trust_remote_code=True, dtype=torch.float32).eval()
    qat.quantize(expected, "q4_0")
    ids = torch.arange(30, 60)[None]
    assert torch.equal(model.model(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert model.info["quantization"] == "q4_0"
    with pytest.raises(ValueError, match="unknown format 'q3'"):
        TorchModel(str(small_checkpoint), quantization="q3")


# --- which format for which matrix --------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [4.5, 5.0, 5.5, 8.5])
@pytest.mark.parametrize("seed", range(4))
def test_the_allocation_is_the_best_of_all(average, seed):
    rng = np.random.default_rng(seed)
    sizes, bits, losses = rng.integers(1, 9, 6) * 1024, np.array([4.5, 5.5, 8.5]), rng.random((6, 3))
    ways = np.array(list(itertools.product(range(3), repeat=6)))
    fitting = ways[(sizes * bits[ways]).sum(1) <= average * sizes.sum()]
    best = losses[np.arange(6), fitting].sum(1).min()
    chosen = allocate.allocate(sizes, losses, bits, average)
    assert (sizes * bits[chosen]).sum() <= average * sizes.sum()
    assert losses[np.arange(6), chosen].sum() == pytest.approx(best)
    with pytest.raises(ValueError, match="average of 4.0 bits cannot be reached: the smallest format takes 4.5"):
        allocate.allocate(sizes, losses, bits, 4.0)


def test_a_plan_is_measured_and_trains(tmp_path):
    model = build(text_config={"tie_word_embeddings": True})
    before = copy.deepcopy(model.state_dict())
    plan = allocate.make_plan(model, [batch(model)], 5.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert plan["formats"].keys() == matrices(model).keys() and 4.5 < plan["average_bits"] <= 5.5
    assert plan["formats"]["lm_head"] == plan["formats"]["model.language_model.embed_tokens"]
    for name, losses in plan["divergences"].items():
        assert 0 <= losses["q8_0"] <= losses["q4_0"] + 1e-6, name
    embedding = plan["divergences"]["model.language_model.embed_tokens"]
    assert 0 < embedding["q8_0"] < embedding["q5_0"] < embedding["q4_0"]
    assert 0 < plan["divergence"] < 10 * plan["sum_of_divergences"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    qat.quantize(model, str(tmp_path / "plan.json"))
    assert {name: module.format for name, module in matrices(model).items()} == plan["formats"]
    expected = build(text_config={"tie_word_embeddings": True})
    got = allocate.with_formats(expected, plan["formats"], lambda: allocate.answers(expected, batch(expected)))
    assert torch.equal(got, allocate.answers(model, batch(model)))
    plan["formats"].pop("lm_head")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="plan of another model: it lacks 'lm_head', one of 1"):
        plan_of(model, str(tmp_path / "plan.json"))
