"""Draws the demo's files: one item of each of five kinds, from the test split, so that no training run ever saw it.

    python -m training.synthesis.make_assets

Writes the media and `questions.json` to assets/. `demo.py --fresh SEED` draws new items with the same functions.
"""

import json
from pathlib import Path

import av
import numpy as np
import soundfile

from training.synthesis import samples
from training.synthesis.voices import SAMPLING_RATE

ASSETS = Path(__file__).parents[2] / "assets"
TITLES = {
    "sign": "Text in a picture",
    "spoken_fact": "A spoken question",
    "spoken_picture": "A spoken question about a picture",
    "clip": "A video",
    "chart": "A chart",
}
SEEDS = {"sign": 10, "spoken_fact": 31, "spoken_picture": 184, "clip": 31, "chart": 5}
FRAME_RATE = 4  # of the video files; each of a clip's pictures stays for a second
SUFFIXES = {"image": ".png", "audio": ".wav", "video": ".mp4"}


def write_tasks(seeds: dict[str, int], folder: Path) -> list[dict]:
    """Draws the item of each skill in `seeds` and saves its media in `folder`, as `<skill>.png`, `.wav` and `.mp4`.

    Returns a list of {"title", "content", "answer", "meta"}: `content` is a user message's, in which each medium is a
    file name; `meta` holds what was asked aloud ("question") and how the item was drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [write_task(skill, seed, folder) for skill, seed in seeds.items()]


def write_task(skill: str, seed: int, folder: Path) -> dict:
    sample = samples.make(skill, "test", seed)
    question, answer = sample["messages"]
    content = []
    for part in question["content"]:
        kind = part["type"]
        if kind != "text":
            name = skill + SUFFIXES[kind]
            write_medium(folder / name, sample[f"{kind}s"][0])
            part = {"type": kind, kind: name}
        content.append(part)
    meta = sample["meta"] | {"seed": seed}
    return {"title": TITLES[skill], "content": content, "answer": answer["content"][0]["text"], "meta": meta}


def write_medium(path: Path, medium) -> None:
    """Saves a picture (PIL), a waveform (mono float32 at 16 kHz) or frames (T, H, W, 3) uint8, one a second."""
    if path.suffix == ".png":
        medium.save(path, optimize=True)
    elif path.suffix == ".wav":
        soundfile.write(path, medium, SAMPLING_RATE, subtype="PCM_16")
    else:
        write_video(path, medium)


def write_video(path: Path, frames: np.ndarray) -> None:
    """H.264 as every browser plays it: yuv420p, which takes even sides only, so an odd last row or column is cut off."""
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "18", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in np.repeat(frames[:, :height, :width], FRAME_RATE, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    tasks = write_tasks(SEEDS, ASSETS)
    (ASSETS / "questions.json").write_text(json.dumps(tasks, indent=2) + "\n")
    for task in tasks:
        print(f"{task['title']}: {task['meta']['question']} -> {task['answer']}")


if __name__ == "__main__":
    main()
