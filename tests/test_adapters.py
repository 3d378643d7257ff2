"""Public data sets to conversations: each adapter on rows of the real schema, and files of them made into shards."""

import functools
import io
import json
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from transformers import AutoProcessor

from training import convert_data
from training.adapters import ADAPTERS, CONTINUE, DESCRIBE, READ, READ_ALOUD, TRANSCRIBE
from training.collator import EagleCollator
from training.shards import SCHEMA, read_rows

ROOT = Path(__file__).parents[1]


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(colour: str = "red", kind: str = "JPEG") -> bytes:
    return encoded(Image.new("RGB", (40, 30), colour), kind)


def sound(kind: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(8000) / 9).astype(np.float32) * 0.1, 16_000, format=kind)
    return buffer.getvalue()


def column(content: bytes, path: str | None = None) -> dict:
    """A picture or sound as the Hub's Parquet holds it."""
    return {"bytes": content, "path": path}


def as_json(value) -> bytes:
    return json.dumps(value).encode()


PAGES = [Image.new("L", (60, 80), shade) for shade in (255, 200, 100)]
TIF = encoded(PAGES[0], "TIFF", save_all=True, append_images=PAGES[1:])
PDF = encoded(PAGES[0], "PDF", save_all=True, append_images=PAGES[1:])
IDL_PAGE = {"bbox": [[0.1, 0.1, 0.5, 0.02]], "poly": [[]], "score": [0.99]}
PDFA_PAGE = {"images_bbox": [], "images_bbox_no_text_overlap": [], "words": {"text": ["Dear", "Ann"], "bbox": []}}
NEWS = {
    "name": "get_news_headlines",
    "description": "Get the latest news headlines",
    "parameters": {"type": "object", "properties": {"country": {"type": "string"}}, "required": ["country"]},
}
GLAIVE_SYSTEM = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
KINDS = ("game", "loot")
XLAM_TOOL = {
    "name": "live_giveaways_by_type",
    "description": "Retrieve live giveaways.",
    "parameters": {
        "type": {"description": "The type of giveaways.", "type": "str", "default": "game"},
        "ids": {"description": "Which.", "type": "List[int]"},
        "limit": {"description": "How many.", "type": "int, optional", "default": ""},
        "lang": {"description": "Of what.", "type": "str, optional"},
        "callback": {"description": "What to call.", "type": "Callable[[float], float]"},
    },
}
ROWS = {
    "cauldron": {
        "images": [column(picture()), column(picture("blue"))],
        "texts": [
            {"user": "What differs?", "assistant": "The colour.", "source": "spot_the_diff"},
            {"user": "Which is red?", "assistant": "The first.", "source": "spot_the_diff"},
        ],
    },
    "obelics": {
        "images": [column(picture(c)) if c else None for c in (None, "red", None, "blue", "green", None, "red")],
        "texts": ["A title", None, "About the first.\n\nMore.", None, None, "About the others.", None],
        "metadata": "[]",
        "general_metadata": '{"url": "https://example.org/a"}',
    },
    "laion_coco": {
        "url": "https://example.org/a.jpg",
        "key": "000000007",
        "status": "success",
        "caption": "A red square. ",
        "width": 40,
        "jpg": picture(),
    },
    "rendered_text": {
        "__key__": "000123",
        "png": picture(kind="PNG"),
        "json": as_json({"ocr_annotation": {"text": ["Once upon", "a time"], "bb_relative": [[[0, 0]]]}}),
    },
    "idl": {
        "__key__": "ffbb0000",
        "pdf": PDF,
        "tif": TIF,
        "ocr": b"",
        "json": as_json({"pages": [IDL_PAGE | {"text": t} for t in (["MEMO", "To Ann"], [], ["The end"])]}),
    },
    "pdfa": {
        "__key__": "6368667",
        "pdf": PDF,
        "json": as_json({"pages": [PDFA_PAGE | {"lines": {"text": t}} for t in (["Dear Ann"], [], ["Bye"])]}),
    },
    "spoken_trivia": {
        "question": "Which is the capital of France?",
        "question_id": "tc_33",
        "question_audio": column(sound("WAV")),
        "answer": {"value": "Paris", "aliases": ["Paris", "Paris, France"], "type": "WikipediaEntity"},
    },
    "librispeech": {
        "file": "103-1240-0000.flac",
        "audio": column(sound(), "103-1240-0000.flac"),
        "text": "CHAPTER ONE",
        "speaker_id": 103,
        "chapter_id": 1240,
        "id": "103-1240-0000",
    },
    "ljspeech": {
        "id": "LJ002-0026",
        "audio": column(sound("WAV"), "LJ002-0026.wav"),
        "file": "LJ002-0026.wav",
        "text": "in 1813,",
        "normalized_text": "in eighteen thirteen,",
    },
    "libritts": {
        "audio": column(sound("WAV"), "103_1241_000000_000001.wav"),
        "text_normalized": "Chapter two.",
        "text_original": "CHAPTER TWO.",
        "speaker_id": "103",
        "path": "103_1241_000000_000001.wav",
        "chapter_id": "1241",
        "id": "103_1241_000000_000001",
    },
    "llava": {
        "id": "000000033471",
        "image": column(picture()),
        "conversations": [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": "Red."},
            {"from": "human", "value": "Is it round?"},
            {"from": "gpt", "value": "No."},
        ],
    },
    "wizardlm": {"instruction": "Name a number.", "output": "Seven."},
    "any_instruct": {
        "chat": [
            {"role": "USER", "message": "Tell me more.", "speech": column(sound()), "image": column(picture())},
            {"role": "AnyGPT", "message": "It is red.", "speech": "chunk_00000/0002.mp3"},
        ]
    },
    "xlam": {
        "id": 7,
        "query": "Give me two.",
        "tools": json.dumps([XLAM_TOOL]),
        "answers": json.dumps([{"name": XLAM_TOOL["name"], "arguments": {"ids": [1], "type": t}} for t in KINDS]),
    },
    "glaive": {
        "system": GLAIVE_SYSTEM + json.dumps(NEWS, indent=4) + "\n\n" + json.dumps(NEWS | {"name": "other"}) + "\n\n",
        "chat": "USER: What is new in Italy?\n\n\nASSISTANT: I will look. "
        '<functioncall> {"name": "get_news_headlines", "arguments": \'{"country": "Italy\'s north"}\'} <|endoftext|>'
        "\n\n\n"
        'FUNCTION RESPONSE: {"headlines": ["A", "B"]}\n\n\nA: A and B. <|endoftext|>\n\n\nUSER: Thanks!\n\n\n'
        "ASSISTANT: You are welcome! <|endoftext|>\n\n\n",
    },
}
ANSWERS = {  # all that is trained: what the assistant says, the template's calls and ends of turns included
    "cauldron": "The colour.<|end|>The first.<|end|>",
    "obelics": "About the first.\n\nMore.<|end|>About the others.<|end|>",
    "laion_coco": "A red square.<|end|>",
    "rendered_text": "Once upon\na time<|end|>",
    "idl": "MEMO\nTo Ann<|end|>The end<|end|>",
    "pdfa": "Dear Ann<|end|>Bye<|end|>",
    "spoken_trivia": "Paris<|end|>",
    "librispeech": "chapter one<|end|>",
    "ljspeech": "in eighteen thirteen,<|end|>",
    "libritts": "Chapter two.<|end|>",
    "llava": "Red.<|end|>No.<|end|>",
    "wizardlm": "Seven.<|end|>",
    "any_instruct": "It is red.<|end|>",
    "xlam": "".join(
        f'<|tool_call|>{{"name": "live_giveaways_by_type", "arguments": {{"ids": [1], "type": "{t}"}}}}<|/tool_call|>'
        for t in KINDS
    )
    + "<|end|>",
    "glaive": 'I will look.<|tool_call|>{"name": "get_news_headlines", "arguments": {"country": "Italy\'s north"}}'
    "<|/tool_call|><|end|>A and B.<|end|>You are welcome!<|end|>",
}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)


def texts(row: dict, role: str) -> list[str]:
    """Of each message of the role its parts, media as <type>."""
    return [
        "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"])
        for message in row["messages"]
        if message["role"] == role
    ]


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_row_of_the_real_schema_trains_what_the_assistant_says_and_nothing_else(name, processor):
    row = ADAPTERS[name](ROWS[name])
    assert pa.Table.from_pylist([row], SCHEMA).to_pylist() == [row]
    batch = EagleCollator(processor)([row])
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == ANSWERS[name]
    assert len(batch.get("pixel_values", ())) == len(row["images"]), "these pictures take one crop each"
    assert len(batch.get("input_features", ())) == len(row["audios"])


def test_every_adapter_names_its_data_set_and_refuses_rows_of_another():
    for name, adapt in ADAPTERS.items():
        assert "huggingface.co/datasets/" in adapt.__doc__
        with pytest.raises(ValueError, match=f"not a row of {adapt.__name__}: .*the row has colour|none of the fields"):
            adapt({"colour": "red"})
        assert name in ROWS


def test_cauldron_shows_its_pictures_before_the_first_question():
    row = ADAPTERS["cauldron"](ROWS["cauldron"])
    assert texts(row, "user") == ["<image><image>What differs?", "Which is red?"]
    assert [image["bytes"] for image in row["images"]] == [picture(), picture("blue")]


def test_a_document_is_told_by_the_assistant_about_pictures_that_the_user_shows():
    row = ADAPTERS["obelics"](ROWS["obelics"])
    opening, later = texts(row, "user")
    assert opening.startswith("A title<image>") and opening.removeprefix("A title<image>") in CONTINUE
    assert later == "<image><image>"
    shown = [picture(), picture("blue"), picture("green")]
    assert [image["bytes"] for image in row["images"]] == shown, "the last picture has nothing after it"


def test_a_document_ends_where_another_article_begins_and_needs_text_after_a_picture():
    mark = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"
    row = {"images": [b"1", None, b"2", None], "texts": [None, f"One.\n\n{mark}\n\nTwo", None, "Three."]}
    assert texts(ADAPTERS["obelics"](row), "assistant") == ["One."]
    assert ADAPTERS["obelics"]({"images": [None, b"1"], "texts": ["Text.", None]}) is None
    with pytest.raises(ValueError, match="shorter"):
        ADAPTERS["obelics"]({"images": [None, b"1"], "texts": ["Text."]})


def test_pairs_get_a_request_that_follows_from_their_id():
    for name, requests in {"laion_coco": DESCRIBE, "idl": READ, "librispeech": TRANSCRIBE}.items():
        (request,) = {text.partition(">")[2] for text in texts(ADAPTERS[name](ROWS[name]), "user")}
        assert request in requests
    for name, key, requests in (("laion_coco", "key", DESCRIBE), ("rendered_text", "__key__", READ)):
        asked = [texts(ADAPTERS[name](ROWS[name] | {key: str(i)}), "user")[0].removeprefix("<image>") for i in range(9)]
        assert [requests.index(request) for request in asked] == [2, 2, 1, 1, 1, 1, 1, 0, 2], "CRC-32 modulo 3"


def test_laion_coco_reads_tars_and_the_hub_and_leaves_out_what_was_not_downloaded():
    tar = {"__key__": "7", "jpg": picture(), "txt": b"A square.", "json": b"{}"}
    hub = {"URL": "https://example.org/a.jpg", "TEXT": "buy now", "top_caption": "A square.", "all_captions": []}
    for row in (tar, hub):
        assert texts(ADAPTERS["laion_coco"](row), "assistant") == ["A square."]
    assert ADAPTERS["laion_coco"](hub)["images"] == [{"bytes": None, "path": "https://example.org/a.jpg"}]
    assert ADAPTERS["laion_coco"](ROWS["laion_coco"] | {"status": "failed_to_download", "jpg": None}) is None
    assert ADAPTERS["laion_coco"](ROWS["laion_coco"] | {"caption": "  "}) is None


@pytest.mark.parametrize("name", ["idl", "pdfa"])
def test_pages_with_text_are_rendered_each_beside_its_own_text(name):
    row = ADAPTERS[name](ROWS[name])
    shades = [Image.open(io.BytesIO(image["bytes"])).convert("L").getpixel((5, 5)) for image in row["images"]]
    assert np.allclose(shades, (255, 100), atol=2), "the page between holds no text"


def test_documents_are_cut_after_four_pages_and_must_have_the_pages_of_their_annotation():
    many = encoded(PAGES[0], "TIFF", save_all=True, append_images=PAGES[:1] * 5)
    pages = [IDL_PAGE | {"text": [f"page {i}"]} for i in range(6)]
    row = ROWS["idl"] | {"tif": many, "json": {"pages": pages}}
    assert texts(ADAPTERS["idl"](row), "assistant") == [f"page {i}" for i in range(4)]
    for short in ({"tif": TIF}, {"tif": None}, {"tif": b"no picture"}, {"tif": None, "pdf": b"no document"}):
        with pytest.raises(ValueError, match=r"cannot read pages \[0, 1, 2, 3\]"):
            ADAPTERS["idl"](row | short)
    assert ADAPTERS["idl"](row | {"json": {"pages": [IDL_PAGE | {"text": []}]}}) is None


def test_spoken_trivia_is_heard_and_its_aliases_are_kept():
    row = ADAPTERS["spoken_trivia"](ROWS["spoken_trivia"])
    assert texts(row, "user") == ["<audio>"] and row["id"] == "tc_33"
    assert json.loads(row["meta"]) == {
        "question": "Which is the capital of France?",
        "aliases": ["Paris", "Paris, France"],
    }


def test_llava_takes_several_pictures_and_none():
    turns = [{"from": "human", "value": "First\n<image>\nthen <image>?"}, {"from": "gpt", "value": "<image> is a tag."}]
    with pytest.raises(ValueError, match="shows 3 images, but has 2"):
        ADAPTERS["llava"]({"image": ["a.jpg", "b.jpg"], "conversations": turns})
    turns[1]["value"] = "Both."
    row = ADAPTERS["llava"]({"image": ["a.jpg", "b.jpg"], "conversations": turns})
    assert texts(row, "user") == ["First<image>then <image>?"]
    assert [image["path"] for image in row["images"]] == ["a.jpg", "b.jpg"]
    with pytest.raises(ValueError, match="shows 0 images, but has 1"):
        ADAPTERS["llava"]({"image": "a.jpg", "conversations": ROWS["llava"]["conversations"][2:]})
    sharegpt = [{"from": "gpt", "value": "and so on"}, {"from": "human", "value": "What is <image>?"}]
    row = ADAPTERS["llava"]({"conversations": [*sharegpt, {"from": "gpt", "value": "A tag."}]})
    assert texts(row, "user") == ["What is <image>?"] and texts(row, "assistant") == ["A tag."] and not row["images"]
    with pytest.raises(ValueError, match="nothing to train on"):
        ADAPTERS["llava"]({"conversations": sharegpt})
    with pytest.raises(ValueError, match="KeyError: 'bing'"):
        ADAPTERS["llava"]({"conversations": [{"from": "bing", "value": "?"}]})


def test_wizardlm_may_be_in_the_form_of_llava():
    turns = [{"from": "human", "value": "Name a number."}, {"from": "gpt", "value": "Seven."}]
    assert ADAPTERS["wizardlm"]({"idx": "a", "conversations": turns}) == ADAPTERS["wizardlm"](ROWS["wizardlm"])


def test_any_instruct_hears_the_user_and_leaves_out_what_the_model_cannot_say():
    row = ADAPTERS["any_instruct"](ROWS["any_instruct"])
    assert texts(row, "user") == ["<image><audio>"] and len(row["audios"]) == 1
    written = [{"role": "USER", "message": "Hello."}, {"role": "AnyGPT", "message": "Hi."}]
    assert texts(ADAPTERS["any_instruct"]({"chat": written}), "user") == ["Hello."]
    assert ADAPTERS["any_instruct"]({"chat": [written[0], written[1] | {"image": "b.jpg"}]}) is None


def test_xlam_types_become_json_schema():
    (tool,) = json.loads(ADAPTERS["xlam"](ROWS["xlam"])["tools"])
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "type": {"type": "string", "description": "The type of giveaways.", "default": "game"},
            "ids": {"type": "array", "items": {"type": "integer"}, "description": "Which."},
            "limit": {"type": "integer", "description": "How many."},
            "lang": {"type": "string", "description": "Of what."},
            "callback": {"description": "What to call."},
        },
        "required": ["ids", "callback"],
    }
    causes = {"[{]": "Expecting", "[]": "nothing to train on", '[{"name": "f"}]': "KeyError: 'arguments'"}
    for answers, cause in causes.items():
        with pytest.raises(ValueError, match=cause):
            ADAPTERS["xlam"](ROWS["xlam"] | {"answers": answers})


def test_glaive_becomes_turns_tools_and_calls():
    row = ADAPTERS["glaive"](ROWS["glaive"])
    roles = "system user assistant tool assistant user assistant".split()
    assert [message["role"] for message in row["messages"]] == roles
    assert texts(row, "system") == [GLAIVE_SYSTEM.removeprefix("SYSTEM: ").removesuffix(" -\n")]
    assert texts(row, "tool") == ['{"headlines": ["A", "B"]}']
    assert [tool["function"]["name"] for tool in json.loads(row["tools"])] == ["get_news_headlines", "other"]
    system = "SYSTEM: You are a helpful assistant, with no access to external functions.\n\n"
    row = ADAPTERS["glaive"]({"system": system, "chat": "USER: Hi\n\n\nASSISTANT: Hello! <|endoftext|>\n\n\n"})
    assert row["tools"] is None and texts(row, "system") == [system.removeprefix("SYSTEM: ").strip()]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ('{"name": "f", "arguments": \'{"text": "it\\\'s {nested}"}\'}', {"text": "it's {nested}"}),
        ('{"name": "f", "arguments": {"n": 1}}', {"n": 1}),
        ('{"name": "f"}', {}),
        ('{"name": "f", "arguments": \'{}\'}', {}),
    ],
)
def test_glaive_calls_in_all_quotings(call, arguments):
    row = ADAPTERS["glaive"]({"system": "", "chat": f"USER: Go\n\n\nASSISTANT: <functioncall> {call} <|endoftext|>"})
    (tool_call,) = json.loads(row["messages"][1]["tool_calls"])
    assert tool_call == {"type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("chat", "cause"),
    [
        ('USER: Go\n\n\nASSISTANT: <functioncall> {"name": "f", "arguments": \'{"n": }\'}', "Expecting value"),
        ('USER: Go\n\n\nASSISTANT: <functioncall> {"name": "f", "arguments": {}}, {"name": "g"}', "Extra data"),
        ("USER: Go\n\n\nASSISTANT: <functioncall> f(n=1) <|endoftext|>", r"malformed call 'f\(n=1\)'"),
        ('USER: Go\n\n\nASSISTANT: <functioncall> {"name": "f", "arguments": [1]}', "expected an object"),
        ("Go\n\n\nASSISTANT: Gone.", "begins with 'Go'"),
        ("USER: Go", "nothing to train on"),
    ],
)
def test_malformed_rows_of_glaive_say_why(chat, cause):
    with pytest.raises(ValueError, match=cause):
        ADAPTERS["glaive"]({"system": "", "chat": chat})


# --- conversion -------------------------------------------------------------------------------------------------------


def convert(monkeypatch, output: Path, adapter: str, *options) -> list[dict]:
    """The rows that the command writes, in this process."""
    fixed = ["convert_data", "--source", "someone/something@1", "--license", "cc0-1.0", "--processes", "1"]
    monkeypatch.setattr(sys, "argv", [*fixed, "--adapter", adapter, "--output", str(output), *map(str, options)])
    convert_data.main()
    return list(read_rows(output))


def llava_rows(count: int) -> list[dict]:
    turns = ROWS["llava"]["conversations"]
    return [{"id": str(i), "image": f"coco/{i}.jpg", "conversations": turns[: 2 + 2 * (i % 2)]} for i in range(count)]


@pytest.fixture
def media_root(tmp_path):
    (tmp_path / "images" / "coco").mkdir(parents=True)
    for i in range(12):
        (tmp_path / "images" / "coco" / f"{i}.jpg").write_bytes(picture())
    return tmp_path / "images"


def test_every_format_gives_the_rows_of_the_adapter(tmp_path, monkeypatch):
    plain = {name: row for name, row in ROWS.items() if name in ("wizardlm", "xlam", "glaive")}
    for name, row in plain.items():
        (tmp_path / f"{name}.json").write_text(json.dumps([row, row], indent=2, ensure_ascii=False))
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n\n{json.dumps(row)}\n")
        for kind in ("json", "jsonl"):
            rows = convert(monkeypatch, tmp_path / f"{name}-{kind}", name, "--input", tmp_path / f"{name}.{kind}")
            assert [row["messages"] for row in rows] == [ADAPTERS[name](row)["messages"]] * 2
    assert rows[1]["source"] == "someone/something@1" and rows[1]["license"] == "cc0-1.0" and rows[1]["id"] == "1"
    pq.write_table(pa.Table.from_pylist([ROWS["cauldron"]] * 3), tmp_path / "cauldron.parquet", row_group_size=2)
    rows = convert(monkeypatch, tmp_path / "cauldron", "cauldron", "--input", tmp_path / "cauldron.parquet")
    assert [row["images"] for row in rows] == [ADAPTERS["cauldron"](ROWS["cauldron"])["images"]] * 3


def test_text_beyond_ascii_lies_where_the_index_of_a_json_list_says(tmp_path, monkeypatch):
    rows = [{"instruction": f"Čo je {i}? 你好 ]", "output": "\N{GRINNING FACE} [1, {"} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False))
    found = convert(monkeypatch, tmp_path / "out", "wizardlm", "--input", tmp_path / "a.json")
    assert [texts(row, "user") + texts(row, "assistant") for row in found] == [list(row.values()) for row in rows]


def test_tars_are_read_by_webdatasets_rule(tmp_path, monkeypatch):
    for name, fields in {"rendered_text": ("png", "json"), "pdfa": ("pdf", "json")}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for key in ("train/0001", "train/0002"):
                for field in fields:
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size = len(ROWS[name][field])
                    tar.addfile(member, io.BytesIO(ROWS[name][field]))
        rows = convert(monkeypatch, tmp_path / name, name, "--input", tmp_path / f"{name}.tar")
        assert [row["id"] for row in rows] == ["train/0001", "train/0002"]
        assert f"{''.join(f'{text}<|end|>' for text in texts(rows[1], 'assistant'))}" == ANSWERS[name]


def test_folders_of_librispeech(tmp_path, monkeypatch):
    chapter = tmp_path / "dev.clean" / "84" / "121"
    chapter.mkdir(parents=True)
    (chapter / "84-121.trans.txt").write_text("84-121-0000 GO DO YOU HEAR\n84-121-0001 BUT NO\n")
    for i in range(2):
        (chapter / f"84-121-000{i}.flac").write_bytes(sound())
    rows = convert(monkeypatch, tmp_path / "out", "librispeech", "--input", tmp_path / "dev.clean")
    assert [(row["id"], texts(row, "assistant")) for row in rows] == [
        ("84-121-0000", ["go do you hear"]),
        ("84-121-0001", ["but no"]),
    ]
    assert rows[0]["audios"] == [{"bytes": sound(), "path": None}]


def test_folders_of_speech_to_say(tmp_path, monkeypatch):
    lj, tts = tmp_path / "LJSpeech-1.1", tmp_path / "dev-clean" / "84" / "121123"
    (lj / "wavs").mkdir(parents=True)
    tts.mkdir(parents=True)
    (lj / "metadata.csv").write_text("LJ1|in 1813,|in eighteen thirteen,\nLJ2|so \"it\" was\nno text\n")
    (tts / "84_121123_7_0.normalized.txt").write_text("Go!\n")
    (tts / "84_121123_7_0.original.txt").write_text("Go !\n")
    for file in (lj / "wavs" / "LJ1.wav", lj / "wavs" / "LJ2.wav", tts / "84_121123_7_0.wav"):
        file.write_bytes(sound("WAV"))
    rows = convert(monkeypatch, tmp_path / "a", "ljspeech", "--input", lj, "--max-bad-rows", 1)
    assert [(row["id"], texts(row, "assistant")) for row in rows] == [("LJ1", ["in eighteen thirteen,"]), ("LJ2", ['so "it" was'])]
    rows += convert(monkeypatch, tmp_path / "b", "libritts", "--input", tmp_path / "dev-clean")
    assert texts(rows[2], "user")[0].split(" ", 1)[0] in {text.split(" ")[0] for text in READ_ALOUD}
    assert json.loads(rows[2]["meta"]) == {"speaker": "84"} and texts(rows[2], "assistant") == ["Go!"]
    assert all(row["speech"] == column(sound("WAV")) and not row["audios"] for row in rows)
    (lj / "wavs" / "LJ1.wav").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot decode .*LJ1.wav as audio"):
        convert(monkeypatch, tmp_path / "c", "ljspeech", "--input", lj, "--max-bad-rows", 0)
    with pytest.raises(ValueError, match="holds metadata.csv and .*.normalized.txt; it must be laid out as one of"):
        convert(monkeypatch, tmp_path / "d", "ljspeech", "--input", tmp_path)
    with pytest.raises(ValueError, match="holds none of .*must be laid out as one of LibriSpeech, LJSpeech and LibriTTS"):
        convert(monkeypatch, tmp_path / "d", "ljspeech", "--input", tmp_path / "a")


def test_bad_rows_are_named_counted_and_left_out_up_to_the_limit(tmp_path, media_root, monkeypatch):
    (media_root / "coco" / "1.jpg").unlink()
    (media_root / "coco" / "2.jpg").write_bytes(picture()[:-400])
    lines = [json.dumps(row) for row in llava_rows(6)]
    lines[4] = lines[4][:-1]
    lines[5] = json.dumps({"id": "5", "text": "?"})
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = "--input", tmp_path / "a.jsonl", "--media-root", media_root
    with pytest.raises(ValueError, match="bad rows: 4, but max_bad_rows is 3; the last: row 5: .*not a row of llava"):
        convert(monkeypatch, tmp_path / "out", "llava", *options, "--max-bad-rows", 3)
    assert not (tmp_path / "out" / "manifest.json").exists()
    rows = convert(monkeypatch, tmp_path / "out", "llava", *options, "--max-bad-rows", 4)
    assert [row["id"] for row in rows] == ["0", "3"]
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    causes = {1: "No such file", 2: "cannot decode coco/2.jpg as image", 4: "Expecting", 5: "not a row of llava"}
    assert [row["row"] for row in bad] == [f"row {number}" for number in causes]
    assert all(cause in row["cause"] for row, cause in zip(bad, causes.values(), strict=True))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"] == 4


def test_damaged_sound_is_a_bad_row(tmp_path, monkeypatch):
    row = {"chat": [{"role": "USER", "message": "?", "speech": "a.flac"}, {"role": "AnyGPT", "message": "!"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.flac").write_bytes(sound()[:-100])
    with pytest.raises(ValueError, match="cannot decode a.flac as audio"):
        convert(monkeypatch, tmp_path / "o", "any_instruct", "--input", tmp_path / "a.jsonl", "--media-root", tmp_path)


def test_a_json_list_that_is_cut_off_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps([ROWS["wizardlm"]] * 3)[:-20])
    with pytest.raises(ValueError, match=r"a\.json is malformed or cut off"):
        convert(monkeypatch, tmp_path / "out", "wizardlm", "--input", tmp_path / "a.json")
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"cannot read .*a\.csv: its kind is '\.csv'; known: \.json, "):
        convert(monkeypatch, tmp_path / "out", "wizardlm", "--input", tmp_path / "a.csv")
    assert not (tmp_path / "out").exists()


def test_rows_of_most_turns_come_first_and_ties_stay_in_order(tmp_path, monkeypatch):
    turn = "USER: {}\n\n\nASSISTANT: Yes. <|endoftext|>\n\n\n"
    turns = [1, 3, 2, 3, 0, 1, 2]
    rows = [{"system": "", "chat": turn.format(f"row {i}") * count} for i, count in enumerate(turns)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    order = "--input", tmp_path / "a.json", "--order", "multi-turn-first"
    found = convert(monkeypatch, tmp_path / "out", "glaive", *order, "--rows", 5)
    assert [row["id"] for row in found] == ["1", "3", "2", "6", "0"]
    with pytest.raises(ValueError, match="bad rows: 1"):
        convert(monkeypatch, tmp_path / "all", "glaive", *order)


def test_a_part_of_the_rows_is_drawn_by_the_seed(tmp_path, monkeypatch):
    rows = [{"instruction": str(i), "output": "!"} for i in range(50)]
    (tmp_path / "a.json").write_text(json.dumps(rows[:20]))
    (tmp_path / "b.json").write_text(json.dumps(rows[20:]))
    both = "--input", tmp_path / "a.json", tmp_path / "b.json"

    def drawn(name: str, *options) -> list[int]:
        found = convert(monkeypatch, tmp_path / name, "wizardlm", *both, *options)
        assert all(texts(row, "user") == [row["id"]] for row in found)
        return [int(row["id"]) for row in found]

    first = drawn("first", "--rows", 20)
    assert first == sorted(set(first)) and len(first) == 20 and first[0] < 20 < first[-1]
    assert drawn("again", "--rows", 20) == first != drawn("other", "--rows", 20, "--seed", 1)
    assert drawn("all") == list(range(50))
    with pytest.raises(ValueError, match="--rows is 51, but .* hold 50"):
        drawn("more", "--rows", 51)


def test_media_on_the_web_are_fetched_only_when_told(tmp_path, monkeypatch):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.jpg" else 404)
            self.end_headers()
            self.wfile.write(picture())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [f"http://127.0.0.1:{server.server_port}/{name}.jpg" for name in "ab"]
    pq.write_table(pa.Table.from_pylist([{"URL": url, "TEXT": "A square."} for url in urls]), tmp_path / "a.parquet")
    fetch = functools.partial(convert, monkeypatch, tmp_path / "out", "laion_coco", "--input", tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="lies on the web; give --download"):
        fetch()
    (row,) = fetch("--download", "--max-bad-rows", 2)
    server.shutdown()
    assert row["images"] == [{"bytes": picture(), "path": None}] and row["id"] == urls[0]
    assert "404" in (tmp_path / "out" / "bad_rows.jsonl").read_text()


def test_a_conversion_that_failed_goes_on_and_gives_the_bytes_of_one_that_did_not(tmp_path, media_root, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps(llava_rows(12)))
    options = "--input", tmp_path / "a.json", "--media-root", media_root, "--rows-per-shard", 5
    convert(monkeypatch, tmp_path / "whole", "llava", *options)
    (media_root / "coco" / "7.jpg").rename(media_root / "7.jpg")
    with pytest.raises(ValueError, match="the last: row 7: FileNotFoundError"):
        convert(monkeypatch, tmp_path / "failed", "llava", *options)
    (shard,) = (tmp_path / "failed").glob("*.parquet")
    written = shard.stat().st_mtime_ns
    (media_root / "7.jpg").rename(media_root / "coco" / "7.jpg")
    rows = convert(monkeypatch, tmp_path / "failed", "llava", *options)
    assert [row["id"] for row in rows] == [str(i) for i in range(12)]
    assert shard.stat().st_mtime_ns == written, "what was there was not written again"
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "failed" / file.name).read_bytes()


@pytest.mark.slow
def test_the_command_writes_the_same_bytes_in_any_number_of_processes(tmp_path, media_root):
    (tmp_path / "a.json").write_text(json.dumps(llava_rows(12)))
    (media_root / "coco" / "7.jpg").unlink()
    command = [sys.executable, "-m", "training.convert_data", "--adapter", "llava", "--input", str(tmp_path / "a.json")]
    command += ["--media-root", str(media_root), "--source", "a", "--license", "b", "--max-bad-rows", "1"]
    for processes in "12":
        options = ["--rows-per-shard", "3", "--processes", processes, "--output", str(tmp_path / processes)]
        done = subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, text=True)
        assert "1 rows were bad" in done.stdout
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "12")
    assert one == two and len(one) == 4 + 2
