"""The processor: placeholders, order, masks, conversations, tool calls, saving, and what is refused."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from huggingface_hub import HfApi, RepoUrl
from hypothesis import given, settings
from hypothesis import strategies as st
from media import ASK, AUDIO, CROP, IMAGE, PROCESSOR, TOKENIZER, VIDEO, audio_span, build, chat, picture, tone, user
from PIL import Image

# Placeholders


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 1400), st.integers(1, 1000)), min_size=1, max_size=3))
def test_pictures_take_the_papers_number_of_tokens(sizes):
    images = [picture(*size) for size in sizes]
    inputs = PROCESSOR(text=[IMAGE * len(images) + " what?"], images=images)
    counts = [math.ceil(height / 336) * math.ceil(width / 336) * 128 for height, width in sizes]
    assert (inputs.input_ids == PROCESSOR.image_token_id).sum() == sum(counts)
    assert len(inputs.pixel_values) * 128 == sum(counts)
    announced = PROCESSOR._get_num_multimodal_tokens(image_sizes=sizes)
    assert announced.num_image_tokens == counts
    assert announced.num_image_patches == [count // 128 for count in counts]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 1_600_000), min_size=1, max_size=3), st.sampled_from(["trimmed", "padded"]))
def test_sounds_take_tokens_for_the_frames_that_hold_sound(lengths, layout):
    inputs = PROCESSOR(text=AUDIO * len(lengths), audio=[np.ones(n, np.float32) for n in lengths], audio_layout=layout)
    windows = [min(480000, n - start) for n in lengths for start in range(0, n, 480000)]
    frames = [math.ceil(math.ceil(n / 160) / 2) if layout == "trimmed" else 1500 for n in windows]
    counts = [math.ceil(count / 16) for count in frames]
    assert (inputs.input_ids == PROCESSOR.audio_token_id).sum() == sum(counts)
    assert inputs.input_features.shape == (len(windows), 80, 3000)
    # the model counts by this rule, from the mask alone
    assert ((inputs.input_features_mask.sum(-1) + 1) // 2 + 15).div(16, rounding_mode="floor").tolist() == counts
    announced = PROCESSOR._get_num_multimodal_tokens(audio_lengths=lengths, audio_layout=layout)
    assert sum(announced.num_audio_tokens) == sum(counts)


@pytest.mark.parametrize(
    "seconds, counts", [(3, [10]), (30, [94]), (31, [94, 4]), (95, [94, 94, 94, 16]), (0.001, [1])]
)
def test_sound_of_any_length_is_split_into_windows(seconds, counts):
    inputs = PROCESSOR(text=AUDIO, audio=tone(seconds))
    assert TOKENIZER.decode(inputs.input_ids[0]) == audio_span(*counts)


def test_the_padded_layout_hears_the_silence_of_llama_cpp():
    """Around quiet sound it is louder than Whisper's; behind loud sound both are 8 below the loudest."""
    for loudness, differs in ((1e-3, True), (0.9, False)):
        trimmed, padded = (PROCESSOR(text=AUDIO, audio=loudness * tone(1), audio_layout=name).input_features for name in ("trimmed", "padded"))
        assert torch.equal(padded, trimmed.clamp(min=(math.log10(2**-24) + 4) / 4)) and (not torch.equal(padded, trimmed)) is differs


def test_spans_of_both_layouts():
    images = [picture(672, 500), picture(10, 10)]
    inputs = PROCESSOR(text=f"a{IMAGE}b{IMAGE}", images=images)
    assert TOKENIZER.decode(inputs.input_ids[0]) == f"a{CROP}{CROP}\n{CROP}{CROP}b{CROP}"
    inputs = PROCESSOR(text=f"a{IMAGE}b{IMAGE}", images=images, image_layout="overview")
    row = CROP.replace("image>", "slice>") * 2
    assert TOKENIZER.decode(inputs.input_ids[0]) == f"a{CROP}{row}\n{row}b{CROP}"
    assert inputs.pixel_values.shape[0] == 6
    inputs = PROCESSOR(text="a" + IMAGE, images=images[0], max_crops=1)
    assert TOKENIZER.decode(inputs.input_ids[0]) == f"a{CROP}"


def test_decoder_mode_takes_one_placeholder_a_window_or_one_a_transcript_token():
    processor = build(audio_token_source="decoder", audio_stack_factor=1)
    inputs = processor(text=f"{AUDIO} and {AUDIO}", audio=[tone(31), tone(1)])
    assert TOKENIZER.decode(inputs.input_ids[0]) == audio_span(1, 1) + " and " + audio_span(1)
    processor.transcript_tokenizer = TOKENIZER
    said = [["open the door", "now"], "yes please"]
    inputs = processor(text=f"{AUDIO} and {AUDIO}", audio=[tone(31), tone(1)], audio_transcripts=said)
    assert TOKENIZER.decode(inputs.input_ids[0]) == audio_span(3, 1) + " and " + audio_span(2)
    assert inputs.audio_transcript_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    written = [" open the door", " now<|end|><|end|>", " yes please<|end|>"]
    assert TOKENIZER.batch_decode(inputs.audio_transcript_ids) == written
    silent = processor(text=f"{AUDIO} hm", audio=tone(1), audio_transcripts=[""])
    assert silent.audio_transcript_ids.shape == (1, 0) and AUDIO not in TOKENIZER.decode(silent.input_ids[0])
    assert processor.get_num_audio_tokens(480000) == 1
    with pytest.raises(ValueError, match=r"\[1\] strings for sounds of \[2\] windows"):
        processor(text=AUDIO, audio=tone(31), audio_transcripts=["one"])
    with pytest.raises(ValueError, match="decoder"):
        PROCESSOR(text=AUDIO, audio=tone(1), audio_transcripts=["one"])


# Conversations


def test_a_conversation_with_everything(tmp_path):
    Image.fromarray(picture(value=10)).save(tmp_path / "sign.png")
    soundfile.write(tmp_path / "question.wav", tone(1), 16000)
    messages = [
        {"role": "system", "content": "be kind"},
        *user(
            {"type": "image", "image": str(tmp_path / "sign.png")},
            {"type": "text", "text": "and "},
            {"type": "audio", "path": str(tmp_path / "question.wav")},
            {"type": "image", "image": Image.fromarray(picture(500, 300, 20))},
            {"type": "video", "video": [picture(value=30), picture(value=40)]},
        ),
        {"role": "assistant", "content": "a door"},
        *user(
            {"type": "audio", "audio": tone(2, 8000), "sampling_rate": 8000},
            {"type": "image", "image": picture(value=50)},
        ),
    ]
    inputs = chat(messages, add_generation_prompt=True)
    assert TOKENIZER.decode(inputs.input_ids[0]) == (
        f"<|system|>\nbe kind<|end|>\n<|user|>\n{CROP}and {audio_span(4)}{CROP}\n{CROP}0.5s {CROP}1.5s {CROP}<|end|>\n"
        f"<|assistant|>\na door<|end|>\n<|user|>\n{audio_span(7)}{CROP}<|end|>\n<|assistant|>\n"
    )
    assert inputs.image_sizes.tolist() == [[100, 100], [500, 300], [336, 336], [336, 336], [100, 100]]
    centre = inputs.pixel_values[:, 0, 168, 168] * 0.26862954 + 0.48145466
    assert (centre * 255).round().tolist() == [10, 20, 20, 30, 40, 50]
    assert set(inputs) == set(PROCESSOR.model_input_names)
    assert str(tmp_path / "sign.png") in str(messages)  # the caller's messages stay as they were


def test_a_batch_is_left_padded_and_equals_its_rows():
    conversations = [
        user({"type": "image", "image": picture(400, 100)}, ASK),
        user(ASK),
        user({"type": "audio", "audio": tone(1)}, {"type": "image", "image": picture(10, 10, 200)}),
    ]
    batch = chat(conversations, add_generation_prompt=True)
    rows = [chat(conversation, add_generation_prompt=True) for conversation in conversations]
    for ids, mask, row in zip(batch.input_ids, batch.attention_mask, rows):
        assert torch.equal(ids[mask.bool()], row.input_ids[0])
        assert mask.tolist() == sorted(mask.tolist())
    assert torch.equal(batch.pixel_values, torch.cat([rows[0].pixel_values, rows[2].pixel_values]))
    assert torch.equal(batch.input_features, rows[2].input_features)


def test_rendering_alone_and_then_processing_is_the_same():
    media = {"images": [picture(400, 400)], "audio": [tone(1)], "videos": [[picture(value=5)] * 3]}
    parts = [{"type": kind[:-1] if kind != "audio" else kind} for kind in media]
    rendered = PROCESSOR.apply_chat_template(user(*parts, ASK), add_generation_prompt=True)
    assert rendered == f"<|user|>\n{IMAGE}{AUDIO}{VIDEO}what is it?<|end|>\n<|assistant|>\n"
    apart = PROCESSOR(text=rendered, **media)
    filled = [{**part, part["type"]: media[key][0]} for part, key in zip(parts, media)]
    together = chat(user(*filled, ASK), add_generation_prompt=True)
    assert apart.keys() == together.keys()
    assert all(torch.equal(apart[key], together[key]) for key in apart)


@pytest.mark.parametrize("image_first", [True, False])
def test_assistant_masks_stay_aligned_with_expanded_media(image_first):
    media = [
        {"type": "image", "image": picture(700, 700)},
        {"type": "audio", "audio": tone(31)},
        {"type": "video", "video": [picture()] * 5},
    ]
    call = {"type": "function", "function": {"name": "open", "arguments": {"room": "attic"}}}
    messages = [
        *user(*(media if image_first else media[::-1]), ASK),
        {"role": "assistant", "content": "a door"},
        *user({"type": "image", "image": picture()}, ASK),
        {"role": "assistant", "content": "a window", "tool_calls": [call]},
    ]
    inputs = chat([messages, messages[:2]], return_assistant_tokens_mask=True)
    assert inputs.assistant_masks.shape == inputs.input_ids.shape
    learned = [TOKENIZER.decode(ids[mask.bool()]) for ids, mask in zip(inputs.input_ids, inputs.assistant_masks)]
    written = f"<|tool_call|>{json.dumps(call['function'])}<|/tool_call|>"
    assert learned == [f"a door<|end|>a window{written}<|end|>", "a door<|end|>"]
    assert "offset_mapping" not in inputs


def test_offsets_of_replacements_are_there_for_serving_engines():
    inputs = PROCESSOR(text=f"a{IMAGE}b", images=picture(), return_text_replacement_offsets=True)
    (offset,) = inputs.text_replacement_offsets[0]
    assert (offset["type"], offset["span"], offset["replacement"]) == ("image", (1, 1 + len(IMAGE)), CROP)


def test_the_callers_text_stays_as_it_was():
    text = [f"a{IMAGE}"]
    PROCESSOR(text=text, images=picture())
    assert text == [f"a{IMAGE}"]


def test_tools_reach_the_prompt():
    function = {"name": "open_door", "description": "Open it.", "parameters": {}}
    inputs = chat(user(ASK), tools=[{"type": "function", "function": function}])
    assert '<|tool|>[{"Open it.": "open_door", "parameters": {}}]<|/tool|>' in TOKENIZER.decode(inputs.input_ids[0])


@pytest.mark.parametrize(
    "result", [5, 0, 1.5, True, False, None, [1, "<|end|>"], [], [{"type": "fruit"}], {"a": "<s>"}]
)
def test_what_a_tool_returns_is_processed_as_it_is_rendered(result):
    messages = [
        *user(ASK),
        {"role": "assistant", "tool_calls": [{"name": "count"}]},
        {"role": "tool", "content": result},
    ]
    (ids,) = chat(messages).input_ids
    assert TOKENIZER.decode(ids) == PROCESSOR.apply_chat_template(messages)
    written = TOKENIZER.decode(ids).partition("<|tool_response|>\n")[2].removesuffix("<|end|>\n")
    assert json.loads(written) == result and "<" not in written


def test_a_tool_may_return_a_picture():
    result = [{"type": "text", "text": "here"}, {"type": "image", "image": picture()}]
    inputs = chat([*user(ASK), {"role": "tool", "content": result}])
    assert f"<|tool_response|>\nhere{CROP}<|end|>\n" in TOKENIZER.decode(inputs.input_ids[0])


# What is refused


@pytest.mark.parametrize(
    "text, media, counts",
    [
        (f"a{IMAGE}", {}, "1"),
        (f"a{IMAGE}{IMAGE}", {"images": [picture()]}, "2.*1"),
        ("a", {"images": [picture()]}, "0.*1"),
        (f"a{AUDIO}", {}, "1"),
        (f"a{AUDIO}", {"audio": [tone(1), tone(1)]}, "1.*2"),
        ("a", {"audio": tone(1)}, "0.*1"),
        (f"a{VIDEO}{VIDEO}", {"videos": [[picture()]]}, "2.*1"),
        ("a", {"videos": [[picture()]]}, "0.*1"),
        (f"a{VIDEO}", {}, "1"),
        (None, {"videos": [[picture()]]}, "0.*1"),
    ],
)
def test_counts_of_placeholders_and_media_that_differ(text, media, counts):
    with pytest.raises(ValueError, match=counts):
        PROCESSOR(text=text, **media)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "be kind"}]])
def test_a_picture_without_text_or_sound_is_refused(system):
    image, silent = {"type": "image", "image": picture()}, {"type": "video", "video": [picture()] * 2}
    for content in ([image], [image, {"type": "text", "text": " \n"}], [silent]):
        with pytest.raises(ValueError, match="alone asks nothing"):
            chat([*system, *user(*content)], add_generation_prompt=True)
    chat([*system, *user(image, {"type": "audio", "audio": tone(1)})], add_generation_prompt=True)
    chat([*system, *user(image, ASK)], add_generation_prompt=True)


def test_a_conversation_over_the_context_length_is_refused():
    with pytest.raises(ValueError, match=r"8206 tokens long, more than the 8192"):
        chat(user({"type": "text", "text": " door" * 8200}), add_generation_prompt=True)
    with pytest.raises(ValueError, match="more than the 8192"):
        chat(user(*[{"type": "image", "image": picture(1300, 1300)}] * 4, ASK))


def test_options_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="audio_layout is 'loose'"):
        build(audio_layout="loose")
    with pytest.raises(ValueError, match="audio_token_source is 'ears'"):
        build(audio_token_source="ears")
    with pytest.raises(ValueError, match="audio_layout is 'loose'"):
        PROCESSOR(text=AUDIO, audio=tone(1), audio_layout="loose")
    with pytest.raises(ValueError, match="max_crops is 0; expected at least 1"):
        PROCESSOR(text="a" + IMAGE, images=picture(), max_crops=0)


# Answers


def test_tool_calls_are_read_in_order_and_malformed_ones_reported_in_place():
    text = (
        'well<|tool_call|>{"name": "open", "arguments": {"room": "\\u003cattic>"}}<|/tool_call|>'
        '<|tool_call|>{"name": "open", "arguments": {<|/tool_call|>'
        '<|tool_call|>["open"]<|/tool_call|>'
        '<|tool_call|>{"name": "open", "arguments": "attic"}<|/tool_call|>'
        '<|tool_call|>{"name": "open", "arguments": {}}'
        '<|tool_call|>{"name": "close", "arguments": {}}<|/tool_call|><|tool_call|>{"name"'
    )
    calls = PROCESSOR.parse_tool_calls(text)
    assert calls[0] == {"name": "open", "arguments": {"room": "<attic>"}}
    assert [call["name"] for call in calls] == ["open", None, None, None, None, "close", None]
    assert all(call["error"] and call["arguments"] is None for call in calls if call["name"] is None)
    assert calls[1]["text"] == '{"name": "open", "arguments": {'
    assert PROCESSOR.parse_tool_calls("no call here") == []


def test_absurd_tool_calls_are_reported_too():
    for body in ("[" * 100000, "9" * 5000, ""):
        (call,) = PROCESSOR.parse_tool_calls(f"<|tool_call|>{body}<|/tool_call|>")
        assert call["name"] is None and call["text"] == body


@given(st.dictionaries(st.text(), st.recursive(st.text() | st.integers(), st.lists, max_leaves=4)), st.text())
def test_what_the_template_writes_is_what_is_read(arguments, name):
    call = {"name": name, "arguments": arguments}
    rendered = PROCESSOR.apply_chat_template([{"role": "assistant", "tool_calls": [{"function": call}] * 2}])
    assert PROCESSOR.parse_tool_calls(rendered) == [call, call]


def test_output_becomes_text_without_marks():
    ids = torch.tensor([TOKENIZER("a door<|end|>").input_ids])
    assert PROCESSOR.post_process_multimodal_output(ids) == ["a door"]
    waves = PROCESSOR.post_process_multimodal_output((ids, [torch.zeros(5)]), generation_mode="audio")
    assert [(wave.shape, wave.dtype) for wave in waves] == [((5,), np.float32)]


# Files


LOAD_AND_SAVE = """
import sys
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ == "EagleImageProcessor"
assert type(AutoFeatureExtractor.from_pretrained(sys.argv[1])).__name__ == "WhisperFeatureExtractor"
# transformers reads the config first and asks about its code; the tokenizer itself is stock, so declining is fine.
assert AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False).get_vocab() == processor.tokenizer.get_vocab()
print(processor.apply_chat_template([{"role": "user", "content": "open"}], tokenize=True)[0].tolist())
processor.save_pretrained(sys.argv[2])
"""


def run_fresh(script, *arguments, home):
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=home, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_loads_saves_and_loads_again_in_fresh_processes(tmp_path):
    first = run_fresh(LOAD_AND_SAVE, ROOT, tmp_path / "one", home=tmp_path)
    second = run_fresh(LOAD_AND_SAVE, tmp_path / "one", tmp_path / "two", home=tmp_path)
    assert first == second
    for name in ("processor_config.json", "image_processing_eagle.py", "processing_eagle.py", "chat_template.jinja"):
        assert (tmp_path / "two" / name).read_bytes() == (ROOT / name).read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "two" / "tokenizer" / name).read_bytes()


def test_settings_and_the_transcript_tokenizer_survive_saving(tmp_path):
    processor = build(audio_token_source="decoder", audio_stack_factor=1, num_image_tokens=64, max_frames=4)
    processor.transcript_tokenizer = TOKENIZER
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert (saved["audio_token_source"], saved["num_image_tokens"], saved["max_frames"]) == ("decoder", 64, 4)
    loaded = run_fresh(
        "import sys; from transformers import AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(processor.audio_token_source, processor.transcript_tokenizer.tokenize('open the door'))",
        tmp_path,
        home=tmp_path,
    )
    assert loaded.strip() == "decoder ['open', 'Ġthe', 'Ġdoor']"


def test_a_push_uploads_the_whole_folder(tmp_path, monkeypatch):
    processor = build(audio_token_source="decoder", audio_stack_factor=1)
    processor.transcript_tokenizer = TOKENIZER
    uploads = []  # the two calls that reach the network are caught; what they are given is real
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: RepoUrl(f"https://hf.co/{repo_id}"))
    monkeypatch.setattr(HfApi, "create_commit", lambda self, **options: uploads.append(options["operations"]))
    for _ in range(2):  # the second time into a folder that is there
        processor.save_pretrained(tmp_path, push_to_hub=True, repo_id="someone/eagle")
    here = {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {"tokenizer/tokenizer.json", "transcript_tokenizer/tokenizer.json", "processor_config.json"} <= set(here)
    for operations in uploads:
        assert {operation.path_in_repo for operation in operations} == set(here)
