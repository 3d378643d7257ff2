"""Benchmarks as YAML files: lmms-eval's task format, read into rows, requests to a model, and scores.

A task file says where its rows lie (`dataset_path`, `dataset_name`, `test_split`), how a row becomes a conversation
(`doc_to_visual` and `doc_to_text`, or `doc_to_messages`), and how an answer is scored (`process_results`,
`metric_list`). Each `doc_to_*` is a column, a Jinja template, or `!function utils.name` from the file's folder. Keys
beyond lmms-eval's:

    doc_to_id, doc_to_category   names of an item and of the group that it is counted in
    doc_to_cluster               what belongs together (one picture, one video) and is resampled together
    chance                       the score of guessing
    headline                     the metric that stands for the task; without it, the first
    compares_to                  the split whose published figures stand beside ours; without it, the task's own
    submission                   writes what the benchmark's server takes: function(samples, rows, folder) -> path
    needs                        what the task cannot be scored without; it is then reported as N/A
    drawn_rows, trained          of the mini suite (eval/mini.py): how many rows, and whether eagle-tiny was trained for it
    metric_list: percent         false for a metric that is not a share; per_item: a function of all values, before the mean
    fewshot_config: match        a column that examples must have in common with the row

A data set lies on the Hub, or as Parquet under a data root: ROOT/dataset_path[/dataset_name][/data]/split[-*].parquet,
which is how a snapshot of a Hub repository looks.
"""

import difflib
import functools
import hashlib
import importlib.util
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets
import jinja2
import soundfile
import yaml
from datasets import Audio, Dataset, Image, Video
from PIL import Image as PILImage

from eval.metrics.exact_match.exact_match import is_exact_match

TASKS = Path(__file__).parent / "tasks"
IGNORED = ("metadata", "repeats", "should_decontaminate", "doc_to_decontamination_query", "tag",
           "task_alias", "group_alias", "training_split", "full_docs", "model_specific_generation_kwargs",
           "model_specific_target_kwargs", "process_results_use_image", "aggregate_metric_list")  # fmt: skip


class TaskError(ValueError):
    """A task file or its data set is not what it should be."""


# ------------------------------------------------------------------------------------------------ files


def function_of(folder: Path, name: str) -> Callable:
    """The function that `!function module.name` in a task file means: module.py lies beside the file."""
    module_name, _, attribute = name.rpartition(".")
    path = folder / f"{module_name.replace('.', '/')}.py"
    if not path.exists():
        raise TaskError(f"!function {name}: there is no {path}")
    module = load_module(path)
    if not hasattr(module, attribute):
        raise TaskError(f"!function {name}: {path} defines no {attribute!r}")
    return getattr(module, attribute)


@functools.cache
def load_module(path: Path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise TaskError(f"{path} imports what is not installed here: {error}. Tasks of lmms-eval need it installed too") from error
    return module


def read_yaml(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """A task file's keys on top of those of the files it includes, and all these files."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: function_of(path.parent, loader.construct_scalar(node)))
    config = yaml.load(path.read_text(), Loader) or {}
    includes = config.pop("include", [])
    merged, paths = {}, [path]
    for name in [includes] if isinstance(includes, str) else includes:
        if not (path.parent / name).exists():
            raise TaskError(f"{path} includes {name}, but there is no {path.parent / name}")
        included, more = read_yaml(path.parent / name)
        merged, paths = merged | included, paths + more
    return merged | config, paths


def task_files(folders: list[Path]) -> dict[str, Path]:
    """The file of each task and group that the folders hold, by name; a later folder's comes before an earlier one's."""
    files = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        for name in re.findall(r"^(?:task|group):\s*[\"']?([\w.+-]+)[\"']?\s*$", path.read_text(), re.MULTILINE):
            files[name] = path
    return files


def load_tasks(names: list[str], include_path: Path | None = None) -> list["Task"]:
    """The named tasks, groups replaced by what they hold, each once, in order. Raises TaskError for an unknown name."""
    files = task_files([TASKS, *([include_path] if include_path else [])])
    found = {}
    for name in names:
        found |= {task.task: task for task in expand(name, files, {})}
    return list(found.values())


def expand(name: str, files: dict[str, Path], overrides: dict[str, Any]) -> Iterator["Task"]:
    """The task, or those of a group; what else stands in a group's file replaces its tasks' own."""
    if name not in files:
        close = difflib.get_close_matches(name, files, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(files))}"
        raise TaskError(f"unknown task {name!r}; {hint}")
    config, paths = read_yaml(files[name])
    if config.get("group") == name:
        overrides = {key: value for key, value in config.items() if key not in ("group", "task", "tag", *IGNORED)} | overrides
        for member in config["task"]:
            yield from expand(member, files, overrides)
    else:
        yield Task.from_config(config | overrides, paths)


# ------------------------------------------------------------------------------------------------ rows


def open_media(feature, value):
    """A column's value with its pictures opened (not yet decoded), its sound read, its videos as bytes or paths."""
    if value is None:
        return None
    if isinstance(feature, Image):
        return open_image(value)
    if isinstance(feature, Audio):
        return open_sound(value)
    if isinstance(feature, Video):
        return value["bytes"] if value["bytes"] is not None else value["path"]
    if isinstance(feature, datasets.List):
        return [open_media(feature.feature, item) for item in value]
    if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:  # Parquet that `datasets` did not write
        return open_unnamed(value)
    if isinstance(feature, dict):
        return {key: open_media(feature[key], item) for key, item in value.items()}
    return value


def source_of(value: dict):
    return io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]


def open_image(value: dict) -> PILImage.Image:
    return PILImage.open(source_of(value))


def open_sound(value: dict) -> dict[str, Any]:
    array, sampling_rate = soundfile.read(source_of(value), dtype="float32")
    return {**value, "array": array, "sampling_rate": sampling_rate}


def open_unnamed(value: dict):
    """A picture or a sound, whichever the bytes are; else as it is: a video."""
    for open_as in (open_image, open_sound):
        try:
            return open_as(value)
        except (PILImage.UnidentifiedImageError, soundfile.LibsndfileError):
            continue
    return value


def undecoded(feature):
    """The feature with media left as bytes: `datasets` decodes sound and video by packages that are not needed here."""
    if isinstance(feature, Image | Audio | Video):
        return type(feature)(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(undecoded(feature.feature), length=feature.length)
    if isinstance(feature, dict):
        return {key: undecoded(item) for key, item in feature.items()}
    return feature


def row_sha256(row: dict[str, Any]) -> str:
    """SHA-256 of everything that an undecoded row holds, media bytes included."""
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, bytes):
            digest.update(hashlib.sha256(value).digest())
        elif isinstance(value, dict):
            for key in sorted(value):
                digest.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, list):
            digest.update(f"[{len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(row)
    return digest.hexdigest()


class Rows:
    """The rows of a split: `rows[i]` has its media opened, `rows.raw(i)` has them as they are stored.

    folder: where the data set's further files (videos) lie; None if it is read from the Hub.
    """

    def __init__(self, dataset: Dataset, folder: Path | None = None):
        self.features, self.folder = dataset.features, folder
        for name, feature in dataset.features.items():
            if (stored := undecoded(feature)) != feature:
                dataset = dataset.cast_column(name, stored)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def revision(self) -> str | None:
        """The commit of the Hub's data set that the rows come from; None if they do not."""
        files = " ".join(self.dataset.info.download_checksums or {})
        found = re.search(r"@([0-9a-f]{40})/", files)
        return found and found[1]

    def raw(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def where(self, column: str, value) -> list[int]:
        """Indices of the rows with this value."""
        return self.groups(column).get(value, [])

    @functools.cache  # noqa: B019 - a run opens a split once
    def groups(self, column: str) -> dict[Any, list[int]]:
        groups = {}
        for index, value in enumerate(self.dataset[column]):
            groups.setdefault(value, []).append(index)
        return groups

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: open_media(self.features[key], value) for key, value in self.raw(index).items()}


def parquet_splits(folder: Path) -> dict[str, list[Path]]:
    """Split name to Parquet files, of those in the folder or its data/."""
    splits = {}
    for path in sorted([*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet")]):
        splits.setdefault(re.sub(r"-\d{5}-of-\d{5}.*", "", path.stem), []).append(path)
    return splits


def load_split(path: str, name: str | None, split: str, data_root: Path | None = None, **kwargs) -> Dataset:
    """The rows of a split from the Hub or, with a data root, from local Parquet. Raises TaskError if it is not there."""
    if data_root is None and not Path(path).exists():
        try:
            return datasets.load_dataset(path, name, split=split, **kwargs)
        except (OSError, ValueError) as error:
            raise TaskError(
                f"cannot load split {split!r} of {path} ({name or 'default'}) from the Hub: {error}. Without a network, give "
                f"--data-root ROOT with its Parquet in ROOT/{path}"
            ) from error
    folder = (data_root or Path()) / path / (name or "")
    splits = parquet_splits(folder)
    if split not in splits:
        raise TaskError(f"no split {split!r} in {folder}: expected {split}.parquet, found {', '.join(splits) or 'no Parquet file'}")
    return datasets.load_dataset("parquet", data_files={"rows": [str(file) for file in splits[split]]}, split="rows")


# ------------------------------------------------------------------------------------------------ tasks


@dataclass
class Request:
    """What a model is asked.

    prompt: a conversation (messages with their media inside), or raw text that gets no chat template.
    tools: JSON schemas for the template, or None.
    choices: continuations whose log-likelihoods are asked for; None: an answer is to be generated.
    generation_kwargs: `max_new_tokens`, `until` (list of strings that end an answer), and further ones of `generate`.
    """

    prompt: list[dict[str, Any]] | str
    tools: list[dict[str, Any]] | None = None
    choices: list[str] | None = None
    generation_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Task:
    """One benchmark; the fields are the keys of its file."""

    task: str
    paths: list[Path]  # the file and those that it includes
    dataset_path: str
    metric_list: list[dict[str, Any]]
    dataset_name: str | None = None
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)
    test_split: str | None = None
    validation_split: str | None = None
    fewshot_split: str | None = None
    num_fewshot: int = 0
    fewshot_config: dict[str, Any] = field(default_factory=dict)
    output_type: str = "generate_until"
    description: str = ""
    doc_to_visual: Any = None
    doc_to_text: Any = None
    doc_to_messages: Callable | None = None
    doc_to_target: Any = None
    doc_to_choice: Any = None
    process_docs: Callable | None = None
    process_results: Callable | None = None
    generation_kwargs: dict[str, Any] = field(default_factory=dict)
    lmms_eval_specific_kwargs: dict[str, Any] = field(default_factory=dict)
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    doc_to_id: Any = None
    doc_to_category: Any = None
    doc_to_cluster: Any = None
    chance: float | None = None
    headline: str | None = None
    submission: Callable | None = None
    needs: str | None = None
    compares_to: str | None = None
    trained: bool | None = None
    drawn_rows: int | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any], paths: list[Path]) -> "Task":
        path, known = paths[0], {item.name for item in fields(cls)} - {"paths"}
        for key in set(config) - known - set(IGNORED):
            close = difflib.get_close_matches(key, known, n=1)
            raise TaskError(f"{path}: unknown key {key!r}{f'; did you mean {close[0]!r}?' if close else ''}")
        for key in {"task", "dataset_path", "metric_list"} - set(config):
            raise TaskError(f"{path}: the key {key!r} is missing")
        task = cls(paths=paths, **{key: value for key, value in config.items() if key in known})
        if task.output_type not in ("generate_until", "multiple_choice"):
            raise TaskError(f"{path}: output_type {task.output_type!r}; expected 'generate_until' or 'multiple_choice'")
        metrics = [entry["metric"] for entry in task.metric_list]
        if task.output_type == "multiple_choice" and not task.process_results and metrics != ["acc"]:
            raise TaskError(f"{path}: metrics {metrics}; a multiple_choice without process_results has 'acc' alone")
        task.headline = task.headline or task.metric_list[0]["metric"]
        task.compares_to = task.compares_to or task.split
        return task

    @property
    def split(self) -> str:
        split = self.test_split or self.validation_split
        if not split:
            raise TaskError(f"{self.paths[0]}: neither test_split nor validation_split is given")
        return split

    def load(self, split: str, data_root: Path | None) -> Rows:
        """A split's rows, as `process_docs(rows)` or `process_docs(rows, load)` leaves them: load(name, split) gives others."""
        kwargs = {key: value for key, value in (self.dataset_kwargs or {}).items() if key in ("revision", "token")}
        load = functools.partial(load_split, self.dataset_path, data_root=data_root, **kwargs)
        dataset = load(self.dataset_name, split)
        if self.process_docs:
            takes = self.process_docs.__code__.co_argcount
            dataset = self.process_docs(dataset, load) if takes > 1 else self.process_docs(dataset)
        return Rows(dataset, data_root / self.dataset_path if data_root else None)

    def docs(self, data_root: Path | None = None) -> Rows:
        """The rows that are asked about."""
        return self.load(self.split, data_root)

    def shots(self, data_root: Path | None = None) -> Rows | None:
        """The rows that examples are taken from."""
        return self.load(self.fewshot_split or self.split, data_root) if self.num_fewshot else None

    def value(self, key: str, doc: dict[str, Any]):
        """What `doc_to_...` gives for a row. Raises TaskError naming the task, the key and the columns there are."""
        how = getattr(self, key)
        if not callable(how) and not isinstance(how, str):
            return how
        try:
            if callable(how):
                return call(how, doc, self.specific_kwargs)
            return doc[how] if how in doc else template(how).render(**doc)
        except (KeyError, jinja2.UndefinedError) as error:
            columns = ", ".join(doc)
            raise TaskError(f"task {self.task}: {key} finds no column {error} in a row; its columns are {columns}") from error
        except Exception as error:
            # what shows a row's media fails on that row's media; all else is the task's fault
            kind = ValueError if key in ("doc_to_visual", "doc_to_messages") else TaskError
            raise kind(f"task {self.task}: {key} fails on a row: {type(error).__name__}: {error}") from error

    @property
    def specific_kwargs(self) -> dict[str, Any]:
        """The prompt's parts (`pre_prompt`, `post_prompt`): lmms-eval names them by model, "default" for all others."""
        kwargs = self.lmms_eval_specific_kwargs or {}
        return kwargs.get("default", kwargs)

    def choices(self, doc: dict[str, Any]) -> list[str]:
        choices = self.value("doc_to_choice", doc)
        return yaml.safe_load(choices) if isinstance(choices, str) else list(choices)

    def target(self, doc: dict[str, Any]):
        """The right answer; of a multiple choice by likelihood, the index of the right choice."""
        target = self.value("doc_to_target", doc)
        if self.output_type == "multiple_choice" and not isinstance(target, int):
            return int(target) if str(target).isdigit() else self.choices(doc).index(target)
        return target

    def example(self, doc: dict[str, Any]) -> str:
        """A row with its answer, as text."""
        target = self.target(doc)
        answer = self.choices(doc)[target] if self.output_type == "multiple_choice" else target
        return f"{self.value('doc_to_text', doc)}{self.target_delimiter}{answer}{self.fewshot_delimiter}"

    def examples(self, doc: dict[str, Any], shots: Rows | None) -> str:
        """The first `num_fewshot` rows with their answers, of those with the same value in column `match`, if given."""
        if shots is None:
            return ""
        column = self.fewshot_config.get("match")
        indices = shots.where(column, doc[column]) if column else range(len(shots))
        return "".join(self.example(shots[index]) for index in indices[: self.num_fewshot])

    def request(self, doc: dict[str, Any], shots: Rows | None = None, folder: Path | None = None) -> Request:
        """The request for a row. A multiple choice by likelihood over a text alone gets no chat template.

        shots: what examples are taken from. folder: where videos lie that the row names.
        """
        if self.doc_to_messages:
            asked = self.value("doc_to_messages", doc)
            asked = asked if isinstance(asked, dict) else {"messages": asked, "tools": None}
            return Request([own_form(message) for message in asked["messages"]], asked["tools"], None, self.generation_kwargs)
        text = self.value("description", doc) + self.examples(doc, shots) + self.value("doc_to_text", doc)
        media = [medium_part(self.in_folder(medium, folder)) for medium in self.visuals(doc)]
        messages = [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]
        if self.output_type == "multiple_choice":
            choices = [self.target_delimiter + choice for choice in self.choices(doc)]
            return Request(messages if media else text, None, choices)
        return Request(messages, None, None, self.generation_kwargs)

    def visuals(self, doc: dict[str, Any]) -> list:
        """The media before the text: a column holds one or a list of them, or None."""
        media = self.value("doc_to_visual", doc)
        return media if isinstance(media, list) else [] if media is None else [media]

    def in_folder(self, medium, folder: Path | None):
        """A medium, or the whole path of one that is named within the data set."""
        if not isinstance(medium, str) or Path(medium).is_absolute():
            return medium
        if folder is None:
            raise TaskError(
                f"task {self.task}: the videos of {self.dataset_path} lie in archives on the Hub; unpack them into "
                f"DATA_ROOT/{self.dataset_path} (this row's is {medium}) beside the rows, and give --data-root"
            )
        return str(folder / medium)

    def score(self, doc: dict[str, Any], results: list) -> dict[str, Any]:
        """Metric to value of one answer.

        results: [answer] or, of a multiple choice by likelihood, a (log-likelihood, is_greedy) pair a choice.
        """
        if self.process_results:
            try:
                return self.process_results(doc, results)
            except KeyError as error:
                raise TaskError(f"task {self.task}: process_results finds no column {error}; there are {', '.join(doc)}") from error
            except Exception as error:
                raise TaskError(f"task {self.task}: process_results fails: {type(error).__name__}: {error}") from error
        target = self.target(doc)
        if self.output_type == "multiple_choice":
            best = max(range(len(results)), key=lambda index: results[index][0])
            return {"acc": float(best == target)}
        return {entry["metric"]: self.built_in(entry, results[0], target) for entry in self.metric_list}

    def built_in(self, entry: dict[str, Any], answer: str, target) -> float:
        if entry["metric"] != "exact_match":
            raise TaskError(f"{self.paths[0]}: metric {entry['metric']!r} needs process_results; built in is 'exact_match' alone")
        targets = target if isinstance(target, list) else [target]
        options = {key: entry[key] for key in ("ignore_case", "ignore_punctuation") if key in entry}
        return float(any(is_exact_match(answer, str(one), **options) for one in targets))

    def sha256(self) -> str:
        """Of the files that make the requests: the YAML and the Python beside it."""
        python = {file for path in self.paths for file in path.parent.glob("*.py")}
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in [*self.paths, *sorted(python)])).hexdigest()


def call(function: Callable, doc: dict[str, Any], specific_kwargs: dict[str, Any]):
    """Functions that take a second argument get the prompt's parts."""
    takes = function.__code__.co_argcount
    return function(doc, specific_kwargs) if takes > 1 else function(doc)


@functools.cache
def template(text: str) -> jinja2.Template:
    return jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(text)


def medium_part(medium) -> dict[str, Any]:
    """The content part of what doc_to_visual gives: a PIL picture, sound {"array", "sampling_rate"}, a video's path or bytes."""
    if isinstance(medium, PILImage.Image):
        return {"type": "image", "image": medium}
    return {"type": "audio", "audio": medium} if isinstance(medium, dict) else {"type": "video", "video": medium}


def own_form(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose media lie under their own names; lmms-eval has them under "url"."""
    if isinstance(message["content"], str):
        return message
    parts = [
        {"type": part["type"], part["type"]: part.get(part["type"], part.get("url"))} if part["type"] != "text" else part
        for part in message["content"]
    ]
    return {**message, "content": parts}
