"""Data of a recipe: labels of rows, batches of rows that differ, mixtures that repeat and resume, rows that are bad."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForMultimodalLM, AutoProcessor

from training.collator import EagleCollator, with_media
from training.data import BadRows, Mixture
from training.encode import encode, encode_source
from training.shards import SCHEMA, encode_row
from training.synthesis import dense, pictures, samples

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)


# --- batches ------------------------------------------------------------------------------------------------------------


def test_labels_are_the_answers_and_their_ends(processor):
    rows = [samples.make("spoken_picture", "train", 3), samples.make("fact", "train", 1)]
    batch = EagleCollator(processor)(rows)
    for labels, row in zip(batch["labels"], rows, strict=True):
        text = processor.tokenizer.decode(labels[labels != -100])
        answers = [m["content"][0]["text"] for m in row["messages"] if m["role"] == "assistant"]
        assert text == "".join(f"{answer}<|end|>" for answer in answers)
    assert len(rows[1]["messages"]) == 20  # ten facts in a row
    assert batch["attention_mask"][1, 0] == 1  # padded on the right
    call = EagleCollator(processor)([samples.make("request", "train", 1)])
    assert "<|tool_call|>" in processor.tokenizer.decode(call["labels"][call["labels"] != -100])


@pytest.mark.parametrize("layout", ["grid", "overview"])
def test_tokens_of_a_picture_are_labelled_with_the_words_that_end_there(processor, layout):
    picture = pictures.Picture(Image.new("RGB", (336, 168)))
    draw = ImageDraw.Draw(picture.image)
    _, font = pictures.choose_font(random.Random(0), "train", 30)
    picture.glyphs = [
        *pictures.draw_text(draw, 4, 4, "Tower A7", font, (255, 255, 255)),
        *pictures.draw_text(draw, 200, 120, "dog", font, (255, 255, 255)),
    ]
    words = dense.cell_words(picture, layout)
    assert list(dict.fromkeys(word for word in words if word)) == ["tower", "A", "7", " dog"]
    last = max((g.left + g.right) / 2 for g in picture.glyphs if g.character == "r")
    top = (336 - 168) / 2 if layout == "grid" else 0
    height = 1 if layout == "grid" else 2  # the overview is stretched to a square
    middle = (picture.glyphs[0].top + picture.glyphs[0].bottom) / 2
    end = int((middle * height + top) / 42) * 16 + int(last / 21)
    assert words.index("tower") == end and words[end + 1] in ("tower", "A")
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "read"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "tower"}]},
        ],
        "images": [picture.image], "audios": [], "videos": [], "cell_words": words, "image_layout": layout,
    }  # fmt: skip
    batch = EagleCollator(processor)([row])
    first = (batch["input_ids"][0] == processor.image_token_id).nonzero()[0, 0]
    labels = batch["labels"][0, first + 1 : first + 129]  # the label after a token is what it predicts
    expected = [processor.tokenizer(word).input_ids[-1] if word else -100 for word in words]
    assert labels.tolist() == expected


def test_pictures_of_several_crops_have_no_cell_words():
    assert set(dense.cell_words(pictures.Picture(Image.new("RGB", (400, 200))), "grid")) == {""}




def test_rows_with_different_media_and_tools_make_one_batch(processor):
    tools = [{"type": "function", "function": {"name": "ring_bell", "parameters": {}}}]
    rows = [samples.make(skill, "train", 5) for skill in ("request", "spoken_picture", "clip", "sentence", "fact")]
    rows[0]["tools"] = json.dumps(tools)
    rows[1]["audio_layout"] = "padded"
    collator = EagleCollator(processor)
    alone = [collator([row]) for row in rows]
    batch = collator(rows)
    texts = [processor.tokenizer.decode(ids) for ids in batch["input_ids"]]
    assert [text.count("ring_bell") for text in texts] == [1, 0, 0, 0, 0]
    for i, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        for name, padding in {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}.items():
            assert torch.equal(batch[name][i, :length], one[name][0]) and (batch[name][i, length:] == padding).all()
    for name in ("pixel_values", "input_features", "input_features_mask"):
        assert torch.equal(batch[name], torch.cat([one[name] for one in alone if name in one]))
    assert (batch["input_ids"] == processor.audio_token_id).sum() == sum((o["input_ids"] == 17).sum() for o in alone)


def test_a_row_without_labels_is_an_error(processor):
    row = samples.make("fact", "train", 1)
    row["messages"] = row["messages"][:1]
    with pytest.raises(ValueError, match="no token of the row is the assistant's"):
        EagleCollator(processor)([row])


def test_media_of_a_row_stand_where_the_row_shows_them():
    row = samples.make("spoken_picture", "train", 11)
    kinds = [part["type"] for part in row["messages"][0]["content"]]
    filled = with_media(row)[0]["content"]
    assert [part["type"] for part in filled] == kinds and set(kinds) == {"image", "audio"}
    assert all(part[part["type"]] is not None for part in filled)
    with pytest.raises(ValueError, match="do not show 1 image"):
        with_media(row | {"images": row["images"] * 2})
    with pytest.raises(ValueError, match="show more audios than"):
        with_media(row | {"audios": []})


def test_a_sound_of_the_decoder_has_as_many_placeholders_as_its_transcript_has_tokens(processor, tiny_transcripts):
    row = samples.make("sentence", "train", 2)
    row["meta"] = json.dumps({"transcripts": ["open the door"]})
    other = row | {"meta": {"transcripts": ["a lamp"]}}
    batch = EagleCollator(tiny_transcripts)([row, other])
    lengths = batch["audio_transcript_mask"].sum(-1).tolist()
    assert (batch["input_ids"] == processor.audio_token_id).sum(-1).tolist() == lengths and lengths[0] != lengths[1]
    assert batch["audio_transcript_ids"].shape == (2, max(lengths))
    with pytest.raises(KeyError, match="transcripts"):
        EagleCollator(tiny_transcripts)([row | {"meta": {}}])


@pytest.fixture
def tiny_transcripts():
    """eagle-tiny's processor as one whose audio tokens come from the tower's decoder, which shares the tokenizer."""
    processor = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
    processor.audio_token_source, processor.transcript_tokenizer = "decoder", processor.tokenizer
    return processor


# --- mixtures -----------------------------------------------------------------------------------------------------------


def mixture(data, tmp_path, batches=40, batch_size=4, features=None, bad=0, **options):
    """A mixture whose features are the rows' own texts, unless the test wants tensors."""
    bad_rows = BadRows(tmp_path / "bad_rows.jsonl", bad)
    return Mixture(data, batches, batch_size, options.pop("seed", 0), features or text_of, bad_rows, **options)


def text_of(row):
    return {"input_ids": row["messages"][0]["content"][0]["text"]}


def write_texts(path, texts, group=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    messages = [[{"role": "user", "content": [{"type": "text", "text": text}], "tool_calls": None}] for text in texts]
    rows = [dict.fromkeys(SCHEMA.names) | {"messages": m, "images": [], "audios": [], "videos": []} for m in messages]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=group)
    return path


def texts(mixed, batches):
    return [[row["input_ids"] for row in mixed.batch(number)] for number in batches]


def test_an_epoch_reads_every_row_once_and_the_next_in_another_order(tmp_path):
    for shard in range(3):
        write_texts(tmp_path / "d" / f"{shard}.parquet", [f"{shard}/{i}" for i in range(10)])
    data = {"one": {"path": str(tmp_path / "d"), "weight": 1}}
    mixed = mixture(data, tmp_path)
    batches = 9  # of 4, 4 and 2 rows a shard
    first, second = (texts(mixed, range(e * batches, (e + 1) * batches)) for e in (0, 1))
    for epoch in (first, second):
        assert Counter(t for batch in epoch for t in batch) == Counter(f"{s}/{i}" for s in range(3) for i in range(10))
    assert first != second and texts(mixture(data, tmp_path, seed=1), range(batches)) != first


@pytest.mark.parametrize("lanes", [1, 3])
def test_any_batch_can_be_read_without_those_before(lanes, tmp_path):
    for name in "ab":
        write_texts(tmp_path / name / "0.parquet", [f"{name}{i}" for i in range(40)])
    data = {name: {"path": str(tmp_path / name), "weight": weight} for name, weight in (("a", 1), ("b", 3))}
    data["fact"] = {"path": "world:fact", "weight": 1}
    whole = texts(mixture(data, tmp_path, lanes=lanes), range(40))
    assert texts(mixture(data, tmp_path, lanes=lanes), reversed(range(40))) == whole[::-1]
    sources = [{t[0] if t[1:].isdigit() else "fact" for t in batch} for batch in whole]
    assert all(len(source) == 1 for source in sources) and set.union(*sources) == {"a", "b", "fact"}
    loader = torch.utils.data.DataLoader(
        mixture(data, tmp_path, lanes=lanes).rows, batch_size=4, num_workers=2, collate_fn=lambda rows: rows
    )
    assert [[row["features"]["input_ids"] for row in batch] for batch in loader] == whole


def test_lanes_share_an_epoch_between_them(tmp_path):
    write_texts(tmp_path / "d" / "0.parquet", [str(i) for i in range(48)])
    data = {"one": {"path": str(tmp_path / "d"), "weight": 1}}
    mixed = mixture(data, tmp_path, lanes=4)
    lanes = [{t for batch in texts(mixed, range(lane, 12, 4)) for t in batch} for lane in range(4)]
    assert set().union(*lanes) == {str(i) for i in range(48)} and sum(map(len, lanes)) == 48


def test_processes_work_on_the_same_source_and_as_much_of_it(tmp_path):
    for name in "ab":
        write_texts(tmp_path / name / "0.parquet", [name * (1 + 7 * i % 64) for i in range(256)], group=32)
    data = {name: {"path": str(tmp_path / name), "weight": 1} for name in "ab"}
    data["in_context_request"] = {"path": "world:in_context_request", "weight": 1}
    mixed = mixture(data, tmp_path, batches=96, lanes=4, together=2, features=lambda row: {"input_ids": row["messages"]})
    lengths = [len(str(mixed.batch(number))) for number in range(96)]
    assert all(max(a, b) < 2 * min(a, b) for a, b in zip(lengths[::2], lengths[1::2]))
    assert any(max(a, b) > 4 * min(a, b) for a, b in zip(lengths[::2], lengths[2::2]))
    with pytest.raises(ValueError, match="lanes is 3; it must be a multiple of those that work together, which are 2"):
        mixture(data, tmp_path, lanes=3, together=2)


def test_sources_are_drawn_by_their_weights(tmp_path):
    write_texts(tmp_path / "a" / "0.parquet", ["a"] * 8)
    write_texts(tmp_path / "b" / "0.parquet", ["b"] * 8)
    data = {name: {"path": str(tmp_path / name), "weight": weight} for name, weight in (("a", 2), ("b", 6))}
    drawn = Counter(batch[0] for batch in texts(mixture(data, tmp_path, batches=1000), range(1000)))
    assert 0.21 < drawn["a"] / 1000 < 0.29


def test_a_batch_holds_rows_of_like_length(tmp_path):
    words = ["x" * (1 + 7 * i % 64) for i in range(64)]
    write_texts(tmp_path / "d" / "0.parquet", words, group=64)
    batches = texts(mixture({"one": {"path": str(tmp_path / "d"), "weight": 1}}, tmp_path), range(16))
    lengths = [sorted(map(len, batch)) for batch in batches]
    assert all(batch[-1] - batch[0] < 5 for batch in lengths)
    assert [batch[0] for batch in lengths] != sorted(batch[0] for batch in lengths)  # not from short to long


def test_parquet_is_read_from_whatever_fsspec_reads(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/far/d/0.parquet", write_texts(tmp_path / "0.parquet", [str(i) for i in range(8)]).read_bytes())
    data = {"far": {"path": "memory://far/d/*.parquet", "weight": 1}}
    assert {t for batch in texts(mixture(data, tmp_path), range(2)) for t in batch} == {str(i) for i in range(8)}


@pytest.mark.parametrize(
    "source, message",
    [
        ({"path": "nowhere/*.parquet", "weight": 1}, "no Parquet file at 'nowhere/\\*.parquet'"),
        ({"path": "world:smell", "weight": 1}, "unknown skill 'smell'"),
        ({"path": "world:sign", "weight": 0}, "data.it has the weight 0"),
        ({"path": "world:sign"}, "data.it lacks 'weight'"),
        ({"path": "world:sign", "weight": 1, "wieght": 2}, "unknown field 'wieght'"),
        ({"path": "{tmp}/cut.parquet", "weight": 1}, "cut.parquet is no complete Parquet file"),
        ({"path": "{tmp}/foreign.parquet", "weight": 1}, "has the columns caption, which are no conversations"),
        ({"path": "{tmp}/foreign.parquet", "weight": 1, "adapter": "nobody"}, "unknown adapter 'nobody'"),
        ({"path": "{tmp}/empty.parquet", "weight": 1}, "hold no rows"),
        ({"path": "{tmp}/begun", "weight": 1}, "begun is not finished; run the command that writes it again"),
    ],
)
def test_what_is_wrong_with_a_source_is_said_before_training(source, message, tmp_path):
    whole = write_texts(tmp_path / "whole.parquet", ["a"] * 8).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "foreign.parquet")
    write_texts(tmp_path / "empty.parquet", [])
    write_texts(tmp_path / "begun" / "shard-00000.parquet", ["a"])
    (tmp_path / "begun" / "unfinished.json").touch()
    with pytest.raises(ValueError, match=message):
        mixture({"it": source | ({"path": source["path"].format(tmp=tmp_path)})}, tmp_path)


def test_bad_rows_are_named_counted_once_and_skipped_up_to_the_limit(tmp_path, processor):
    rows = [encode_row(samples.make("scene", "train", i), str(i), "world", "apache-2.0") for i in range(8)]
    rows[2]["images"] = [{"bytes": b"no picture", "path": None}]
    rows[5]["messages"][0]["content"] = [{"type": "text", "text": "and the picture?"}]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "d.parquet")
    data = {"d": {"path": str(tmp_path / "d.parquet"), "weight": 1}}
    features = EagleCollator(processor).features
    mixed = mixture(data, tmp_path, features=features, bad=2)
    assert sum(len(mixed.batch(number)) for number in range(4)) == 12  # two epochs of the six good ones
    named = {entry["row"].rpartition(".")[2]: entry["cause"] for entry in map(json.loads, (tmp_path / "bad_rows.jsonl").open())}
    assert set(named) == {"2", "5"} and "cannot identify image" in named["2"] and "do not show 1 image" in named["5"]
    with pytest.raises(ValueError, match=r"bad rows: 2, but max_bad_rows is 1; the last: .*d.parquet#0\."):
        for number in range(2):
            mixture(data, tmp_path, features=features, bad=1).batch(number)


def test_a_damaged_row_group_is_named(tmp_path):
    whole = bytearray(write_texts(tmp_path / "d.parquet", [f"some text {i}" for i in range(64)], group=32).read_bytes())
    whole[4:400] = bytes(396)
    (tmp_path / "d.parquet").write_bytes(whole)
    mixed = mixture({"d": {"path": str(tmp_path / "d.parquet"), "weight": 1}}, tmp_path)
    with pytest.raises(ValueError, match="d.parquet: row group 0 is damaged"):
        texts(mixed, range(16))


def test_rows_that_are_too_long_are_left_out_and_a_source_of_such_rows_is_an_error(tmp_path):
    write_texts(tmp_path / "d" / "0.parquet", ["short", "a long text"] * 8)
    data = {"d": {"path": str(tmp_path / "d"), "weight": 1}}
    assert {t for batch in texts(mixture(data, tmp_path, longest=6), range(8)) for t in batch} == {"short"}
    with pytest.raises(ValueError, match="the source 'd' gave 100 batches in which every row is bad.*longer than 3 tokens"):
        mixture(data, tmp_path, longest=3).batch(0)


def test_shards_of_the_world_train_as_the_world_itself_does(tmp_path, processor):
    sample = samples.make("spoken_picture", "train", 3)
    row = encode_row(sample, "3", "world", "apache-2.0")
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), tmp_path / "d.parquet")
    features = EagleCollator(processor).features
    data = {"d": {"path": str(tmp_path / "d.parquet"), "weight": 1}}
    (stored,) = mixture(data, tmp_path, batch_size=1, features=features, phone_layouts=0).batch(0)
    expected = features(sample)
    for name in ("input_ids", "labels", "pixel_values"):
        assert torch.equal(stored[name], expected[name])
    assert (stored["input_features"] - expected["input_features"]).abs().max() < 0.1  # 16 bits
    (phone,) = mixture(data, tmp_path, batch_size=1, features=features, phone_layouts=1).batch(0)
    assert (phone["input_ids"] == processor.audio_token_id).sum() == 94


def test_pictures_of_a_batch_have_one_class_of_size_and_their_usual_share(tmp_path):
    data = {skill: {"path": f"world:{skill}", "weight": 1} for skill in ("sign", "code")}

    def size(row):
        return {"input_ids": [], "large": max(row["images"][0].size) > pictures.CROP}

    mixed = mixture(data, tmp_path, batches=60, batch_size=2, features=size)
    large = [[row["large"] for row in mixed.batch(number)] for number in range(60)]
    assert all(a == b for a, b in large) and 0.15 < np.mean(large) < 0.45


# --- rows that were encoded once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", ["spoken_picture", "clip", "request"])
def test_encoded_rows_give_the_loss_of_the_rows_themselves(skill, processor):
    model = AutoModelForMultimodalLM.from_pretrained(ROOT, trust_remote_code=True, dtype=torch.float32)
    collator = EagleCollator(processor)
    batch = collator([samples.make(skill, "train", seed) for seed in (1, 2)])
    encoded = collator(encode(model, batch))
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(encoded[name], batch[name])
    with torch.inference_mode():
        expected, got = model(**batch).loss.item(), model(**encoded).loss.item()
    assert got == pytest.approx(expected, rel=0.03)  # the tokens are kept in bfloat16


def test_encoding_goes_on_where_it_stopped(small_checkpoint, tmp_path):
    model = AutoModelForMultimodalLM.from_pretrained(small_checkpoint, trust_remote_code=True, dtype=torch.float32)
    collator = EagleCollator(AutoProcessor.from_pretrained(small_checkpoint, trust_remote_code=True))
    encode_source(model, collator, "world:fact", 3, 0, tmp_path / "whole")
    encode_source(model, collator, "world:fact", 2, 0, tmp_path / "parts")
    (tmp_path / "parts" / "shard-00002.part").write_bytes(b"half")
    second = (tmp_path / "parts" / "shard-00001.parquet").stat()
    encode_source(model, collator, "world:fact", 3, 0, tmp_path / "parts")
    assert (tmp_path / "parts" / "shard-00001.parquet").stat() == second
    assert not list((tmp_path / "parts").glob("*.part"))
    shards = [[str(path) for path in sorted((tmp_path / name).glob("*.parquet"))] for name in ("whole", "parts")]
    whole, parts = (pq.read_table(paths).to_pylist() for paths in shards)
    assert len(whole) == 192 and whole == parts
    with pytest.raises(ValueError, match="begun with other settings: seed 0, now 1"):
        encode_source(model, collator, "world:fact", 3, 1, tmp_path / "parts")
