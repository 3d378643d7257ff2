"""llama.cpp's C interface, as far as exports are checked through it: text to ids, ids to logits, pictures and sound to embeddings.

The library is the one inside the `xllamacpp` wheel, bound by ctypes. Structures are passed by value, so they must be laid out as in
that very version (include/llama.h, tools/mtmd/mtmd.h): `library` compares its defaults with what they must be, and refuses
another version rather than read garbage.

    with Runtime(Path("eagle-tiny-f32.gguf"), Path("mmproj-eagle-tiny-f32.gguf")) as runtime:
        logits = runtime.logits(runtime.tokenize("<|user|>\\nhello<|end|>\\n"))
"""

import ctypes
import functools
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint32,
    c_void_p,
)
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xllamacpp

from export.gguf_prompt import MARKER

CONTEXT = 4096  # tokens; beyond it llama.cpp takes a longrope's long factors, whatever the length of the text
ERROR = 4  # of ggml_log_level
F32 = 0  # of ggml_type


def fields(names: str, type) -> list[tuple]:
    return [(name, type) for name in names.split()]


class ModelParams(Structure):
    _fields_ = [
        *fields("devices tensor_buft_overrides", c_void_p),
        *fields("n_gpu_layers split_mode load_mode lazy_mode main_gpu", c_int32),
        *fields("tensor_split progress_callback progress_callback_user_data kv_overrides", c_void_p),
        *fields("vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp", c_bool),
    ]
    defaults = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True}


class ContextParams(Structure):
    _fields_ = [
        *fields("n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq", c_uint32),
        *fields("n_threads n_threads_batch ctx_type", c_int32),
        *fields("rope_scaling_type pooling_type attention_type flash_attn_type", c_int32),
        *fields("rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *fields("cb_eval cb_eval_user_data", c_void_p),
        *fields("type_k type_v", c_int32),
        *fields("abort_callback abort_callback_data unnamed", c_void_p),  # the last is newer than the header that we know
        *fields("embeddings offload_kqv no_perf op_offload swa_full kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]
    defaults = (
        {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "type_k": 1, "type_v": 1}
        | {"n_threads": 4, "n_threads_batch": 4}
        | dict.fromkeys(["rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type"], -1)
        | dict.fromkeys(["yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "defrag_thold"], -1.0)
        | dict.fromkeys(["offload_kqv", "no_perf", "op_offload", "swa_full"], True)
    )


class MediaParams(Structure):
    _fields_ = [
        ("use_gpu", c_bool),
        ("device", c_void_p),
        ("print_timings", c_bool),
        ("n_threads", c_int32),
        *fields("image_marker media_marker", c_char_p),
        ("flash_attn_type", c_int32),
        ("warmup", c_bool),
        *fields("image_min_tokens image_max_tokens", c_int32),
        *fields("cb_eval cb_eval_user_data", c_void_p),
        ("batch_max_tokens", c_int32),
        *fields("progress_callback progress_callback_user_data", c_void_p),
    ]
    defaults = (
        {"use_gpu": True, "print_timings": True, "n_threads": 4, "media_marker": MARKER.encode(), "flash_attn_type": -1}
        | {"warmup": True, "image_min_tokens": -1, "image_max_tokens": -1, "batch_max_tokens": 1024}
    )


class Batch(Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        *fields("embd pos n_seq_id seq_id", c_void_p),  # null: the tokens, at 0, 1, 2 and so on of sequence 0
        ("logits", POINTER(c_int8)),
    ]


class InputText(Structure):
    _fields_ = [("text", c_char_p), ("length", c_size_t), ("add_special", c_bool), ("parse_special", c_bool)]


PARAMETERS = {
    "llama_model_default_params": ModelParams,
    "llama_context_default_params": ContextParams,
    "mtmd_context_params_default": MediaParams,
}
FUNCTIONS = {
    "llama_model_load_from_file": (c_void_p, c_char_p, ModelParams),
    "llama_model_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_n_embd": (c_int32, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_tokenize": (c_int32, c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    "llama_init_from_model": (c_void_p, c_void_p, ContextParams),
    "llama_free": (None, c_void_p),
    "llama_decode": (c_int32, c_void_p, Batch),
    "llama_get_logits_ith": (POINTER(c_float), c_void_p, c_int32),
    "mtmd_init_from_file": (c_void_p, c_char_p, c_void_p, MediaParams),
    "mtmd_free": (None, c_void_p),
    "mtmd_bitmap_init": (c_void_p, c_uint32, c_uint32, c_void_p),
    "mtmd_bitmap_init_from_audio": (c_void_p, c_size_t, c_void_p),
    "mtmd_bitmap_free": (None, c_void_p),
    "mtmd_input_chunks_init": (c_void_p,),
    "mtmd_input_chunks_free": (None, c_void_p),
    "mtmd_input_chunks_size": (c_size_t, c_void_p),
    "mtmd_input_chunks_get": (c_void_p, c_void_p, c_size_t),
    "mtmd_input_chunk_get_type": (c_int, c_void_p),
    "mtmd_input_chunk_get_n_tokens": (c_size_t, c_void_p),
    "mtmd_input_chunk_get_tokens_text": (POINTER(c_int32), c_void_p, POINTER(c_size_t)),
    "mtmd_tokenize": (c_int32, c_void_p, c_void_p, POINTER(InputText), POINTER(c_void_p), c_size_t),
    "mtmd_encode_chunk": (c_int32, c_void_p, c_void_p),
    "mtmd_get_output_embd": (POINTER(c_float), c_void_p),
}
said: list[str] = []  # what llama.cpp last reported as errors


@ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
def keep_errors(level: int, text: bytes, _) -> None:
    if level == ERROR:
        said.append(text.decode(errors="replace").strip())


@functools.cache
def library() -> ctypes.CDLL:
    """The library, its functions declared, quiet but for what `said` keeps. Raises ImportError for another version of it."""
    loaded = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    for name, (result, *arguments) in FUNCTIONS.items():
        getattr(loaded, name).restype, getattr(loaded, name).argtypes = result, arguments
    for name, parameters in PARAMETERS.items():
        check_defaults(getattr(loaded, name), name, parameters)
    loaded.llama_log_set(keep_errors, None)
    loaded.mtmd_log_set(keep_errors, None)
    loaded.llama_backend_init()
    return loaded


def check_defaults(function, name: str, parameters: type[Structure]) -> None:
    """Compares the structure that the library fills in with what it must be, field by field: one that moved has another value."""
    function.restype, function.argtypes = parameters, []
    given, wanted = function(), parameters(**parameters.defaults)
    for field, _ in parameters._fields_:
        if getattr(given, field) != getattr(wanted, field):
            raise ImportError(
                f"xllamacpp {version('xllamacpp')}: {name}() has {field} = {getattr(given, field)!r}, which is "
                f"{getattr(wanted, field)!r} in the version that export/llama_cpp.py describes; install the one in requirements.txt"
            )


class Runtime:
    """A language model's file in llama.cpp on the CPU, and with `mmproj` the towers and projectors; or its vocabulary alone.

    Raises ValueError for a file that llama.cpp does not load. Keys and values are cached in float32 and flash attention is off, so
    that a comparison sees nothing but the weights' format.
    """

    def __init__(self, model: Path, mmproj: Path | None = None, threads: int = 1, vocab_only: bool = False):
        self.lib, self.media = library(), None
        parameters = self.lib.llama_model_default_params()
        parameters.n_gpu_layers, parameters.vocab_only = 0, vocab_only
        self.model = self.lib.llama_model_load_from_file(bytes(model), parameters)
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {model}: {reason()}")
        self.vocabulary = self.lib.llama_model_get_vocab(self.model)
        self.threads = threads
        if mmproj is not None:
            parameters = self.lib.mtmd_context_params_default()
            parameters.use_gpu = parameters.warmup = parameters.print_timings = False
            parameters.flash_attn_type, parameters.n_threads = 0, threads
            self.media = self.lib.mtmd_init_from_file(bytes(mmproj), self.model, parameters)
            if not self.media:
                self.close()
                raise ValueError(f"llama.cpp cannot load {mmproj} beside {model}: {reason()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        if self.media:
            self.lib.mtmd_free(self.media)
        self.lib.llama_model_free(self.model)
        self.model = self.media = None

    def tokenize(self, text: str, parse_special: bool = True) -> list[int]:
        """Ids of a text; without `parse_special` the names of control tokens in it are plain text."""
        encoded = text.encode()
        ids = (c_int32 * (2 * len(encoded) + 16))()
        count = self.lib.llama_tokenize(self.vocabulary, encoded, len(encoded), ids, len(ids), False, parse_special)
        return ids[:count]

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits after each of at most CONTEXT tokens: float32 (tokens, vocab_size)."""
        parameters = self.lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_outputs_max = parameters.n_outputs_max_per_seq = CONTEXT
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.type_k = parameters.type_v = F32
        parameters.flash_attn_type = 0
        context = self.lib.llama_init_from_model(self.model, parameters)
        if not context:
            raise ValueError(f"llama.cpp cannot run the model: {reason()}")
        batch = Batch(len(ids), (c_int32 * len(ids))(*ids), logits=(c_int8 * len(ids))(*[1] * len(ids)))
        try:
            if code := self.lib.llama_decode(context, batch):
                raise ValueError(f"llama.cpp cannot read {len(ids)} tokens (llama_decode returns {code}): {reason()}")
            size = self.lib.llama_vocab_n_tokens(self.vocabulary)
            rows = [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(context, i), (size,)) for i in range(len(ids))]
            return np.stack(rows)
        finally:
            self.lib.llama_free(context)

    def encode(self, prompt: str, media: list[np.ndarray]) -> list[list[int] | np.ndarray]:
        """A prompt in which each MARKER stands for one of `media`, in the pieces that llama.cpp makes of it.

        Args:
            media: pictures, uint8 (height, width, 3), and sounds, float32 (samples,) at 16 kHz.

        Returns ids for each stretch of text, and float32 (tokens, width) embeddings for each crop or window of sound.
        """
        if self.media is None:
            raise ValueError("the runtime was opened without an mmproj file, so it encodes no pictures and sounds")
        bitmaps = (c_void_p * len(media))(*map(self.bitmap, media))
        chunks = self.lib.mtmd_input_chunks_init()
        text = InputText(prompt.encode(), len(prompt.encode()), False, True)
        try:
            if code := self.lib.mtmd_tokenize(self.media, chunks, byref(text), bitmaps, len(media)):
                raise ValueError(f"llama.cpp cannot read the prompt (mtmd_tokenize returns {code}): {reason()}")
            count = self.lib.mtmd_input_chunks_size(chunks)
            return [self.piece(self.lib.mtmd_input_chunks_get(chunks, i)) for i in range(count)]
        finally:
            self.lib.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                self.lib.mtmd_bitmap_free(bitmap)

    def bitmap(self, medium: np.ndarray) -> int:
        if medium.dtype == np.uint8:
            medium = np.ascontiguousarray(medium)
            return self.lib.mtmd_bitmap_init(medium.shape[1], medium.shape[0], medium.ctypes.data)
        medium = np.ascontiguousarray(medium, np.float32)
        return self.lib.mtmd_bitmap_init_from_audio(medium.size, medium.ctypes.data)

    def piece(self, chunk: int) -> list[int] | np.ndarray:
        if self.lib.mtmd_input_chunk_get_type(chunk) == 0:  # text
            count = c_size_t()
            ids = self.lib.mtmd_input_chunk_get_tokens_text(chunk, byref(count))
            return ids[: count.value]
        if code := self.lib.mtmd_encode_chunk(self.media, chunk):
            raise ValueError(f"llama.cpp cannot encode a picture or sound (mtmd_encode_chunk returns {code}): {reason()}")
        shape = self.lib.mtmd_input_chunk_get_n_tokens(chunk), self.lib.llama_model_n_embd(self.model)
        return np.ctypeslib.as_array(self.lib.mtmd_get_output_embd(self.media), shape).copy()


def reason() -> str:
    """What llama.cpp said last, and forgets here."""
    text = "; ".join(said[-3:]) or "it says nothing"
    said.clear()
    return text
