"""Rows of public data sets to conversation rows (training/shards.py): a plain function a data set, by name in ADAPTERS.

    python -m training.convert_data --adapter glaive --input glaive-function-calling-v2.json ...
    ADAPTERS["llava"]({"id": "7", "image": "coco/7.jpg", "conversations": [...]})

training/convert_data.py writes shards through them, training/data.py reads Parquet of the Hub through them. Each takes
a row as its data set stores it, media as bytes, {"bytes", "path"} or a path, and gives a conversation row (`source` and
`license` are left to the writer), or None for a row that holds nothing for this model. Raises ValueError with the cause
for a row that is damaged or not of that data set.

The model needs text or sound beside a picture, and only what the assistant says is trained. So pairs (captions, pages,
transcripts) get a request of the user, picked by the row's id, and the text becomes the answer.
"""

import functools
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Sequence

import pypdfium2
from PIL import Image, ImageSequence

from training.shards import check_row, to_json
from training.synthesis.samples import TRANSCRIBE

IMAGE, AUDIO = {"type": "image", "text": None}, {"type": "audio", "text": None}
DESCRIBE = ("Describe the picture.", "What does the picture show?", "Write a caption for this picture.")
READ = ("Read the page.", "What is written here?", "Write down the text, line by line.")
READ_ALOUD = ("Say:", "Read aloud:", "Repeat after me:")
CONTINUE = ("Continue the document.", "Write how the document goes on.", "What does the document say next?")

END_OF_ARTICLE = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"  # OBELICS: what follows is another article
LONGEST_DOCUMENT = 4  # pages of a PDF; each takes up to 16 crops and a thousand words
PAGE_DPI = 144

LLAVA_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "A": "assistant", "FUNCTION RESPONSE": "tool"}
GLAIVE_TURN = re.compile(r"(?:^|\n\n+)(USER|ASSISTANT|A|FUNCTION RESPONSE):")
GLAIVE_CALL = re.compile(r'\{\s*"name":\s*"([^"]+)"\s*(?:,\s*"arguments":\s*(.*))?\}', re.DOTALL)
JSON_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "dict": "object"}
JSON_TYPES |= dict.fromkeys(("list", "tuple", "set"), "array")


def adapter(function: Callable[[dict], dict | None]) -> Callable[[dict], dict | None]:
    """The function; a row without the fields that it reads is a ValueError, as any other bad row."""

    @functools.wraps(function)
    def read(row: dict) -> dict | None:
        try:
            return function(row)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            cause = f"{type(error).__name__}: {error}; the row has {', '.join(map(str, row))}"
            raise ValueError(f"not a row of {function.__name__}: {cause}") from error

    return read


# ------------------------------------------------------------------------------------------------ pictures


@adapter
def cauldron(row: dict) -> dict:
    """https://huggingface.co/datasets/HuggingFaceM4/the_cauldron: `images`, `texts` [{user, assistant, source}].

    The pictures come first, then questions and answers about them, turn by turn.
    """
    messages = [message(role, turn[role]) for turn in row["texts"] for role in ("user", "assistant")]
    messages[0]["content"][:0] = [IMAGE] * len(row["images"])
    return conversation("", messages, images=row["images"])


@adapter
def obelics(row: dict) -> dict | None:
    """https://huggingface.co/datasets/HuggingFaceM4/OBELICS: `images` and `texts`, of each pair one is None.

    A document is a conversation in which the user shows its pictures and the assistant writes what follows them: the
    first turn of the user holds the text before the first picture, that picture, and a request to go on, the later ones
    pictures only. Pictures with nothing after them are left out, and so is what follows the mark of another article.
    The Hub holds URLs of the pictures: convert_data fetches them if it is told to.
    """
    parts = []
    for image, text in zip(row["images"], row["texts"], strict=True):
        text, is_end, _ = (text or "").partition(END_OF_ARTICLE)
        if image is not None:
            parts.append((IMAGE, image))
        elif text.strip():
            parts.append((None, text.strip()))
        if is_end:
            break
    runs = [[value for _, value in run] for _, run in itertools.groupby(parts, key=lambda part: part[0] is IMAGE)]
    opening = "\n\n".join(runs.pop(0)) if parts and parts[0][0] is None else ""
    turns = [(shown, "\n\n".join(texts)) for shown, texts in zip(runs[::2], runs[1::2], strict=False)]
    if not turns:
        return None
    messages = []
    for shown, text in turns:
        messages += [message("user", *[IMAGE] * len(shown)), message("assistant", text)]
    messages[0] = message("user", opening, *messages[0]["content"], pick(CONTINUE, turns[0][1]))
    return conversation("", messages, images=[image for shown, _ in turns for image in shown])


@adapter
def laion_coco(row: dict) -> dict | None:
    """https://huggingface.co/datasets/laion/laion-coco, as img2dataset writes it: `jpg` and `caption` (Parquet) or
    `txt` (tar); or as the Hub holds it: `URL` and `TEXT`, `top_caption`. None for what could not be downloaded.
    """
    if row.get("status", "success") != "success":
        return None
    caption = first(row, "top_caption", "caption", "txt", "TEXT")
    caption = caption.decode() if isinstance(caption, bytes) else caption
    key = first(row, "__key__", "key", "URL")
    return pair(key, first(row, "jpg", "URL"), pick(DESCRIBE, key), caption.strip())


@adapter
def rendered_text(row: dict) -> dict | None:
    """https://huggingface.co/datasets/wendlerc/RenderedText: `png`, `json` {ocr_annotation: {text: lines, ...}}."""
    lines = as_json(row["json"])["ocr_annotation"]["text"]
    return pair(row["__key__"], row["png"], pick(READ, row["__key__"]), "\n".join(lines).strip())


@adapter
def documents(row: dict) -> dict | None:
    """https://huggingface.co/datasets/pixparse/idl-wds: `tif`, `json` {pages: [{text: lines, bbox, poly, score}]}, and
    https://huggingface.co/datasets/pixparse/pdfa-eng-wds: `pdf`, `json` {pages: [{lines: {text, bbox}, words: ...}]}.

    One turn for each of the first pages that hold text, at most LONGEST_DOCUMENT.
    """
    pages = as_json(row["json"])["pages"]
    texts = ["\n".join(page.get("lines", page)["text"]).strip() for page in pages]
    numbers = [number for number, text in enumerate(texts) if text][:LONGEST_DOCUMENT]
    if not numbers:
        return None
    messages = []
    for number in numbers:
        messages += [message("user", IMAGE, pick(READ, row["__key__"])), message("assistant", texts[number])]
    return conversation(row["__key__"], messages, images=page_images(row, numbers))


def page_images(row: dict, numbers: list[int]) -> list[bytes]:
    """These pages of a row's TIFF, or else PDF, as PNG."""
    try:
        if row.get("tif"):
            with Image.open(io.BytesIO(medium(row["tif"])["bytes"])) as tif:
                return [to_png(ImageSequence.Iterator(tif)[number]) for number in numbers]
        with pypdfium2.PdfDocument(medium(row["pdf"])["bytes"]) as pdf:
            return [to_png(pdf[number].render(scale=PAGE_DPI / 72).to_pil()) for number in numbers]
    except (IndexError, OSError, pypdfium2.PdfiumError) as error:
        raise ValueError(f"cannot read pages {numbers}, which have text in the annotation: {error}") from error


# ------------------------------------------------------------------------------------------------ speech


@adapter
def spoken_trivia(row: dict) -> dict:
    """https://huggingface.co/datasets/fixie-ai/trivia_qa-audio: `question_audio`, and TriviaQA's `question_id`,
    `question`, `answer` {value, aliases}. The question is heard, not read; the aliases are in `meta`.
    """
    meta = {"question": row["question"], "aliases": list(row["answer"]["aliases"])}
    messages = [message("user", AUDIO), message("assistant", row["answer"]["value"])]
    return conversation(row["question_id"], messages, audios=[row["question_audio"]], meta=meta)


@adapter
def librispeech(row: dict) -> dict:
    """https://huggingface.co/datasets/openslr/librispeech_asr: `audio`, `text`, `id`. The text is in capitals without
    punctuation; here it is in lower case. convert_data makes such rows of the folders of openslr.org/12, too.
    """
    messages = [message("user", AUDIO, pick(TRANSCRIBE, row["id"])), message("assistant", row["text"].lower())]
    return conversation(row["id"], messages, audios=[row["audio"]])


@adapter
def ljspeech(row: dict) -> dict:
    """https://huggingface.co/datasets/keithito/lj_speech: `audio`, `normalized_text`, `id`. convert_data makes such rows of folders
    with metadata.csv, too.
    """
    return read_aloud(row["id"], row["normalized_text"], row["audio"])


@adapter
def libritts(row: dict) -> dict:
    """https://huggingface.co/datasets/blabble-io/libritts_r: `audio`, `text_normalized`, `speaker_id`, `id`. convert_data makes such
    rows of the folders of openslr.org/60 and /141, too.
    """
    return read_aloud(row["id"], row["text_normalized"], row["audio"], speaker=row["speaker_id"])


def read_aloud(id, text: str, audio, **meta) -> dict:
    """An answer with its speech, in a voice that the decoder hears, since it has no name for it."""
    messages = [message("user", f"{pick(READ_ALOUD, id)} {text}"), message("assistant", text)]
    return conversation(id, messages, speech=audio, meta=meta)


# ------------------------------------------------------------------------------------------------ instructions and chat


@adapter
def llava(row: dict) -> dict:
    """https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K, and in its form Bunny-695K and SVIT: `image` (a
    path or several; none in the rows of ShareGPT), `conversations` [{from: human | gpt, value}] with <image> in values.

    What the assistant says before the user, where ShareGPT was cut in pieces, is dropped, as LLaVA does.
    """
    images = several(row.get("image"))
    messages = []
    for turn in row["conversations"]:
        texts = turn["value"].split("<image>") if images else [turn["value"]]
        shown = [part for text in texts[1:] for part in (IMAGE, text.strip("\n"))]
        messages.append(message(LLAVA_ROLES[turn["from"]], texts[0].strip("\n"), *shown))
    while messages and messages[0]["role"] == "assistant":
        messages.pop(0)
    return conversation(row.get("id", ""), messages, images=images)


@adapter
def wizardlm(row: dict) -> dict:
    """https://huggingface.co/datasets/WizardLMTeam/WizardLM_evol_instruct_70k: `instruction`, `output`; V2_196k:
    `conversations` as LLaVA's.
    """
    if "conversations" in row:
        return llava(row)
    return conversation("", [message("user", row["instruction"]), message("assistant", row["output"])])


@adapter
def any_instruct(row: dict) -> dict | None:
    """https://huggingface.co/datasets/fnlp/AnyInstruct: `chat` [{role: USER | AnyGPT, message, speech, image}], where
    `speech` (speech_conv/metadata.jsonl) and `image` are paths.

    What the user says is heard, not read. The assistant's text is kept without its speech; None if it shows a picture,
    which this model cannot.
    """
    messages, images, audios = [], [], []
    for turn in row["chat"]:
        shown, spoken = several(turn.get("image")), several(turn.get("speech"))
        if turn["role"] == "USER":
            words = [AUDIO] * len(spoken) or [turn["message"]]
            messages.append(message("user", *[IMAGE] * len(shown), *words))
            images, audios = images + shown, audios + spoken
        elif shown:
            return None
        else:
            messages.append(message("assistant", turn["message"]))
    return conversation(row.get("id", ""), messages, images=images, audios=audios)


# ------------------------------------------------------------------------------------------------ function calling


@adapter
def xlam(row: dict) -> dict:
    """https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k (APIGen): `query`, and as JSON `tools`
    [{name, description, parameters: {name: {description, type, default}}}] and `answers` [{name, arguments}].

    The Python types of the parameters ("str, optional", "List[int]") become JSON schema.
    """
    tools = [tool | {"parameters": json_schema(tool["parameters"])} for tool in as_json(row["tools"])]
    calls = [function_call(answer["name"], answer["arguments"]) for answer in as_json(row["answers"])]
    messages = [message("user", row["query"]), message("assistant", calls=calls)]
    return conversation(row["id"], messages, tools=tools)


def json_schema(parameters: dict[str, dict]) -> dict:
    """xLAM's parameters as a JSON schema; what is "optional" or has a default is not required."""
    properties = {}
    for name, parameter in parameters.items():
        known = {key: parameter[key] for key in ("description", "default") if parameter.get(key) not in ("", None)}
        properties[name] = json_type(parameter["type"].removesuffix(", optional")) | known
    required = [name for name, p in parameters.items() if "optional" not in p["type"] and "default" not in p]
    return {"type": "object", "properties": properties, "required": required}


def json_type(python: str) -> dict:
    """The schema of a Python type such as "List[int]"; {}, which is any value, for one that JSON lacks."""
    outer, _, inner = python.partition("[")
    schema = {"type": JSON_TYPES[outer.lower()]} if outer.lower() in JSON_TYPES else {}
    if schema.get("type") == "array" and inner and "," not in inner:
        schema["items"] = json_type(inner.removesuffix("]"))
    return schema


@adapter
def glaive(row: dict) -> dict:
    """https://huggingface.co/datasets/glaiveai/glaive-function-calling-v2: `system`, a text and then functions as JSON,
    and `chat`, turns after "USER:", "ASSISTANT:" (in some rows "A:") and "FUNCTION RESPONSE:". A call is
    `<functioncall> {"name": ..., "arguments": '{...}'}`: JSON in single quotes, so that the whole is not JSON.
    """
    system, tools = glaive_system(row["system"])
    opening, *turns = GLAIVE_TURN.split(row["chat"])
    if opening.strip():
        raise ValueError(f"the chat begins with {opening[:40]!r}; expected USER: or ASSISTANT:")
    messages = [message("system", system)] if system else []
    for speaker, text in zip(turns[::2], turns[1::2], strict=True):
        text, *calls = text.replace("<|endoftext|>", "").split("<functioncall>")
        messages.append(message(GLAIVE_ROLES[speaker], text.strip(), calls=[glaive_call(call) for call in calls]))
    return conversation("", messages, tools=tools)


def glaive_system(text: str) -> tuple[str, list[dict]]:
    """What stands before the first function, and the functions."""
    text = text.removeprefix("SYSTEM:")
    start = text.find("{") if "{" in text else len(text)
    tools, rest = [], text[start:].strip()
    while rest:
        function, end = json.JSONDecoder().raw_decode(rest)
        tools.append(function)
        rest = rest[end:].strip()
    return text[:start].strip(" \n-"), tools


def glaive_call(text: str) -> dict:
    match = GLAIVE_CALL.fullmatch(text.strip())
    if not match:
        raise ValueError(f'malformed call {text.strip()[:80]!r}; expected {{"name": ..., "arguments": ...}}')
    arguments = (match[2] or "{}").strip()
    if arguments[0] == arguments[-1] == "'":
        arguments = arguments[1:-1].replace(r"\'", "'")
    return function_call(match[1], json.loads(arguments))


# ------------------------------------------------------------------------------------------------ what they share


def conversation(id, messages: list[dict], images=(), audios=(), speech=None, tools=(), meta=None) -> dict:
    """A conversation row with all its columns; `tools` are functions {name, description, parameters: JSON schema}.

    Raises ValueError where nobody answers, or media and the parts that show them differ in number.
    """
    if not any(turn["role"] == "assistant" and (turn["content"] or turn["tool_calls"]) for turn in messages):
        raise ValueError("the assistant says nothing, so there is nothing to train on")
    tools = [{"type": "function", "function": function} for function in tools]
    row = {"id": str(id), "messages": messages, "tools": to_json(tools or None), "meta": to_json(meta or {})}
    row |= {"images": [medium(image) for image in images], "audios": [medium(audio) for audio in audios], "videos": []}
    row |= {"speech": medium(speech) if speech else None, "source": None, "license": None}
    check_row(row)
    return row


def message(role: str, *parts: str | dict, calls: list[dict] = ()) -> dict:
    """A message of texts (empty ones left out), IMAGE and AUDIO, and calls."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts if part]
    return {"role": role, "content": content, "tool_calls": to_json(list(calls) or None)}


def pair(id, image, request: str, answer: str) -> dict | None:
    """A picture, a request and its answer; None without an answer."""
    if not answer:
        return None
    return conversation(id, [message("user", IMAGE, request), message("assistant", answer)], images=[image])


def pick(requests: Sequence[str], key) -> str:
    """One of the requests, always the same for the same key."""
    return requests[zlib.crc32(str(key).encode()) % len(requests)]


def function_call(name: str, arguments: dict) -> dict:
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {name!r} are {arguments!r}; expected an object")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def medium(value: bytes | str | dict) -> dict:
    """{"bytes", "path"} of a file's content, of its path or URL, or of such a dict."""
    if isinstance(value, dict):
        return {"bytes": value["bytes"], "path": value["path"]}
    if not isinstance(value, bytes | str):
        raise ValueError(f"a medium is bytes, a path, or a dict of both, got {type(value).__name__}")
    return {"bytes": value, "path": None} if isinstance(value, bytes) else {"bytes": None, "path": value}


def several(value) -> list:
    """A list as it is, None as an empty one, anything else as a list of it."""
    return value if isinstance(value, list) else [] if value is None else [value]


def first(row: dict, *names: str):
    """The first of these fields that holds anything."""
    for name in names:
        if row.get(name):
            return row[name]
    raise ValueError(f"none of the fields {', '.join(names)} holds anything; the row has {', '.join(row)}")


def as_json(value):
    """What JSON text (a field, or a file in a tar) says; an object stays."""
    return json.loads(value) if isinstance(value, str | bytes) else value


def to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


ADAPTERS = {"idl": documents, "pdfa": documents} | {
    read.__name__: read
    for read in (
        *(cauldron, obelics, laion_coco, rendered_text, spoken_trivia, librispeech, ljspeech, libritts),
        *(llava, wizardlm, any_instruct, xlam, glaive),
    )
}
