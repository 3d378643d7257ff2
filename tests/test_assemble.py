"""Checkpoints put together: from folders in the layouts of the published models, from the Hub, from nothing.

The published models stand here as tiny ones with their names of tensors, files and configuration keys. The tokenizers are
the stand-ins of tokenizer/stand_in.py, which have the rows and ids of the real ones.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_speech_eagle import TINY as SPEECH
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    Phi3Config,
    Phi3ForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tokenizer import build, stand_in
from training import parts
from training.assemble import (
    TOKEN_SCALE,
    assemble,
    empty_model,
    make_processor,
    named_revision,
    start_value,
    start_values,
    unit_of,
)

TEXT = {"hidden_size": 384, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
VISION = {"image_size": 56, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
AUDIO = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
EAGLE = {"image_projector_rank": 136, "num_image_tokens": 8, "audio_projector_hidden_size": 32}
SHARDS = {"max_shard_size": "26MB"}  # three: the towers, the embedding and the head, of which these take 25 MB each


def small_preset(name, path, **changes):
    """The preset `name` with narrow towers and language model, its vocabularies, ropes and ids as they are."""
    preset = json.loads((ROOT / "configs" / f"{name}.json").read_text()) | EAGLE | changes
    preset["text_config"] |= TEXT
    preset["vision_config"] |= VISION
    preset["audio_config"] |= AUDIO | (DECODER if preset["audio_token_source"] == "decoder" else {})
    if "speech_config" in preset:
        preset["speech_config"] |= SPEECH
    path.write_text(json.dumps(preset))
    return str(path)


def write_phi(folder):
    """As microsoft/Phi-3.5-mini-instruct: shards with an index, the rope under its old name, an end of its own."""
    config = json.loads((ROOT / "configs" / "eagle.json").read_text())["text_config"] | TEXT
    torch.manual_seed(1)
    Phi3ForCausalLM(Phi3Config(**config)).bfloat16().save_pretrained(folder, max_shard_size="20MB")
    rope = config.pop("rope_parameters")
    factors = {name: rope[name] for name in ("short_factor", "long_factor")}
    config |= {"rope_scaling": {"type": "longrope", **factors}, "rope_theta": rope["rope_theta"], "eos_token_id": 32000}
    config |= {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    stand_in.language_tokenizer().save_pretrained(folder)


def write_clip(folder):
    """As openai/clip-vit-large-patch14-336: PyTorch's own file, float32, both towers, positions among the weights."""
    torch.manual_seed(2)
    text = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION | {"patch_size": 14}, projection_dim=16))
    positions = {f"{tower}_model.embeddings.position_ids": torch.arange(17)[None] for tower in ("vision", "text")}
    folder.mkdir()
    torch.save({**model.state_dict(), **positions}, folder / "pytorch_model.bin")
    config = {"model_type": "clip", "projection_dim": 16, "text_config": text, "vision_config": VISION | {"patch_size": 14}}
    (folder / "config.json").write_text(json.dumps(config))


def write_whisper(folder):
    """As openai/whisper-small: one safetensors file, float32, encoder and decoder."""
    config = json.loads((ROOT / "configs" / "eagle.json").read_text())["audio_config"] | AUDIO | DECODER
    torch.manual_seed(3)
    WhisperForConditionalGeneration(WhisperConfig(**config)).save_pretrained(folder)
    stand_in.transcript_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders {part: folder} with the three models; copy one before changing it."""
    root = tmp_path_factory.mktemp("published")
    folders = {name: root / name for name in ("language_model", "vision_tower", "audio_tower")}
    for name, write in zip(folders, (write_phi, write_clip, write_whisper), strict=True):
        write(folders[name])
    return folders


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return small_preset("eagle", tmp_path_factory.mktemp("preset") / "eagle.json")


@pytest.fixture(scope="module")
def assembled(published, preset, tmp_path_factory):
    output = tmp_path_factory.mktemp("assembled") / "eagle"
    assemble(preset, [], output, folders=list(published.values()), **SHARDS)
    return output


@pytest.fixture
def changed(published, tmp_path):
    """A function that copies a part's folder, so that the copy may be changed: (name) -> (copy, all folders)."""

    def copy(name):
        folder = shutil.copytree(published[name], tmp_path / name)
        return folder, [*(published | {name: folder}).values()]

    return copy


def weights(folder):
    """Every tensor of a checkpoint folder."""
    return {name: tensor for file in parts.weight_files(folder) for name, tensor in load_file(file).items()}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


# --- of published parts -------------------------------------------------------------------------------------------------


def test_every_tensor_of_the_parts_is_where_it_belongs(assembled, published):
    ours = weights(assembled)
    phi = weights(published["language_model"])
    clip = torch.load(published["vision_tower"] / "pytorch_model.bin", weights_only=True)
    whisper = weights(published["audio_tower"])
    expected = {f"model.language_model.{name.removeprefix('model.')}": t for name, t in phi.items() if name != "lm_head.weight"}
    expected["lm_head.weight"] = phi["lm_head.weight"]
    left_out = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "vision_model.embeddings.position_ids")
    for name, tensor in clip.items():
        if not name.startswith(left_out):
            expected[f"model.vision_tower.{name.removeprefix('vision_model.')}"] = tensor
    expected |= {f"model.audio_tower.{name.removeprefix('model.')}": tensor for name, tensor in whisper.items()}
    projectors = {name for name in ours if name.split(".")[1] in ("multi_modal_projector", "audio_projector")}
    assert set(ours) == set(expected) | projectors and len(projectors) > 20
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor.to(torch.bfloat16)), name
    said = {name: part["left_out"] for name, part in manifest(assembled)["components"].items()}
    assert said["language_model"] == said["audio_tower"] == []
    assert sorted(said["vision_tower"]) == sorted(name for name in clip if name.startswith(left_out))


def test_the_projectors_start_as_the_model_starts_them(assembled, preset):
    ours = weights(assembled)
    torch.manual_seed(0)
    model_class = type(empty_model(preset))
    own = dict(model_class(model_class.config_class.from_json_file(preset)).named_parameters())
    for name in (name for name in ours if "_projector." in name):
        if own[name].std() == 0 or name.endswith((".query", "ln_q.bias")):  # not drawn
            assert torch.equal(ours[name], own[name].bfloat16()), name
        else:
            assert ours[name].float().std().item() == pytest.approx(own[name].std().item(), rel=0.05), name
    assert set(ours["model.multi_modal_projector.ln_kv.weight"].tolist()) == {0.25}  # the local start
    assert manifest(assembled)["random"] == ["audio_projector", "multi_modal_projector"]


def test_shards_index_and_manifest_agree(assembled):
    index = json.loads((assembled / "model.safetensors.index.json").read_text())
    files = sorted(assembled.glob("model-*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{k}-of-0000{len(files)}.safetensors" for k in range(1, len(files) + 1)]
    for file in files:
        tensors = load_file(file)
        assert set(tensors) == {name for name, where in index["weight_map"].items() if where == file.name}
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert sum(2 * tensor.numel() for tensor in tensors.values()) <= 26e6
    facts = manifest(assembled)
    present = {f.relative_to(assembled).as_posix(): f for f in assembled.rglob("*") if f.is_file() and f.name != "manifest.json"}
    assert {name: {"bytes": f.stat().st_size, "sha256": parts.sha256(f)} for name, f in present.items()} == facts["files"]
    assert facts["parameters"] == sum(tensor.numel() for tensor in weights(assembled).values())
    assert index["metadata"]["total_size"] == 2 * facts["parameters"]
    assert facts["components"]["vision_tower"]["folder"] == "vision_tower"
    assert set(facts["components"]["vision_tower"]["sha256"]) == {"config.json", "pytorch_model.bin"}
    config = json.loads((assembled / "config.json").read_text())
    assert config["auto_map"]["AutoModelForMultimodalLM"] == "modeling_eagle.EagleForConditionalGeneration"
    assert (config["dtype"], config["architectures"]) == ("bfloat16", ["EagleForConditionalGeneration"])
    assert json.loads((assembled / "generation_config.json").read_text())["eos_token_id"] == [32007, 32000]


def test_other_layouts_of_the_same_parts_give_the_same_bytes(assembled, published, preset, tmp_path):
    """One file where there were shards; towers as transformers saves them today, bare and without a head."""
    for name, folder in published.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("model*", "pytorch_model.bin"))
    save_file(weights(published["language_model"]), tmp_path / "language_model" / "model.safetensors")
    clip = torch.load(published["vision_tower"] / "pytorch_model.bin", weights_only=True)
    flat = {name.removeprefix("vision_model."): t.clone() for name, t in clip.items() if name.startswith("vision_model.")}
    flat.pop("embeddings.position_ids")
    save_file(flat, tmp_path / "vision_tower" / "model.safetensors")
    config = json.loads((tmp_path / "vision_tower" / "config.json").read_text())["vision_config"]
    (tmp_path / "vision_tower" / "config.json").write_text(json.dumps(config | {"model_type": "clip_vision_model"}))
    bare = {name.removeprefix("model."): tensor for name, tensor in weights(published["audio_tower"]).items()}
    bare["proj_out.weight"] = bare["decoder.embed_tokens.weight"].clone()
    save_file(bare, tmp_path / "audio_tower" / "model.safetensors")
    assemble(preset, [], tmp_path / "out", folders=[tmp_path / name for name in published], **SHARDS)
    assert manifest(tmp_path / "out")["components"]["audio_tower"]["left_out"] == ["proj_out.weight"]
    for file in assembled.glob("model-*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_phone_preset_leaves_the_audio_decoder_and_ignores_the_class_token(published, tmp_path):
    edge = small_preset("eagle-edge", tmp_path / "edge.json")
    assemble(edge, [], tmp_path / "out", folders=list(published.values()))
    facts, ours = manifest(tmp_path / "out"), weights(tmp_path / "out")
    whisper = weights(published["audio_tower"])
    assert sorted(facts["components"]["audio_tower"]["left_out"]) == sorted(n for n in whisper if n.startswith("model.decoder."))
    assert not any(name.startswith("model.audio_tower.decoder") for name in ours)
    assert not (tmp_path / "out" / "transcript_tokenizer").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vision_use_cls"] is False
    assert "model.vision_tower.embeddings.class_embedding" in ours  # CLIP's names, though the tower does not use it
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_processor_has_the_parts_tokenizers_and_the_presets_settings(assembled, published):
    processor = AutoProcessor.from_pretrained(assembled, trust_remote_code=True)
    vocabulary = processor.tokenizer.get_vocab()
    plain = AutoTokenizer.from_pretrained(published["language_model"]).get_vocab()
    assert (processor.image_token_id, processor.audio_token_id, len(processor.tokenizer)) == (32022, 32023, 32024)
    assert {text: vocabulary[text] for text in plain} == plain
    assert processor.transcript_tokenizer.convert_tokens_to_ids(["<|en|>", "<|notimestamps|>"]) == [50259, 50363]
    assert (processor.audio_token_source, processor.image_processor.crop_size, processor.num_image_tokens) == ("decoder", 56, 8)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (assembled / name).read_bytes() == (assembled / "tokenizer" / name).read_bytes()
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the lamp is open"}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    answer = batch["input_ids"][0][batch["assistant_masks"][0].bool()]
    assert processor.tokenizer.decode(answer) == "the lamp is open<|end|>" and answer[-1] == 32007


@pytest.mark.slow
@pytest.mark.parametrize("name, heard", [("eagle", 1), ("eagle-a", 1), ("eagle-edge", 94)])
def test_a_fresh_process_loads_it_and_writes_to_a_picture_and_a_sound(name, heard, tmp_path):
    assemble(small_preset(name, tmp_path / "preset.json"), [], tmp_path / "out", random_init=True)
    command = [sys.executable, "-m", "training.full_size", "--model", str(tmp_path / "out"), "--tokens", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    written = re.search(r"in torch.bfloat16 on .* seen and (\d+) heard; written: \[(\d+), (\d+)\]", done.stdout)
    assert written and int(written[1]) == heard, done.stdout
    assert re.search(r"generate +\d+\.\d s   peak memory  \d\.\d\d GB", done.stdout), done.stdout
    facts = manifest(tmp_path / "out")
    assert facts["components"] == {} and facts["tokenizer"] == "stand-in"
    parts = ["audio_projector", "audio_tower", "language_model", "lm_head", "multi_modal_projector", "vision_tower"]
    assert facts["random"] == sorted(parts + (["speech_decoder", "speech_projector"] if name == "eagle-a" else []))


# --- what does not fit --------------------------------------------------------------------------------------------------


def rename(folder, change):
    """Writes the folder's tensors again as `change` (a function of their dictionary) leaves them."""
    tensors = weights(folder)
    change(tensors)
    for file in folder.glob("model*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("model.layers.1.mlp.down_proj.weight"), r"model.language_model.layers.1.mlp.down_proj.weight is missing$"),
        (lambda t: t.update({"model.layers.2.extra": torch.zeros(1)}), r"model.layers.2.extra has no place in the preset$"),
        (lambda t: t.update({"score.weight": torch.zeros(1)}), r"score.weight has no place in the preset$"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(5)}),
            r"model.norm.weight has shape \[5\], but the preset's is \[384\]$",
        ),
        (lambda t: [t.pop(n) for n in list(t) if ".layers.1." in n], r"is missing; .*is missing; .*is missing; 6 such in all$"),
    ],
)
def test_a_language_model_with_other_tensors_is_refused_by_name(change, message, changed, preset, tmp_path):
    folder, folders = changed("language_model")
    rename(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        assemble(preset, [], tmp_path / "out", folders=folders)
    assert str(caught.value).startswith(f"{folder} does not fit the preset's language_model: ")
    assert not (tmp_path / "out").exists()


def test_a_tensor_under_its_old_and_new_name_is_refused(changed, preset, tmp_path):
    folder, folders = changed("audio_tower")
    rename(folder, lambda t: t.update({"encoder.conv1.bias": t["model.encoder.conv1.bias"].clone()}))
    with pytest.raises(ValueError, match="conv1.bias is there twice$"):
        assemble(preset, [], tmp_path / "out", folders=folders)


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        ("language_model", "rope_scaling", {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}, "rope_parameters"),
        ("language_model", "sliding_window", 2047, "sliding_window 2047, but the preset's language_model has 262144"),
        ("audio_tower", "decoder_attention_heads", 4, "decoder_attention_heads 4, but the preset's audio_tower has 2"),
        ("vision_tower", "vision_config", VISION | {"patch_size": 14, "hidden_act": "gelu"}, "hidden_act gelu, but .* has quick_gelu"),
    ],
)
def test_a_part_that_computes_otherwise_is_refused(part, key, value, message, changed, preset, tmp_path):
    folder, folders = changed(part)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=message):
        assemble(preset, [], tmp_path / "out", folders=folders)


@pytest.mark.parametrize("file", ["model-00002-of-00003.safetensors", "pytorch_model.bin", "model.safetensors"])
def test_a_damaged_file_is_named(file, published, changed, preset, tmp_path):
    part = next(name for name, folder in published.items() if (folder / file).exists())
    folder, folders = changed(part)
    os.truncate(folder / file, (folder / file).stat().st_size - 1000)
    for _ in ("truncated", "overwritten"):
        with pytest.raises(ValueError, match=f"{folder / file} is damaged"):
            assemble(preset, [], tmp_path / "out", folders=folders)
        (folder / file).write_text("<html>404</html>" * 9)


def test_folders_that_are_no_parts_are_refused(published, preset, tmp_path):
    phi, clip, _ = published.values()
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    for folders, error, message in [
        ([phi, clip, empty], ValueError, f"{empty} has no config.json"),
        ([phi, clip, other], ValueError, f"{other} holds a 'llama', but the preset is made of phi3, clip, clip_vision_model, whisper"),
        ([phi, clip, phi], ValueError, f"{phi} and {phi} both hold a language_model"),
        ([phi, clip], ValueError, "no folder given holds the audio_tower: one whose model_type is whisper"),
    ]:
        with pytest.raises(error, match=message):
            assemble(preset, [], tmp_path / "out", folders=folders)


def test_absent_weights_are_named(changed, preset, tmp_path):
    folder, folders = changed("language_model")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="language_model lacks model-00002-of-00003.safetensors, which its model.saf"):
        assemble(preset, [], tmp_path / "out", folders=folders)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="language_model has no weights"):
        assemble(preset, [], tmp_path / "out", folders=folders)


def test_a_tokenizer_with_other_ids_is_refused(changed, preset, tmp_path):
    folder, folders = changed("language_model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"'<\|image_pad\|>' has id 32023 in the tokenizer, but 32022 in the preset"):
        assemble(preset, [], tmp_path / "out", folders=folders)
    build.train().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"'<\|image_pad\|>' has id 16 in the tokenizer"):
        assemble(preset, [], tmp_path / "out", folders=folders)


def test_an_unknown_preset_and_a_full_disk_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no preset 'eagel'; give one of eagle, eagle-a, eagle-edge, eagle-tiny, eagle-tiny-a, or a JSON"):
        assemble("eagel", [], tmp_path / "out")
    path = tmp_path / "huge.json"
    small_preset("eagle-edge", path)
    huge = json.loads(path.read_text())
    huge["text_config"]["vocab_size"] = 10**11
    path.write_text(json.dumps(huge))
    with pytest.raises(OSError, match=r"GB free, but 1536\d\d\.\d\d GB are needed there"):
        assemble(str(path), [], tmp_path / "out", random_init=True)
    assert not (tmp_path / "out").exists()


# --- killed, resumed, repeated ------------------------------------------------------------------------------------------

# Kills itself (SIGKILL) at the second shard: before that gets its name, when it lies there whole under another, or after,
# when unfinished.json does not list it yet.
KILLED = """
import os, signal, sys
from training import assemble
rename, moment, shards = os.replace, sys.argv.pop(1), 0
def replace(source, target):
    global shards
    shards += target.name.endswith(".safetensors")
    last = target.name.endswith(".safetensors") and shards == 2
    if last and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
assemble.os.replace = replace
assemble.main()
"""


def command(preset, output, published):
    folders = [str(folder) for folder in published.values()]
    return ["--preset", preset, "--from", *folders, "--output", str(output), "--max-shard-size", SHARDS["max_shard_size"]]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(moment, assembled, published, preset, tmp_path):
    output = tmp_path / "out"
    arguments = command(preset, output, published)
    done = subprocess.run([sys.executable, "-c", KILLED, moment, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr[-2000:]
    first = output / "model-00001-of-00003.safetensors"
    assert (output / "model-00002-of-00003.safetensors").exists() == (moment == "after")
    assert not (output / "manifest.json").exists() and not (output / "config.json").exists()
    written = first.stat().st_ino
    subprocess.run([sys.executable, "-m", "training.assemble", *arguments], cwd=ROOT, check=True, capture_output=True)
    assert first.stat().st_ino == written, "a whole shard was written again"
    assert manifest(output) == manifest(assembled)
    assert not list(output.glob("*.part")) and not (output / "unfinished.json").exists()


def test_a_disk_that_fills_up_loses_nothing(assembled, published, preset, tmp_path):
    """No file may grow beyond 22 MB, as on a disk that is full then: the second one takes 25."""
    output = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (22_000_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            assemble(preset, [], output, folders=list(published.values()), **SHARDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in sorted(output.glob("*.safetensors"))] == ["model-00001-of-00003.safetensors"]
    assert not (output / "manifest.json").exists()
    assemble(preset, [], output, folders=list(published.values()), **SHARDS)
    assert manifest(output) == manifest(assembled)


def test_the_same_command_again_repairs_what_was_damaged_and_leaves_the_rest(assembled, published, preset, tmp_path):
    output = shutil.copytree(assembled, tmp_path / "out")
    before = {file.name: file.stat().st_ino for file in output.glob("model-*.safetensors")}
    broken, absent, *kept = sorted(before)
    with (output / broken).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    (output / absent).unlink()
    assemble(preset, [], output, folders=list(published.values()), **SHARDS)
    assert manifest(output) == manifest(assembled)
    assert {name: (output / name).stat().st_ino for name in kept} == {name: before[name] for name in kept}
    assert parts.sha256(output / broken) == parts.sha256(assembled / broken)


def test_a_folder_with_something_else_is_left_alone(assembled, published, preset, tmp_path):
    output = shutil.copytree(assembled, tmp_path / "out")
    with pytest.raises(ValueError, match="holds a checkpoint with another 'seed' "):
        assemble(preset, [], output, seed=1, folders=list(published.values()), **SHARDS)
    with pytest.raises(ValueError, match="holds a checkpoint with another 'components'"):
        assemble(preset, [], output, random_init=True, **SHARDS)
    assert manifest(output) == manifest(assembled)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_text("precious")
    with pytest.raises(ValueError, match="mine is not empty and has no manifest.json of this script"):
        assemble("eagle-tiny", [], tmp_path / "mine")
    assert (tmp_path / "mine" / "model.safetensors").read_text() == "precious"


# --- of the Hub ---------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download asks for: a branch's commit, a commit's files, a file. Files no one needs are empty."""

    folders, commits = {}, {}  # by repository
    useless = ("README.md", "tf_model.h5", "flax_model.msgpack")

    def log_message(self, *_):
        pass

    def send(self, content, **headers):
        self.send_response(200)
        for name, value in ({"Content-Length": len(content)} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_GET(self):
        path = urlsplit(self.path).path.removeprefix("/api/models/").strip("/").split("/")
        repository, what, revision = "/".join(path[:2]), path[2], path[3]
        commit, folder = self.commits[repository], self.folders[repository]
        if revision not in ("main", commit):
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif what == "revision":
            self.send(json.dumps({"id": repository, "sha": commit, "siblings": []}).encode(), Content_Type="application/json")
        elif what == "tree":
            files = [{"path": f.name, "size": f.stat().st_size} for f in folder.iterdir()]
            files += [{"path": name, "size": 10**15} for name in self.useless]
            entries = [{"type": "file", "oid": "0" * 40} | file for file in files]
            self.send(json.dumps(entries).encode(), Content_Type="application/json")
        else:
            content = (folder / path[4]).read_bytes()
            self.send(content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()[:40]}"')

    do_HEAD = do_GET


@pytest.fixture
def hub(published):
    """The address of a Hub with the three repositories; the language model's `main` is not at the pinned commit."""
    Hub.folders = {parts.PARTS[name].repository: folder for name, folder in published.items()}
    Hub.commits = {part.repository: part.revision for part in parts.PARTS.values()}
    Hub.commits[parts.PARTS["language_model"].repository] = "5" * 40
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_parts_of_the_hub_are_taken_at_their_pins_or_as_asked(hub, assembled, preset, tmp_path):
    def run(*arguments):
        environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub}
        command = [sys.executable, "-m", "training.assemble", "--preset", preset, "--output", str(tmp_path / "out"), *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    refused = run()
    pin = parts.PARTS["language_model"].revision
    assert refused.returncode == 1 and f"microsoft/Phi-3.5-mini-instruct at {pin} is neither in" in refused.stderr
    assert "--random-init" in refused.stderr and not (tmp_path / "out").exists()
    done = run("--revision", "language_model=main", "--max-shard-size", SHARDS["max_shard_size"])
    assert done.returncode == 0, done.stderr[-2000:]
    components, local = manifest(tmp_path / "out")["components"], manifest(assembled)["components"]
    assert [part["revision"] for part in components.values()] == list(Hub.commits.values())
    assert [part["repository"] for part in components.values()] == list(Hub.commits)
    assert [part["sha256"] for part in components.values()] == [part["sha256"] for part in local.values()]
    fetched = {file.name for file in (tmp_path / "home").rglob("*")}
    assert {"tokenizer.json", "pytorch_model.bin"} <= fetched and not fetched & set(Hub.useless)


def test_a_revision_names_its_part():
    assert named_revision("audio_tower=refs/pr/3") == ("audio_tower", "refs/pr/3")
    for text in ("text=main", "audio_tower", "audio_tower="):
        with pytest.raises(argparse.ArgumentTypeError, match="is not PART=REVISION with a part of language_model, vision"):
            named_revision(text)


# --- of nothing ---------------------------------------------------------------------------------------------------------


def test_eagle_tiny_is_what_it_was(tmp_path):
    assemble("eagle-tiny", [], tmp_path / "out", seed=0)
    ours, model = weights(tmp_path / "out"), empty_model("eagle-tiny")
    assert set(ours) == set(load_file(ROOT / "model.safetensors"))
    assert {name: tuple(t.shape) for name, t in ours.items()} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    for name in ("tokenizer.json", "chat_template.jinja", "processor_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (ROOT / name).read_bytes(), name
    embedding = ours["model.language_model.embed_tokens.weight"].float()
    norm = ours["model.language_model.norm.weight"].float()
    assert embedding.pow(2).mean().sqrt().item() == pytest.approx(TOKEN_SCALE, rel=0.02)
    assert (embedding.std() * norm).mean().item() == pytest.approx(0.02, rel=0.02)  # the logits of the usual start
    tokenizer = AutoTokenizer.from_pretrained(ROOT)
    spellings = tokenizer.convert_tokens_to_ids(["door", "\u0120door", "\u0120anna"])
    likeness = torch.nn.functional.cosine_similarity(embedding[spellings[0]], embedding[spellings], dim=-1)
    assert likeness[1] > 0.6 and likeness[2].abs() < 0.3 and embedding.isfinite().all()
    assert manifest(tmp_path / "out")["tokenizer"] == "eagle-tiny's"


def test_weights_of_stages_go_before_the_start_and_the_last_counts(tmp_path):
    for name, value in (("first", 1.0), ("second", 2.0)):
        (tmp_path / name).mkdir()
        tensors = {"vision_tower.post_layernorm.bias": torch.full((256,), value)}
        if name == "first":  # with and without the outer model's prefix
            tensors["model.language_model.norm.weight"] = torch.full((384,), 3.0)
        save_file(tensors, tmp_path / name / "model.safetensors")
    assemble("eagle-tiny", [tmp_path / "first", tmp_path / "second"], tmp_path / "out")
    ours = weights(tmp_path / "out")
    assert set(ours["model.vision_tower.post_layernorm.bias"].tolist()) == {2.0}
    assert set(ours["model.language_model.norm.weight"].tolist()) == {3.0}
    save_file({"vision_tower.nose": torch.zeros(1)}, tmp_path / "first" / "model.safetensors")
    with pytest.raises(ValueError, match=r"first holds 'vision_tower.nose' of shape \[1\], which has no place in the preset 'eagle-tiny'"):
        assemble("eagle-tiny", [tmp_path / "first"], tmp_path / "other")
    save_file({"vision_tower.post_layernorm.bias": torch.zeros(5)}, tmp_path / "first" / "model.safetensors")
    with pytest.raises(ValueError, match=r"'vision_tower.post_layernorm.bias' of shape \[5\], which is \[256\] in the preset"):
        assemble("eagle-tiny", [tmp_path / "first"], tmp_path / "other")


def test_a_model_started_piece_by_piece_starts_like_one_started_at_once(tmp_path, monkeypatch):
    """At full size a layer of the language model is a piece, as is the resampler; here half a layer."""
    model = empty_model(small_preset("eagle", tmp_path / "eagle.json"))
    tokenizer = AutoTokenizer.from_pretrained(ROOT)
    names = [name for name, parameter in model.named_parameters() if parameter.numel() > 1000]
    assert {unit_of(model, name) for name in names} == {"model", "lm_head"}
    together = {name: start_value(model, tokenizer, 0, {}, name) for name in names}
    monkeypatch.setattr("training.assemble.UNIT", 600_000)
    units = {unit_of(model, name) for name in names}
    assert units >= {"lm_head", "model.multi_modal_projector", "model.language_model.layers.0.self_attn", "model.vision_tower"}
    pieces = {name: start_value(model, tokenizer, 0, {}, name) for name in names}
    pieces |= start_values(model, "model.vision_tower.encoder.layers.0", 0)  # CLIP has a start of its own for these
    for name in names:
        spread = together[name].std().item()
        assert pieces[name].std().item() == pytest.approx(spread, rel=0.1, abs=1e-9), name
        assert pieces[name].mean().item() == pytest.approx(together[name].mean().item(), abs=0.2 * spread + 1e-9), name
    first, second = (pieces[f"model.language_model.layers.{i}.mlp.down_proj.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


def test_seeds_tell_starts_apart_and_repeat_them(tmp_path):
    edge = small_preset("eagle-edge", tmp_path / "edge.json")
    for name, seed, size in (("one", 0, "4GB"), ("again", 0, "26MB"), ("two", 1, "4GB")):
        assemble(edge, [], tmp_path / name, seed=seed, random_init=True, max_shard_size=size)
    one, again, two = (weights(tmp_path / name) for name in ("one", "again", "two"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())  # however it was cut into files
    assert not torch.equal(one["lm_head.weight"], two["lm_head.weight"])
    layers = [one[f"model.language_model.layers.{i}.mlp.down_proj.weight"] for i in (0, 1)]
    assert not torch.equal(*layers)


def test_a_fresh_speech_decoder_starts_as_its_papers_say(tmp_path):
    assemble(small_preset("eagle-a", tmp_path / "preset.json"), [], tmp_path / "out", random_init=True)
    speech = {name: w.float() for name, w in weights(tmp_path / "out").items() if name.startswith("speech_decoder.")}
    assert all(weight.isfinite().all() for weight in speech.values())
    lengths = [name for name in speech if name.endswith("weight.original0")]
    assert len(lengths) > 10
    for name in lengths:  # weight norm: a vector and its length
        direction = speech[name.replace("original0", "original1")]
        torch.testing.assert_close(speech[name].flatten(), direction.flatten(1).norm(dim=1), rtol=0.02, atol=0.02)
        assert direction.std() > 0
    assert all(not w.any() for name, w in speech.items() if name.startswith("speech_decoder.flow") and "conv_post" in name)
    assert speech["speech_decoder.decoder.upsampler.0.weight"].std() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("name", ["eagle", "eagle-a", "eagle-edge"])
def test_full_size_presets_fit_the_tokenizers_layout(name):
    config = empty_model(name).config
    processor, whose = make_processor(config, {})
    assert whose == "stand-in" and len(processor.tokenizer) == 32024
    assert (processor.transcript_tokenizer is None) == (name == "eagle-edge")
    assert processor.image_processor.crop_size == 336 and processor.num_image_tokens == 128
    assert processor.image_processor.image_layout == config.image_layout
    for key in ("audio_token_source", "audio_layout", "audio_stack_factor"):
        assert getattr(processor, key) == getattr(config, key)


def test_stand_ins_have_the_layout_of_the_real_tokenizers():
    language, transcript = stand_in.language_tokenizer(), stand_in.transcript_tokenizer()
    assert (len(language), len(transcript)) == (32_011, 51_865)
    texts = ["<unk>", "<s>", "</s>", "<0x0A>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    assert language.convert_tokens_to_ids(texts) == [0, 1, 2, 13, 32000, 32001, 32006, 32007, 32010]
    texts = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "<|30.00|>"]
    assert transcript.convert_tokens_to_ids(texts) == [50257, 50258, 50259, 50359, 50363, 51864]
    assert language.tokenize("where is the lamp") == ["▁where", "▁is", "▁the", "▁lamp"]
    for text in ("where is the lamp?\n 42 Ü 東京", " hello"):
        for tokenizer in (language, transcript):
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
