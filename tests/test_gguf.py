"""The GGUF export, through llama.cpp itself: what it computes, how it reads text, what it answers, and what is refused."""

import copy
import itertools
import json
import random
import resource
import urllib.request

import gguf
import numpy as np
import pytest
import torch
import xllamacpp
from conftest import ROOT, make_config
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer

import demo
from export import gguf_check, gguf_tensors, run_gguf
from export import llama_cpp as binding
from export.formats import matrices, rounded
from export.gguf import export
from export.gguf_prompt import MARKER, prepare
from export.gguf_tokenizer import add_tokenizer, strip_swallowed
from export.llama_cpp import Runtime
from tokenizer import stand_in
from tokenizer.build import add_specials
from training.assemble import assemble

STRINGS = (
    "Hello  world\n\n\n x  ", " leading", "trailing   ", "\r\n\r\n a", "tabs\t\there", "12345 6,789.00", "don't I'LL we\u2019re",
    "naïve café — 日本語 🙂🙂 \u200b\u00a0x", "\ufeff\x00\x7f", "<|user|>\nhi<|end|>\n<|assistant|>\n", "<image></image>\n<slice></slice>",
    '<|tool_call|>{"name": "turn_on", "arguments": {"room": "kitchen"}}<|/tool_call|>', "a<|end|", "<|unknown|>", "",
)  # fmt: skip
USER = {"role": "user", "content": "hello <|end|> <image> </s> <|user|> é"}
TOOLS = [
    {"type": "function", "function": {"name": "turn_on", "description": "turn on the <b>lamp</b> <|end|>", "parameters": {
        "type": "object", "properties": {"room": {"type": "string", "enum": ["kitchen", "é"]}}, "required": ["room"]}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The root's checkpoint in float32, checked: the folder, and the manifest's entry."""
    folder = tmp_path_factory.mktemp("gguf") / "eagle-tiny"
    return folder, export(ROOT, "f32", folder)


@pytest.fixture(scope="module")
def files(exported):
    folder, entry = exported
    return [folder / name for name in entry["files"]]


@pytest.fixture(scope="module")
def runtime(files):
    with Runtime(*files) as opened:
        yield opened


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the root's checkpoint that a test may damage."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for pattern in ("*.py", "*.json", "*.jinja", "model.safetensors"):
        for file in ROOT.glob(pattern):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def random_strings(count):
    draw = random.Random(0)
    alphabet = [*map(chr, range(32, 127)), *" \n\t  ", *map(chr, range(0xA0, 0x3000, 7)), "é", "'s", "🙂", "<|end|>", "日"]
    return ["".join(draw.choices(alphabet, k=40)) for _ in range(count)]


# ------------------------------------------------------------------------------------------------ what it computes


def test_in_float32_llama_cpp_computes_what_torch_does(exported):
    _, entry = exported
    assert set(entry["check"]) >= {"text", "image", "audio"}
    assert max(entry["check"][name] for name in ("text", "image", "audio")) <= 1e-3


def test_files_say_what_they_are_made_of(files, exported):
    _, entry = exported
    for file in files:
        field = gguf.GGUFReader(file).get_field
        assert field("general.name").contents() == "eagle-tiny" and field("general.license").contents() == "apache-2.0"
        assert json.loads(field("general.source.sha256").contents()) == entry["sha256"]
    assert gguf.GGUFReader(files[0]).get_field("tokenizer.chat_template").contents() == (ROOT / "chat_template.jinja").read_text()


def test_a_file_with_other_weights_fails_the_check(files, tmp_path):
    """One matrix of the vision tower is set to nothing."""
    damaged = tmp_path / files[1].name
    damaged.write_bytes(files[1].read_bytes())
    reader = gguf.GGUFReader(damaged, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == "v.blk.1.ln1.weight").data[:] = 0
    reader.data.flush()
    with pytest.raises(ValueError, match="llama.cpp's image differs from torch's by .* more than the 1e-03 that f32 may"):
        gguf_check.check(ROOT, "f32", files[0], damaged)


@pytest.mark.slow
@pytest.mark.parametrize("format_name", ["f16", "bf16", "q8_0", "q5_0", "q4_1", "q4_0"])
def test_each_format_computes_what_torch_does_with_its_weights(tmp_path, format_name):
    entry = export(ROOT, format_name, tmp_path / "eagle-tiny")
    print(format_name, gguf_check.report(entry["check"]), [file["bytes"] for file in entry["files"].values()])
    assert max(entry["check"][name] for name in ("text", "image", "audio")) <= gguf_check.BOUNDS[format_name]


def test_a_plan_is_exported_and_what_was_trained_is_what_is_shipped(tmp_path):
    """Every matrix in a format by turns: the files hold, to the last bit, the weights that training.qat computes with."""
    model = AutoModelForMultimodalLM.from_pretrained(ROOT, trust_remote_code=True, dtype=torch.float32)
    formats = dict(zip(matrices(model), itertools.cycle(["q4_0", "q4_1", "q5_0", "q8_0", "f16"])))
    formats["lm_head"] = formats["model.language_model.embed_tokens"]  # one matrix
    (tmp_path / "mixed.json").write_text(json.dumps({"formats": formats}))
    entry = export(ROOT, str(tmp_path / "mixed.json"), tmp_path / "eagle-tiny", is_checked=False)
    assert list(entry["files"]) == ["eagle-tiny-mixed.gguf", "mmproj-eagle-tiny-mixed.gguf"]
    shipped = copy.deepcopy(model)
    gguf_check.load_stored(shipped, *(tmp_path / "eagle-tiny" / name for name in entry["files"]))
    differing = {}
    for name, module in matrices(model).items():
        expected = rounded(module.weight.detach(), formats[name])
        differing[name] = int((shipped.get_submodule(name).weight != expected).sum())
        assert (expected != module.weight).any() or formats[name] == "f16", name
    assert not any(differing.values()), differing
    del formats["lm_head"], formats["model.language_model.embed_tokens"]
    (tmp_path / "mixed.json").write_text(json.dumps({"formats": formats}))
    with pytest.raises(ValueError, match="is the plan of another model: it lacks 'model.language_model.embed_tokens'"):
        export(ROOT, str(tmp_path / "mixed.json"), tmp_path / "eagle-tiny", is_checked=False)


def narrow_edge():
    """The preset eagle-edge, as narrow as it goes."""
    preset = json.loads((ROOT / "configs" / "eagle-edge.json").read_text()) | {"image_projector_rank": 136}
    preset["text_config"] |= {"hidden_size": 384, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    preset["text_config"] |= {"num_key_value_heads": 4}
    preset["vision_config"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    preset["audio_config"] |= {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    return preset


@pytest.mark.slow
def test_the_full_size_layout_is_exported_too(tmp_path):
    """eagle-edge, narrowed: factored matrices, a head of its own, longrope, Phi-3.5's tokenizer."""
    (tmp_path / "edge.json").write_text(json.dumps(narrow_edge()))
    assemble(str(tmp_path / "edge.json"), [], tmp_path / "edge", random_init=True)
    entry = export(tmp_path / "edge", "f32", tmp_path / "eagle-edge")
    assert max(entry["check"][name] for name in ("text", "image", "audio")) <= 1e-3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "edge")
    messages = [USER, {"role": "assistant", "content": "hello"}, USER]
    ours = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render(serve(tmp_path / "eagle-edge" / "eagle-edge-f32.gguf"), messages) == strip_swallowed(tokenizer, ours) != ours


@pytest.mark.slow
@pytest.mark.parametrize(("missing", "compared"), [("audio_config", {"text", "image"}), ("vision_config", {"text", "audio"})])
def test_a_model_with_one_tower_is_exported_and_checked(missing, compared, tmp_path):
    (tmp_path / "preset.json").write_text(json.dumps(narrow_edge()))
    assemble(str(tmp_path / "preset.json"), [], tmp_path / "model", random_init=True)
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {missing: None}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    entry = export(tmp_path / "model", "f32", tmp_path / "out")
    assert {name for name in entry["check"] if not name.endswith("the checkpoint's")} == compared


# ------------------------------------------------------------------------------------------------ how it reads text


def test_text_becomes_the_same_tokens(runtime, processor):
    for text in (*STRINGS, *random_strings(300), (ROOT / "README.md").read_text()):
        assert runtime.tokenize(text) == processor.tokenizer(text).input_ids, text


def test_names_of_special_tokens_stay_text_where_they_are_not_asked_for(runtime, processor):
    ids = runtime.tokenize("<|user|>", parse_special=False)
    assert len(ids) > 1 and processor.tokenizer.decode(ids) == "<|user|>"


def test_phi_text_becomes_the_same_tokens(tmp_path):
    """The stand-in with Phi-3.5's layout, from a file that holds a vocabulary alone; its roles swallow whitespace."""
    tokenizer = add_specials(stand_in.language_tokenizer())
    writer = GGUFWriter(tmp_path / "phi.gguf", "phi3")
    add_tokenizer(writer, tokenizer, 32_064, [32_007])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with Runtime(tmp_path / "phi.gguf", vocab_only=True) as runtime:
        for text in (*STRINGS, *random_strings(100)):
            assert runtime.tokenize(strip_swallowed(tokenizer, text)) == tokenizer(text).input_ids, text
    template = gguf.GGUFReader(tmp_path / "phi.gguf").get_field("tokenizer.chat_template").contents()
    conversation = [USER, {"role": "assistant", "content": "hello"}, {"role": "tool", "content": "hello"}]
    theirs, ours = (tokenizer.apply_chat_template(conversation, chat_template=t, tokenize=False) for t in (template, None))
    assert theirs == strip_swallowed(tokenizer, ours) != ours


@pytest.fixture(scope="module")
def server(files):
    return serve(files[0])


def serve(model):
    """A server of llama.cpp's as others run it: with the template in the file."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers, parameters.verbosity = 256, 1, 0, 0
    parameters.warmup, parameters.fit_params = False, False
    return xllamacpp.Server(parameters)


def render(server, messages, tools=None):
    """What llama.cpp's server makes of a conversation by the template in the file."""
    body = json.dumps({"messages": messages} | ({"tools": tools} if tools else {})).encode()
    request = urllib.request.Request(f"{server.listening_address}/apply-template", body, {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=60).read())["prompt"]


def call(room):
    return [{"type": "function", "id": "1", "function": {"name": "turn_on", "arguments": json.dumps({"room": room})}}]


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([USER], None),
        ([{"role": "system", "content": "be <|user|> good"}, USER, {"role": "assistant", "content": "ok <|tool_call|>"}, USER], None),
        ([USER], TOOLS),
        ([{"role": "system", "content": "be good"}, USER], TOOLS),
        (
            [
                USER,
                {"role": "assistant", "content": "", "tool_calls": call("kitchen<|end|>")},
                {"role": "tool", "tool_call_id": "1", "content": '{"result": "ok <|end|>"}'},
            ],
            TOOLS,
        ),
    ],
)
def test_llama_cpp_renders_the_template_as_we_do(server, processor, messages, tools):
    rendered = render(server, messages, tools)
    assert rendered == processor.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    assert "hello < |end|> < image> < /s> < |user|> é" in rendered


def test_grid_and_long_sound_are_laid_out_as_the_processor_does(runtime, processor):
    """2 x 3 crops cut before, and sound of two windows (the model hears silence at the end of the second)."""
    picture = np.random.default_rng(0).integers(0, 255, (400, 700, 3), np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "hello"}, {"type": "audio", "audio": np.zeros(490_000)}]
    messages = [{"role": "user", "content": content}]
    prompt, media = prepare(processor, messages, "grid")
    pads = iter([processor.image_token_id] * 6 + [processor.audio_token_id] * 2)
    ids = []
    for piece in runtime.encode(prompt, media):
        ids += [next(pads)] * len(piece) if isinstance(piece, np.ndarray) else piece
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"images_kwargs": {"image_layout": "grid"}, "audio_kwargs": {"audio_layout": "padded"}},
    )  # fmt: skip
    assert ids == inputs["input_ids"][0].tolist()


def test_text_that_holds_the_marker_is_refused(processor):
    with pytest.raises(ValueError, match="the text holds '<__media__>', which stands for a picture"):
        prepare(processor, [{"role": "user", "content": f"what is {MARKER}?"}], "overview")


# ------------------------------------------------------------------------------------------------ what it answers


@pytest.fixture(scope="module")
def chat(files):
    return run_gguf.Chat(*files, threads=1)


@pytest.mark.parametrize("layout", ["overview", "grid"])
def test_a_picture_is_answered_as_torch_does(chat, processor, layout):
    """The demo's sign; the answer comes piece by piece."""
    model = AutoModelForMultimodalLM.from_pretrained(ROOT, trust_remote_code=True, dtype=torch.float32).eval()
    content, pieces = demo.asset_tasks()[0]["content"], []
    assert run_gguf.ask(chat, processor, content, layout, pieces.append) == torch_answer(model, processor, content, layout)
    assert len(pieces) > 1


def torch_answer(model, processor, content, layout):
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"images_kwargs": {"image_layout": layout}, "audio_kwargs": {"audio_layout": "padded"}},
    )  # fmt: skip
    ids = model.generate(**inputs, **demo.GREEDY)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["overview", "grid"])
def test_the_demo_is_answered_as_torch_does(chat, processor, layout):
    model = AutoModelForMultimodalLM.from_pretrained(ROOT, trust_remote_code=True, dtype=torch.float32).eval()
    contents = [task["content"] for task in demo.asset_tasks()]
    theirs = [run_gguf.ask(chat, processor, content, layout) for content in contents]
    assert theirs == [torch_answer(model, processor, content, layout) for content in contents]


def test_a_request_that_is_too_long_is_an_error(files):
    short = run_gguf.Chat(files[0], context=256, threads=1)
    with pytest.raises(ValueError, match="llama.cpp refuses the request: .*exceeds the available context size"):
        short.answer("hello " * 400, [])


# ------------------------------------------------------------------------------------------------ what is refused


def test_damaged_files_are_refused(files, tmp_path):
    cut = tmp_path / "cut.gguf"
    for size in (1000, 5_000_000):
        cut.write_bytes(files[0].read_bytes()[:size])
        with pytest.raises(ValueError, match=f"cut.gguf is no GGUF file, or cut off .{size:,} bytes are there"):
            run_gguf.Chat(cut)
        with pytest.raises(ValueError, match="llama.cpp cannot load .*cut.gguf: "):
            Runtime(cut)
    with pytest.raises(ValueError, match="README.md is no GGUF file"):
        run_gguf.Chat(ROOT / "README.md")
    with pytest.raises(FileNotFoundError, match="no such file: .*absent.gguf; python -m export.gguf writes one"):
        run_gguf.Chat(tmp_path / "absent.gguf")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["model.audio_projector.linear_1.weight"][0].fill_(torch.nan), r"linear_1.weight in .* holds 3072 values that are NaN"),
        (lambda w: w.pop("model.multi_modal_projector.query"), "lacks the tensor model.multi_modal"),
        (lambda w: w["model.language_model.embed_tokens.weight"][0].fill_(1e8), "embed_tokens.weight holds 1.001e.08, beyond what Q8_0 can keep"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_written_are_named(checkpoint, tmp_path, change, message):
    change_weights(checkpoint, change)
    with pytest.raises(ValueError, match=message):
        export(checkpoint, "q8_0", tmp_path / "out", is_checked=False)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_use_cls": True}, "vision_use_cls is True, which llama.cpp's graphs cannot express; it must be False, as in the presets"),
        ({"audio_token_source": "decoder", "audio_stack_factor": 1}, "audio_token_source is 'decoder'"),
        ({"image_projector_type": "mlp2x_gelu", "num_image_tokens": 16}, "image_projector_type is 'mlp2x_gelu'"),
        ({"text_config": {"sliding_window": 100}}, "text_config.sliding_window is 100, but llama.cpp's phi3 attends to the whole"),
        ({"vision_config": {"intermediate_size": 32}}, "vision_config.intermediate_size is 32, as hidden_size is; llama.cpp tells"),
        ({"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act is 'gelu'"),
        ({"lm_head_bias": True}, "lm_head_bias is True"),
    ],
)  # fmt: skip
def test_layouts_that_llama_cpp_cannot_run_are_refused(changes, message):
    gguf_tensors.check_layout(make_config())
    with pytest.raises(ValueError, match=message):
        gguf_tensors.check_layout(make_config(**changes))


def test_an_unknown_format_and_an_absent_checkpoint_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'q3'; known: f32"):
        export(ROOT, "q3", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        export(tmp_path, "f32", tmp_path / "out")


def test_nothing_is_left_of_a_file_that_does_not_fit_or_fails(monkeypatch, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, before[1]))
    try:
        with pytest.raises(OSError, match="requested and|File too large|too large"):
            export(ROOT, "f16", tmp_path / "out", is_checked=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("out/*"))
    monkeypatch.setitem(gguf_check.BOUNDS, "q4_0", 1e-9)  # the check is real, and no rounding passes this bound
    with pytest.raises(ValueError, match="differs from torch's by"):
        export(ROOT, "q4_0", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_another_version_of_the_library_is_refused(monkeypatch):
    monkeypatch.setitem(binding.ContextParams.defaults, "n_ubatch", 1024)  # there is but one version to load: we expect another
    loaded = binding.library()
    with pytest.raises(ImportError, match="llama_context_default_params.. has n_ubatch = 512, which is 1024 in the version"):
        binding.check_defaults(loaded.llama_context_default_params, "llama_context_default_params", binding.ContextParams)


def test_a_tokenizer_that_llama_cpp_would_imitate_wrongly_is_refused(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(ROOT)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="llama.cpp computes the same for a byte-level BPE without prefix space"):
        add_tokenizer(GGUFWriter(tmp_path / "x.gguf", "phi3"), tokenizer, len(tokenizer), [0])
