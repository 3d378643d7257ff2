"""The benchmark of voice output: how well given recordings of spoken answers are said.

    python -m eval.voice --waveforms answers.parquet --recogniser models/whisper-small --output out/voice
    python -m eval.voice --waveforms answers/ --recogniser "whisper-cli -np -nt -m base.bin -f" --own-ears .

WAVEFORMS is a Parquet file, or a folder with metadata.jsonl and the sound files it names. A row has

    id, text            what should have been said
    audio               the recording: {"bytes", "path"}, or a path from the folder
    answer              the words of the text that matter; without it, all of them
    reference_audio     the same text really spoken, and
    copy_audio          that recording passed through the vocoder (copy synthesis): the floors of the word error rate
    voice               the name of the voice that was asked for
    speaker_audio       the recording of a person whose voice was to be cloned
    emotion, speed, volume   the asked style; neutral: the id of the row that says the same without one
    time_to_first_text, chunk_times, chunk_seconds   seconds since the request, and lengths of the streamed chunks

where all but the first three may be missing or null. The headline is the word error rate by an independent recogniser,
never by the model's own ears; without one it is N/A. Each figure has its 95 % interval. Writes OUTPUT/samples.jsonl
(each recording as soon as it is measured; a killed run goes on where it stood), results.json, manifest.json, report.md
and report.png. Latency is that of the machine which made the file.
"""

import argparse
import difflib
import hashlib
import importlib.metadata
import io
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from eval.metrics.prosody import prosody
from eval.metrics.speaker_similarity.speaker_similarity import SAMPLING_RATE, embed
from eval.metrics.speech_health import speech_health
from eval.metrics.speech_latency.speech_latency import latency
from eval.metrics.spoken_answer.spoken_answer import words
from eval.samples import append, gather, to_lines, write_beside
from eval.task import Rows, row_sha256
from eval.voice_report import markdown, plot
from eval.voice_results import PARTS, SOURCES, STYLE, style

AUDIO = ("audio", "reference_audio", "copy_audio", "speaker_audio")
FACTS = ("id", "text", "answer", "voice", "neutral", *STYLE, "time_to_first_text", "chunk_times", "chunk_seconds")
SPECTRAL = "spectral statistics (eval/metrics/speaker_similarity)"
QUESTION = "Please recognize the speech and only output the recognized content:"  # lmms-eval's, of LibriSpeech
UNREADABLE = (soundfile.LibsndfileError, ValueError)
METRICS = ("prosody", "speaker_similarity", "speech_health", "speech_latency", "spoken_answer", "word_error_rate")
PACKAGES = (
    "numpy",
    "scipy",
    "soundfile",
    "soxr",
    "praat-parselmouth",
    "jiwer",
    "whisper-normalizer",
    "transformers",
    "torch",
)

Recogniser = Callable[[np.ndarray], str]  # mono float32 at 16 kHz in [-1, 1] -> what was said
Embedder = Callable[[np.ndarray], np.ndarray | None]  # the same -> the voice in it; None of silence


class VoiceError(ValueError):
    """The rows, or what listens to them, are not what they should be."""


@dataclass(frozen=True)
class Judges:
    """What listens to the recordings.

    info: for the manifest and the reuse of what was heard, a name of each (or its folder and digest), None where there
    is none. Raises ValueError for a recogniser without a name, or a name without one.
    """

    recogniser: Recogniser | None = None  # independent of the model that speaks
    own_ears: Recogniser | None = None  # that model itself
    embed: Embedder = embed
    info: dict[str, Any] = field(default_factory=lambda: {"recogniser": None, "own_ears": None, "speaker": SPECTRAL})

    def __post_init__(self):
        for name in ("recogniser", "own_ears"):
            if (getattr(self, name) is None) != (self.info[name] is None):
                raise ValueError(
                    f"info[{name!r}] is {self.info[name]!r}: expected a name if and only if there is a {name}"
                )


# ------------------------------------------------------------------------------------------------ rows


class Recordings:
    """The benchmark's rows. `facts`: all of them without their sound; `recordings[i]`: one with it, as bytes or None.

    Every column is there, None where it was not given. Raises VoiceError for what cannot be benchmarked.
    """

    def __init__(self, path: Path):
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        if path.is_dir():
            rows = read_metadata(path / "metadata.jsonl")
            self.row = rows.__getitem__
        elif path.suffix == ".parquet" and path.exists():
            table = Rows(datasets.Dataset.from_parquet(str(path)))
            self.row = table.raw
            check_columns(table.features)
            rows = table.dataset.select_columns([name for name in FACTS if name in table.features]).to_list()
        else:
            raise VoiceError(f"{path} is neither a folder nor a .parquet file")
        self.facts = [{column: row.get(column) for column in FACTS} for row in rows]
        check_rows(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, facts = self.row(index), self.facts[index]
        try:
            sounds = {column: sound_bytes(row.get(column), self.folder) for column in AUDIO}
        except OSError as error:
            raise VoiceError(f"row {facts['id']}: {error}") from error
        if sounds["audio"] is None:
            raise VoiceError(f"row {facts['id']} has no audio")
        return facts | sounds


def read_metadata(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise VoiceError(f"there is no {path}: expected one JSON object a line, with id, text and audio")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise VoiceError(f"{path}, line {number} is no JSON: {error}") from error
    check_columns(column for row in rows for column in row)
    return rows


def check_columns(columns: Iterable[str]) -> None:
    known = (*FACTS, *AUDIO)
    for column in set(columns) - set(known):
        close = difflib.get_close_matches(column, known, n=1)
        raise VoiceError(
            f"unknown column {column!r}; " + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}")
        )


def sound_bytes(value: bytes | str | dict | None, folder: Path) -> bytes | None:
    """A sound file's bytes; paths are from the folder."""
    if isinstance(value, dict):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if value is None or isinstance(value, bytes):
        return value
    return (folder / value).read_bytes()


def check_rows(rows: list[dict[str, Any]]) -> None:
    by_id = {row["id"]: row for row in rows if row["id"] is not None}
    if len(by_id) < len(rows) or not rows:
        raise VoiceError(
            f"{len(rows)} rows have {len(by_id)} ids: expected at least one row, each with an id of its own"
        )
    for row in rows:
        try:
            check_row(row, by_id)
        except ValueError as error:
            raise VoiceError(f"row {row['id']}: {error}") from error


def check_row(row: dict[str, Any], by_id: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError for what no metric could use."""
    for column in ("text", "answer"):
        if not words(row[column] or "") and (column == "text" or row[column] is not None):
            raise ValueError(f"{column} {row[column]!r} has no words that could be said")
    neutral = by_id.get(row["neutral"])
    if row["neutral"] is not None and neutral is None:
        raise ValueError(f"its neutral counterpart {row['neutral']!r} is no row's id")
    if neutral and (neutral["voice"] != row["voice"] or prosody.directions(style(neutral))):
        raise ValueError(f"its neutral counterpart {row['neutral']!r} has another voice, or a style of its own")
    prosody.directions(style(row))
    timing(row)


def timing(row: dict[str, Any]) -> dict[str, float] | None:
    """The latency figures of a row; None if it has no times. Raises ValueError for times that cannot be."""
    times, seconds, first_text = row["chunk_times"], row["chunk_seconds"], row["time_to_first_text"]
    if times is seconds is first_text is None:
        return None
    return latency(times or [], seconds or [], first_text) | {"time_to_first_text": first_text}


# ------------------------------------------------------------------------------------------------ judges


def load_judges(recogniser: str | None, own_ears: str | None, speaker_model: str | None) -> Judges:
    """The judges that the command's options name. Raises VoiceError for a recogniser that is the model itself."""
    folder = Path(recogniser) if recogniser and Path(recogniser).is_dir() else None
    if folder and (is_eagle(folder) or (own_ears and folder.resolve() == Path(own_ears).resolve())):
        raise VoiceError(
            f"--recogniser {recogniser} is the model that speaks: its own ears excuse its own speech. Pass --own-ears"
        )
    return Judges(
        (transcriber(folder) if folder else command(recogniser)) if recogniser else None,
        ears(own_ears) if own_ears else None,
        x_vectors(speaker_model) if speaker_model else embed,
        {
            "recogniser": described(recogniser),
            "own_ears": described(own_ears),
            "speaker": described(speaker_model) or SPECTRAL,
        },
    )


def is_eagle(folder: Path) -> bool:
    if not (folder / "config.json").exists():
        raise VoiceError(f"--recogniser {folder} has no config.json: expected a model of transformers, or a command")
    return json.loads((folder / "config.json").read_text()).get("model_type") == "eagle_slm"


def described(judge: str | None) -> Any:
    """A folder with the digest of its weights, or a command as it is."""
    if judge is None or not Path(judge).is_dir():
        return judge
    from eval.models import WEIGHTS, files_sha256

    return {"path": judge, "weights_sha256": files_sha256(Path(judge), WEIGHTS)}


def transcriber(folder: Path) -> Recogniser:
    """A speech recogniser of transformers, such as Whisper or wav2vec 2.0."""
    from transformers import pipeline

    recognise = pipeline("automatic-speech-recognition", model=str(folder), chunk_length_s=30)
    return lambda waveform: recognise({"raw": waveform, "sampling_rate": SAMPLING_RATE})["text"]


def command(line: str) -> Recogniser:
    """Any program that is given the path of a WAV file as its last argument and prints what was said."""

    def recognise(waveform: np.ndarray) -> str:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            soundfile.write(file, waveform, SAMPLING_RATE, format="WAV")
            file.flush()
            done = subprocess.run([*shlex.split(line), file.name], capture_output=True, text=True)
        if done.returncode:
            raise VoiceError(
                f"the recogniser {line!r} failed with exit code {done.returncode}: {done.stderr.strip()[-300:]}"
            )
        return done.stdout.strip()

    return recognise


def ears(path: str) -> Recogniser:
    """EAGLE writes down what it hears."""
    from eval.models import TorchModel
    from eval.task import Request

    model = TorchModel(path)

    def recognise(waveform: np.ndarray) -> str:
        sound = {"type": "audio", "audio": {"array": waveform, "sampling_rate": SAMPLING_RATE}}
        request = Request([{"role": "user", "content": [sound, {"type": "text", "text": QUESTION}]}])
        return model.answer([request], model.prepare([request]))[0].text

    return recognise


def x_vectors(folder: str) -> Embedder:
    """A speaker model of transformers with an x-vector head, such as WavLM's."""
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    extractor = AutoFeatureExtractor.from_pretrained(folder)
    model = AutoModelForAudioXVector.from_pretrained(folder).eval()

    @torch.inference_mode()
    def embed_by_model(waveform: np.ndarray) -> np.ndarray | None:
        if embed(waveform) is None:
            return None
        inputs = extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return model(**inputs).embeddings[0].numpy()

    return embed_by_model


# ------------------------------------------------------------------------------------------------ measuring


def decode(sound: bytes) -> tuple[np.ndarray, int]:
    """(mono float32 waveform, sampling rate). Raises one of UNREADABLE for bytes that are no sound, or no numbers."""
    waveform, sampling_rate = soundfile.read(io.BytesIO(sound), dtype="float32", always_2d=True)
    if not np.isfinite(waveform).all():
        raise ValueError("it holds samples that are not finite numbers")
    return waveform.mean(1), sampling_rate


def decode_all(row: dict[str, Any]) -> tuple[dict[str, tuple[np.ndarray, int]], str | None]:
    """The row's sounds by column, and what is wrong with its recording: one that cannot be read is silence.

    Raises VoiceError where another column cannot be read: what it would be a floor or a measure for is not told.
    """
    sounds, error = {}, None
    for column in (column for column in AUDIO if row[column] is not None):
        try:
            sounds[column] = decode(row[column])
        except UNREADABLE as defect:
            if column != "audio":
                raise VoiceError(f"row {row['id']}: {column} cannot be read: {defect}") from defect
            sounds[column], error = (np.zeros(0, dtype=np.float32), SAMPLING_RATE), str(defect)
    return sounds, error


def at_16k(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    return soxr.resample(waveform, sampling_rate, SAMPLING_RATE) if len(waveform) else waveform


def measure(row: dict[str, Any], judges: Judges) -> dict[str, Any]:
    """All that is known of one row's recordings, as JSON."""
    sounds, error = decode_all(row)
    plain = {column: at_16k(*sound) for column, sound in sounds.items()}
    listeners = dict.fromkeys(SOURCES, judges.recogniser) if judges.recogniser else {}
    heard = {column: hear(listener, plain[column]) for column, listener in listeners.items() if column in plain}
    if judges.own_ears:
        heard["own_ears"] = hear(judges.own_ears, plain["audio"])
    voices = {column: judges.embed(plain[column]) for column in plain if column != "copy_audio"}
    return {
        "id": row["id"],
        "category": row["voice"],
        "cluster": cluster(row["text"]),
        "target": row["text"],
        "response": heard.get("audio"),
        "heard": heard,
        "health": soundness(row, sounds),
        "prosody": prosody.measure(*sounds["audio"], row["text"]),
        "latency": timing(row),
        "voices": {column: None if voice is None else np.round(voice, 5).tolist() for column, voice in voices.items()},
        "error": error,
    }


def hear(recogniser: Recogniser, waveform: np.ndarray) -> str:
    return recogniser(waveform) if len(waveform) else ""


def cluster(text: str) -> str:
    """Recordings of one text are drawn together in the bootstrap."""
    return " ".join(words(text))


def soundness(row: dict[str, Any], sounds: dict[str, tuple[np.ndarray, int]]) -> dict[str, Any]:
    """The defects of a recording, and the measures behind them."""
    waveform, sampling_rate = sounds["audio"]
    reference = speech_health.silences(*sounds["reference_audio"])["speech"] if "reference_audio" in sounds else None
    silences = speech_health.silences(waveform, sampling_rate)
    return {
        "defects": speech_health.defects(waveform, sampling_rate, row["text"], reference),
        "clipped_share": speech_health.clipped_share(waveform),
        "leading_silence": silences["leading"],
        "trailing_silence": silences["trailing"],
        "longest_pause": silences["inside"],
        "duration_to_reference": silences["speech"] / reference if reference else None,
        "duration_to_text": silences["speech"] / speech_health.expected_seconds(row["text"]),
    }


# ------------------------------------------------------------------------------------------------ the command


def code_sha256() -> str:
    folder = Path(__file__).parent
    files = [Path(__file__), *(folder / "metrics" / name / f"{name}.py" for name in METRICS)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def run(recordings: Recordings, judges: Judges, output: Path) -> dict[str, Any]:
    """Measures the recordings, writes OUTPUT's files, and returns what is in results.json."""
    began, started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    code = code_sha256()
    digests = [row_sha256(recordings[index]) for index in range(len(recordings))]
    keys = {("voice", index): sha256(digest, judges.info, code) for index, digest in enumerate(digests)}
    done = gather(output, keys)
    pending = [place for place in keys if place not in done]
    for place in tqdm(pending, desc="recordings", initial=len(done), total=len(keys)):
        done[place] = {"task": "voice", "index": place[1], "key": keys[place]} | measure(recordings[place[1]], judges)
        append(output / "samples.jsonl", [done[place]])
    samples = [done[place] for place in keys]
    results = {"model": str(recordings.path), "tasks": {}, "average": None}
    results["tasks"] = {name: part(recordings.facts, samples) for name, part in PARTS.items()}
    manifest = {
        "waveforms": str(recordings.path),
        "rows": len(recordings),
        "rows_sha256": sha256(digests),
        "judges": judges.info,
        "code_sha256": code,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "started": began,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_beside(output / "samples.jsonl", to_lines(samples))
    write_beside(output / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    write_beside(output / "results.json", json.dumps(results, indent=2) + "\n")
    write_beside(output / "report.md", markdown(results, manifest))
    plot(recordings.facts, samples, results, output / "report.png")
    return results


def sha256(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waveforms", type=Path, required=True, help="a Parquet file, or a folder with metadata.jsonl")
    parser.add_argument(
        "--recogniser", help="a folder with a recogniser of transformers, or a command that gets a WAV file's path"
    )
    parser.add_argument(
        "--own-ears", help="folder of the model that spoke, to be shown beside the independent recogniser"
    )
    parser.add_argument(
        "--speaker-model", help="folder with an x-vector model of transformers (default: spectral statistics)"
    )
    parser.add_argument("--output", type=Path, default=Path("out/voice"))
    args = parser.parse_args()
    try:
        recordings = Recordings(args.waveforms)
        run(recordings, load_judges(args.recogniser, args.own_ears, args.speaker_model), args.output)
    except VoiceError as error:
        sys.exit(f"eval.voice: {error}")
    print((args.output / "report.md").read_text())


if __name__ == "__main__":
    main()
