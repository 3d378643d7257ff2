"""What the speech decoder says of a text: tokens, as they are written, become segments of characters.

A segment ends by a fixed rule that looks at tokens alone, so that an answer has the same segments whether it is streamed or not.
Its text is written out as it is spoken ("$3.50" as "three dollars and fifty cents") and folded to the characters that the decoder
learnt; each keeps the number of the token it comes from.

    text = SpokenText(tokenizer)
    segments = [segment for token in tokens if (segment := text.add(token))] + text.finish()
"""

import re
import unicodedata
from collections.abc import Iterator
from difflib import SequenceMatcher

from transformers.convert_slow_tokenizer import bytes_to_unicode

try:  # a checkpoint must load without it
    import normt2s
except ImportError:
    normt2s = None

Segment = tuple[list[int], list[int]]  # characters that are spoken together, and the numbers of the tokens that they come from

BLANK, LAUGH, COUGH, BREATH = range(256, 260)  # after the 256 bytes; BLANK stands at both ends of an answer
CHARACTERS = 260
CUE_LENGTH = 8  # characters that a cue counts as: a letter lasts some hundredths of a second, a laugh a whole one
FIRST_TOKENS, TOKENS, LONGEST = 4, 16, 64  # in the first segment, in others, in one that never comes to a word's start
CUES = {"[laugh]": LAUGH, "[cough]": COUGH, "[breath]": BREATH}
CALL = ("<|tool_call|>", "<|/tool_call|>")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MARKS = ".,;:!?"
MARKS_AS_BYTES = tuple(mark.encode() for mark in MARKS)
LEARNT = frozenset("abcdefghijklmnopqrstuvwxyz '-" + MARKS)

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # of byte-level BPE
BYTE = re.compile("<0x[0-9A-F]{2}>")  # SentencePiece's
CUE = re.compile("(" + "|".join(map(re.escape, CUES)) + ")")
ADDRESS = re.compile(r"https?://\S+|www\.\S+|\S+@\S+\.\w+")
SCHEME = re.compile(r"^https?://(?:www\.)?|^www\.")
SIGNS = re.compile(r"[`*_#|<>{}\[\]()\\~^=\"]+")
CODE_NAME = re.compile(r"\b(?=\w*[A-Z])(?=\w*\d|[A-Z]{1,3}\b|[B-DF-HJ-NP-TV-XZ]+\b)[A-Za-z0-9]+\b")


def segment_ends(pieces: list[bytes], following: bytes, is_first: bool) -> bool:
    """Whether tokens, given as bytes, are spoken together before the token that follows them.

    They are after a mark of punctuation, or once they are sixteen (four in the first segment); but only where a word begins, so
    that no word and no number is cut, or if they are 64.
    """
    if not any(pieces):
        return False
    full = len(pieces) >= (FIRST_TOKENS if is_first else TOKENS) or pieces[-1].rstrip().endswith(MARKS_AS_BYTES)
    return (full and following[:1].isspace()) or len(pieces) >= LONGEST


class SpokenText:
    """The text of one answer as it is spoken, token by token. Calls of functions are not, nor what a block of code holds.

    `tokenizer` is a fast one of transformers: byte-level BPE or SentencePiece.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.is_byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
        self.in_call = self.in_code = self.has_begun = False
        self.pieces, self.first = [], 0  # of the segment that is being written, and the number of its first token
        self.last = 0  # number of the last token that is spoken

    def add(self, token: int) -> Segment | None:
        """Takes the answer's next token; gives the segment that ends before it, if one does."""
        piece = self.piece(token)
        segment = self.close() if segment_ends(self.pieces, piece, not self.has_begun) else None
        self.last = self.first + len(self.pieces) if piece else self.last
        self.pieces.append(piece)
        return segment

    def finish(self) -> list[Segment]:
        """What is left once no token follows; a blank ends it. Nothing, if no letter or cue was said."""
        rest = self.close()
        return [*([rest] if rest else []), ([BLANK], [self.last])] if self.has_begun else []

    def close(self) -> Segment | None:
        characters, places = self.characters(self.pieces)
        owners = [self.first + place for place in places]
        self.first, self.pieces = self.first + len(self.pieces), []
        if not characters or not (self.has_begun or any(c > 255 or chr(c).isalpha() for c in characters)):
            return None
        if not self.has_begun:
            characters, owners, self.has_begun = [BLANK, *characters], [owners[0], *owners], True
        return characters, owners

    def written(self, token: int) -> bytes:
        """What a token stands for in the text; nothing for a special one."""
        if (added := self.tokenizer.added_tokens_decoder.get(token)) is not None:
            return b"" if added.special else added.content.encode()
        piece = self.tokenizer.convert_ids_to_tokens(token) or ""  # none: a row of the embedding that no token uses
        if self.is_byte_level:
            return bytes(BYTE_OF[character] for character in piece)
        return bytes([int(piece[3:5], 16)]) if BYTE.fullmatch(piece) else piece.replace("\u2581", " ").encode()

    def piece(self, token: int) -> bytes:
        """What a token, the answer's next, adds to the text that is spoken."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name in CALL:
            self.in_call = name == CALL[0]
        return b"" if self.in_call or name in CALL else self.written(token)

    def characters(self, pieces: list[bytes]) -> tuple[list[int], list[int]]:
        """The bytes and cues that are spoken, and the number of the piece that each comes from."""
        raw = b"".join(pieces).decode(errors="surrogateescape")
        token_of_byte = [i for i, piece in enumerate(pieces) for _ in piece]
        starts = [0]
        for character in raw:
            starts.append(starts[-1] + len(character.encode(errors="surrogateescape")))
        characters, owners = [], []
        for begin, text in self.spoken_parts(raw):
            for character, place in aligned(text, spoken(text)):
                characters.append(character)
                owners.append(token_of_byte[starts[begin + place]])
        return characters, owners

    def spoken_parts(self, raw: str) -> Iterator[tuple[int, str]]:
        """(where it begins, text) of cues and of what lies between them, without blocks of code."""
        begin = 0
        for part in re.split("(```)", raw):
            if part == "```":
                self.in_code = not self.in_code
            elif not self.in_code:
                at = begin
                for piece in CUE.split(part):
                    if piece:
                        yield at, piece
                    at += len(piece)
            begin += len(part)


def spoken(text: str) -> str:
    """A text as one says it; cues stay as they are. Without package `normt2s`, which knows numbers, dates and amounts of money,
    digits are said one by one."""
    if text in CUES:
        return text
    text = ADDRESS.sub(lambda match: spelled_address(match[0]), text)
    text = CODE_NAME.sub(lambda match: " ".join(match[0]), SIGNS.sub(" ", text))
    text = re.sub(r"\s+", " ", text)
    if normt2s is not None:
        return normt2s.normalize(text)
    return re.sub(r"[0-9]", lambda match: f" {DIGITS[int(match[0])]} ", text)


def spelled_address(address: str) -> str:
    """An address of the web or of a mailbox, read aloud: https://example.org/a -> example dot org slash a."""
    ending = address[len(address.rstrip(MARKS)) :]
    address = SCHEME.sub("", address.rstrip(MARKS))
    for sign, name in ((".", "dot"), ("/", "slash"), ("@", "at"), ("-", "dash"), ("_", "underscore")):
        address = address.replace(sign, f" {name} ")
    return " ".join(re.sub(r"[?&=%#+:]", " ", address).split()) + ending


def folded(text: str) -> str:
    """Lower case without accents: the characters the decoder learnt; others are left out."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).lower() if c in LEARNT)


def aligned(raw: str, said: str) -> Iterator[tuple[int, int]]:
    """(character, place in `raw`) of each character of `said`: its own where a word stays, the changed word's where not."""
    if said in CUES:
        yield from [(CUES[said], 0)] * CUE_LENGTH
        return
    before, after = (list(re.finditer(r"\s*\S+|\s+", text)) for text in (raw, said))
    words = ([match[0].strip() for match in matches] for matches in (before, after))
    for _, i, i_end, j, j_end in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for number, match in enumerate(after[j:j_end]):
            place = before[min(i + number, max(i_end - 1, i), len(before) - 1)].start()
            for character in folded(match[0]):
                yield ord(character), place
