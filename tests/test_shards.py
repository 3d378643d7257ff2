"""Shards: the same bytes on one core and on many, after kills and full disks; media survive the way to the model's inputs."""

import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training import shards
from training.synthesis import rendered_text, samples

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = {"source": "test", "license": "apache-2.0", "seed": 3, "options": {"skills": ["sign", "sentence"]}}
SMALL = {"rows_per_shard": 4, "row_group": 2, "processes": 1}


def draw(seed: int, index: int) -> dict | None:
    """A sign or a sentence; every seventh number has no row."""
    if index % 7 == 6:
        return None
    sample = samples.make(("sign", "sentence")[index % 2], "train", f"{seed}/{index}")
    return shards.encode_row(sample, f"test/{seed}/{index}", "test", "apache-2.0")


def plain(index: int) -> dict:
    """A row of text that is made at once."""
    return shards.encode_row(samples.make("fact", "test", index), str(index), "test", "apache-2.0")


def broken(index: int) -> dict:
    if index == 5:
        raise ZeroDivisionError("no such row")
    return plain(index)


def slow(index: int) -> dict:
    time.sleep(0.2)
    return plain(index)


def noise(index: int) -> dict:
    """A row with a picture that zstd cannot make smaller: 30 kB."""
    pixels = np.random.default_rng(index).integers(0, 256, (100, 100, 3), np.uint8)
    sample = samples.make("fact", "test", index) | {"images": [Image.fromarray(pixels)]}
    sample["messages"][0]["content"].append({"type": "image"})
    return shards.encode_row(sample, str(index), "test", "apache-2.0")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_processes_do_not_change_a_byte(tmp_path):
    for processes in (1, 2):
        options = WRITTEN | SMALL | {"processes": processes}
        shards.write_shards(functools.partial(draw, 3), 18, tmp_path / str(processes), labels=("voice",), **options)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) == 6


def quiet_ray(monkeypatch) -> None:
    """No reports to Ray's makers, no token in the home folder."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.mark.slow
def test_ray_does_not_change_a_byte(tmp_path, monkeypatch):
    """A local Ray of two workers; what it starts ends with the test."""
    quiet_ray(monkeypatch)
    ray = pytest.importorskip("ray")
    options = WRITTEN | SMALL | {"rows_per_shard": 5}
    draw_row = functools.partial(rendered_text.draw, 3, "train", None)
    try:
        shards.write_shards(draw_row, 18, tmp_path / "ray", **options | {"processes": 2, "engine": "ray"})
        assert ray.cluster_resources()["CPU"] == 2
    finally:
        ray.shutdown()
    shards.write_shards(draw_row, 18, tmp_path / "one", **options)
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


@pytest.mark.slow
def test_a_script_runs_on_ray(tmp_path, monkeypatch):
    """Its functions are those of `__main__` then, which no worker knows."""
    quiet_ray(monkeypatch)
    pytest.importorskip("ray")
    script = [sys.executable, "-m", "training.synthesis.rendered_text", "--rows", "4", "--rows-per-shard", "2"]
    for engine in shards.ENGINES:
        options = ["--engine", engine, "--output", str(tmp_path / engine), "--processes", "2"]
        subprocess.run([*script, *options], cwd=ROOT, check=True)
    assert contents(tmp_path / "ray") == contents(tmp_path / "processes")


def test_ray_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ImportError, match="needs Ray: pip install ray"):
        shards.write_shards(plain, 4, tmp_path / "ray", **WRITTEN | SMALL | {"engine": "ray"})
    with pytest.raises(ValueError, match="unknown engine 'spark'; known: processes, ray"):
        shards.write_shards(plain, 4, tmp_path / "spark", **WRITTEN | SMALL | {"engine": "spark"})
    assert not (tmp_path / "spark").exists()


def test_manifest_says_what_is_there(tmp_path):
    manifest = shards.write_shards(functools.partial(draw, 3), 18, tmp_path, labels=("skill", "noisy"), **WRITTEN | SMALL)
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["rows"], manifest["left_out"]) == (16, 2)
    assert manifest["labels"]["skill"] == {"sentence": 8, "sign": 8}
    assert sum(manifest["labels"]["noisy"].values()) == 8 and set(manifest["labels"]["noisy"]) <= {"true", "false"}
    for shard in manifest["shards"]:
        content = (tmp_path / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 3, 4, 3, 2]
    parquet = pq.ParquetFile(tmp_path / "shard-00000.parquet")
    assert parquet.schema_arrow.equals(shards.SCHEMA)
    assert [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)] == [2, 2]
    assert parquet.metadata.row_group(0).column(0).compression == "ZSTD"


def test_rows_are_read_as_they_were_written(tmp_path):
    shards.write_shards(functools.partial(draw, 3), 18, tmp_path, **WRITTEN | SMALL)
    expected = [row for row in map(functools.partial(draw, 3), range(18)) if row]
    assert list(shards.read_rows(tmp_path)) == expected
    rows = shards.Rows([tmp_path / "shard-00001.parquet", tmp_path / "shard-00000.parquet"])
    assert [rows[i]["id"] for i in range(len(rows))] == [row["id"] for row in expected[4:7] + expected[:4]]
    for index in (7, -1):
        with pytest.raises(IndexError, match="the shards hold 7"):
            rows[index]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(shards.read_rows(tmp_path / "nowhere"))


def test_a_killed_run_goes_on(tmp_path):
    """kill -9 of the process that writes, with its helpers at work: what was whole stays, no helper lives on."""
    command = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import test_shards
from training import shards
if __name__ == "__main__":
    shards.write_shards(test_shards.slow, 24, {str(tmp_path / "killed")!r}, **{WRITTEN | SMALL | {"processes": 2}!r})
"""
    script = tmp_path / "write.py"
    script.write_text(command)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    first = tmp_path / "killed" / "shard-00000.parquet"
    while not first.exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    helpers = psutil.Process(process.pid).children(recursive=True)
    assert len(helpers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert psutil.wait_procs(helpers, timeout=60)[1] == []
    whole = {path.name: path.stat().st_mtime_ns for path in first.parent.glob("*.parquet")}
    assert 1 <= len(whole) < 6 and not (first.parent / "manifest.json").exists()
    shards.write_shards(plain, 24, tmp_path / "killed", **WRITTEN | SMALL)
    shards.write_shards(plain, 24, tmp_path / "calm", **WRITTEN | SMALL)
    assert contents(tmp_path / "killed") == contents(tmp_path / "calm")
    assert {name: (first.parent / name).stat().st_mtime_ns for name in whole} == whole


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(ZeroDivisionError):
        shards.write_shards(broken, 8, tmp_path / "part", **WRITTEN | SMALL)
    shards.write_shards(plain, 8, tmp_path / "whole", **WRITTEN | SMALL)
    for folder in ("part", "whole"):
        before = contents(tmp_path / folder)
        for other in ({"seed": 4}, {"options": {}}, {"rows_per_shard": 8}, {"license": "mit"}):
            name = next(iter(other))
            with pytest.raises(ValueError, match=f"was written with {name}"):
                shards.write_shards(plain, 8, tmp_path / folder, **WRITTEN | SMALL | other)
        with pytest.raises(ValueError, match="with count 8, now it is 9"):
            shards.write_shards(plain, 9, tmp_path / folder, **WRITTEN | SMALL)
        assert contents(tmp_path / folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(ValueError, match="holds files that are not of this script"):
        shards.write_shards(plain, 8, tmp_path / "mine", **WRITTEN | SMALL)


def test_a_lost_shard_is_written_again_and_a_damaged_one_is_named(tmp_path):
    shards.write_shards(plain, 8, tmp_path, **WRITTEN | SMALL)
    before, shard = contents(tmp_path), tmp_path / "shard-00001.parquet"
    shard.unlink()
    shards.write_shards(plain, 8, tmp_path, **WRITTEN | SMALL)
    assert contents(tmp_path) == before
    shard.write_bytes(shard.read_bytes()[:-100])
    (tmp_path / "shard-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"shard-00001.parquet is damaged .*; remove it, and run"):
        shards.write_shards(plain, 8, tmp_path, **WRITTEN | SMALL)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_names_its_row_and_keeps_what_is_whole(tmp_path, processes):
    with pytest.raises(ZeroDivisionError) as failure:
        shards.write_shards(broken, 8, tmp_path, **WRITTEN | SMALL | {"processes": processes})
    assert failure.value.__notes__ == ["This was row number 5."]
    assert sorted(contents(tmp_path)) == ["shard-00000.parquet", "unfinished.json"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    """A limit of 100 kB a file stands for the disk: the first shard fits, the second does not."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import test_shards
from training import shards
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
options = test_shards.WRITTEN | test_shards.SMALL
shards.write_shards(lambda i: test_shards.plain(i) if i < 4 else test_shards.noise(i), 8, {str(tmp_path)!r}, **options)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "File too large" in done.stderr.splitlines()[-1]
    assert sorted(contents(tmp_path)) == ["shard-00000.parquet", "unfinished.json"]
    shards.write_shards(lambda i: plain(i) if i < 4 else noise(i), 8, tmp_path, **WRITTEN | SMALL)  # there is room now
    assert [row["id"] for row in shards.read_rows(tmp_path)] == [str(i) for i in range(8)]


def test_media_reach_the_processor(tmp_path):
    """A picture, a sound and a video, once from memory and once from the shard, make the same inputs."""
    from transformers import AutoProcessor  # here: the processes of other tests, which read this file, need no torch

    from training.collator import with_media

    processor = AutoProcessor.from_pretrained(str(ROOT), trust_remote_code=True)
    for skill, key, error in (("sign", "pixel_values", 0), ("sentence", "input_features", 0.02), ("clip", "pixel_values", 0.3)):
        sample = samples.make(skill, "train", 5)
        if skill == "clip":
            sample["videos"] = [video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2] for video in sample["videos"]]
        row = functools.partial(shards.encode_row, sample, "0", "test", "apache-2.0")
        shards.write_shards(lambda _, row=row: row(), 1, tmp_path / skill, **WRITTEN | SMALL)
        rows = [sample, *shards.read_rows(tmp_path / skill)]
        made, read = (inputs(processor, with_media(row)) for row in rows)
        assert made["input_ids"].tolist() == read["input_ids"].tolist()
        assert made[key].shape == read[key].shape
        assert float((made[key] - read[key]).abs().mean()) <= error, skill
    assert json.loads(rows[1]["meta"]) == sample["meta"]


def inputs(processor, messages: list[dict]):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True)


def test_files_of_media():
    """PNG and FLAC keep what they are given; FLAC has 16 bits; frames of a video come back one a second."""
    import av
    import soundfile

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 5, 3), np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(shards.encode_image(Image.fromarray(pixels))))) == pixels).all()
    waveform = rng.uniform(-1, 1, 1000).astype(np.float32)
    decoded, rate = soundfile.read(io.BytesIO(shards.encode_audio(waveform)), dtype="float32")
    assert rate == 16_000 and np.abs(decoded - waveform).max() <= 2**-15
    greys = (0, 120, 255)
    video = shards.encode_video(np.stack([np.full((33, 47, 3), grey, np.uint8) for grey in greys]))
    with av.open(io.BytesIO(video)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert [time for time, _ in frames] == [0, 1, 2]
    for (_, frame), grey in zip(frames, greys, strict=True):
        assert frame.shape == (32, 46, 3) and np.abs(frame.astype(int) - grey).max() <= 3
    assert shards.encode_video(video) is video
    for bad in (np.zeros((2, 10), np.float32), np.full(10, np.nan, np.float32), np.zeros(0, np.float32)):
        with pytest.raises(ValueError, match="one axis of finite samples"):
            shards.encode_audio(bad)


def test_bad_rows_are_refused():
    row = draw(3, 0)
    for change, message in (
        ({"images": []}, "shows 1 images, but has 0"),
        ({"messages": [{"role": "robot", "content": [], "tool_calls": None}]}, "roles .'robot'."),
        ({"messages": []}, "messages of roles"),
        ({"extra": 1}, "has columns"),
    ):
        with pytest.raises(ValueError, match=message):
            shards.check_row(row | change)


def test_calls_and_tools_are_json():
    sample = samples.make("request", "train", 0)
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = shards.encode_row(sample | {"tools": tools}, "0", "test", "apache-2.0")
    shards.check_row(row)
    assert json.loads(row["tools"]) == tools
    assert row["messages"][1]["content"] == []
    assert row["messages"][1]["tool_calls"] == sample["messages"][1]["tool_calls"]
