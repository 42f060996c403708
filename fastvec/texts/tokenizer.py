"""Turns a text into token ids and the span of tokens to pool.

A sequence is `specials + tokens of (prefix + text + suffix) + specials`. The string in parentheses is tokenized once,
as a whole; the token offsets show which tokens belong to the text. Tokenizing the text alone was rejected, because the
tokens at its boundaries can differ. Truncation removes only the text's last tokens: instruction, template and EOS stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fastvec.errors import InputError, ModelError, UsageError
from fastvec.texts.limits import translated_panics
from fastvec.texts.tokenized import IntArray, TokenizedTexts

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# English has 4 to 5 characters per token, so a text cut at 10 per token almost always still fills max_length
CHARACTERS_PER_TOKEN = 10
# cutting a text can change the tokens just before the cut, but not those further from it than this
SEAM_TOKENS = 32


class LoadedTokenizer(Protocol):
    """The interface fastvec uses of a tokenizer, `PlainTokenizer` or one of transformers; absent tokens are None."""

    @property
    def backend_tokenizer(self) -> "Tokenizer": ...
    @property
    def bos_token(self) -> Any: ...
    @property
    def eos_token(self) -> Any: ...
    @property
    def bos_token_id(self) -> Any: ...
    @property
    def eos_token_id(self) -> Any: ...
    @property
    def pad_token_id(self) -> Any: ...
    @property
    def all_special_ids(self) -> list[int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRecipe:
    """How one text becomes one sequence.

    `pooled` selects the pooled tokens. `sequence` means the whole sequence. `text` means the tokens of the text and the
    suffix, without special tokens and prefix. `after_prefix` means the tokens after the prefix as sentence-transformers
    counts it, i.e. by tokenizing the prefix alone.
    """

    prefix: str = ""
    suffix: str = ""
    max_length: int = 512  # tokens of the whole sequence
    text_max_length: int | None = None  # tokens of the text alone
    pooled: Literal["sequence", "text", "after_prefix"] = "sequence"
    strip_end: bool = False  # remove white space at the end of a text


def require_embeddings(tokenizer: LoadedTokenizer, rows: int, name: str) -> None:
    """Raise ModelError if the tokenizer of the model `name` has tokens beyond the model's `rows` embeddings.

    Special tokens are allowed there, e.g. a padding token that was added later, unless they surround every text.
    """
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    special = {token for token in added if added[token].special} - set(chain(*special_tokens(backend)))
    vocabulary = backend.get_vocab(with_added_tokens=True)
    beyond = [token for token, index in vocabulary.items() if index >= rows and index not in special]
    if beyond:
        token = min(beyond, key=vocabulary.__getitem__)
        raise ModelError(
            f"the tokenizer of {name} has {len(beyond)} tokens beyond the model's {rows} embeddings, e.g. {token!r} "
            f"({vocabulary[token]}): use the tokenizer and the model of one checkpoint"
        )


class TextTokenizer:
    """Turns texts into sequences according to a recipe.

    Raises UsageError if the prefix, the suffix and the special tokens leave no room for a text in `max_length`.
    """

    @translated_panics()
    def __init__(self, tokenizer: LoadedTokenizer, recipe: TextRecipe, *, embeddings: int | None = None) -> None:
        """Given the model's number of `embeddings`, a text with a token beyond them raises InputError."""
        self.recipe, self._embeddings = recipe, embeddings
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        # not set anew if it is set: another thread may be encoding with the same backend
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        self._before, self._after = special_tokens(self._backend)
        candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
        self._empty_text_tokens = [next(token for token in candidates if token is not None)]
        prefix, suffix = (
            self._backend.encode(part, add_special_tokens=False).ids for part in (recipe.prefix, recipe.suffix)
        )
        self._prefix_tokens = len(prefix)
        # sentence-transformers mistakes a special token at the end of the prompt for an EOS that its tokenizer appended
        self._prefix_ends_special = not self._after and bool(prefix) and prefix[-1] in tokenizer.all_special_ids
        fixed = len(self._before) + len(prefix) + len(suffix) + len(self._after)
        if fixed >= recipe.max_length:
            raise UsageError(
                f"instruction and special tokens take {fixed} tokens, leaving none for a text within max_length "
                f"{recipe.max_length}: shorten the instruction or raise --max-length"
            )
        self._content = recipe.max_length - len(self._before) - len(self._after)
        self._text_max_length = recipe.text_max_length or recipe.max_length
        # nothing depends on where the text begins: the prefix is pooled, and the whole is what may be too long
        self._is_one_with_its_prefix = recipe.pooled == "sequence" and recipe.text_max_length is None

    @property
    def room(self) -> int:
        """The number of a text's own tokens that surely fit into a sequence."""
        affixes = [part for part in (self.recipe.prefix, self.recipe.suffix) if part]
        taken = sum(len(self._backend.encode(part, add_special_tokens=False)) for part in affixes)
        return max(min(self._content - taken, self._text_max_length) - len(affixes), 1)  # a token may change at a seam

    @translated_panics()
    def counts(self, texts: Sequence[str]) -> IntArray:
        """Return the number of tokens [n] of each of `texts`, tokenized alone."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))

    @translated_panics()
    def offsets(self, texts: Sequence[str]) -> list[IntArray]:
        """Return the begin and end character [t, 2], ascending, of each token of each of `texts`, tokenized alone."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [_offsets(encoding) for encoding in encodings]

    @translated_panics()
    def __call__(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize `texts`, each of them valid UTF-8, on all cores.

        Raises InputError if a text contains a token beyond `embeddings`.
        """
        if self.recipe.strip_end:
            texts = [text.rstrip() for text in texts]
        encodings, begins, ends = self._encode(texts)
        ids, lengths, too_long = self._sequences(encodings, begins, ends)
        found = _flat(ids, lengths, self._spans(lengths, begins), too_long)
        if self._embeddings is not None and len(beyond := found.beyond(self._embeddings)):
            token = self._backend.id_to_token(int(found.sequence(beyond[0]).max()))
            raise InputError(f"a text has the token {token!r}, which the model has no embedding for: remove the text")
        return found

    @translated_panics()
    def with_passages(self, texts: Sequence[str], passages: Sequence[IntArray]) -> TokenizedTexts:
        """Tokenize `texts` whose pooled tokens are those of their `passages`: [p, 2] characters each, at least one.

        A token belongs to the passage in which it ends; a passage has at least one.
        """
        encodings = self._backend.encode_batch(
            [self.recipe.prefix + text + self.recipe.suffix for text in texts], add_special_tokens=False
        )
        own = [self._text_tokens(encoding, len(text)) for text, encoding in zip(texts, encodings, strict=True)]
        begins, ends = np.array(own, dtype=np.int64).reshape(-1, 2).T.copy()
        ids, lengths, too_long = self._sequences(encodings, begins, ends)
        spans = []
        for encoding, length, characters in zip(encodings, lengths, passages, strict=True):
            bounds = np.searchsorted(_offsets(encoding)[:, 1], characters + len(self.recipe.prefix), side="right")
            first = np.minimum(bounds[:, 0] + len(self._before), length - 1)
            spans.append(np.stack([first, np.clip(bounds[:, 1] + len(self._before), first + 1, length)], axis=1))
        owners = np.repeat(np.arange(len(texts)), [len(one) for one in spans])
        return _flat(ids, lengths, np.concatenate([np.zeros((0, 2), dtype=np.int64), *spans]), too_long, owners)

    def _sequences(
        self, encodings: Sequence["Encoding"], begins: IntArray, ends: IntArray
    ) -> tuple[list[list[int]], IntArray, npt.NDArray[np.bool_]]:
        """Return each text's sequence of at least one token, its length, and whether it was cut to `max_length`."""
        ids = [encoding.ids for encoding in encodings]
        sizes = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        room = np.minimum(self._text_max_length, self._content - begins - (sizes - ends))
        too_long = room < ends - begins
        for i in np.flatnonzero(too_long):
            ids[i] = ids[i][: begins[i] + room[i]] + ids[i][ends[i] :]
        if self._before or self._after:
            ids = [self._before + tokens + self._after for tokens in ids]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        for i in np.flatnonzero(lengths == 0):
            ids[i], lengths[i] = self._empty_text_tokens, 1
        return ids, lengths, too_long

    def _encode(self, texts: Sequence[str]) -> tuple[list["Encoding"], IntArray, IntArray]:
        """Return each text's encoding without special tokens, and the begin and end of the text's own tokens in it.

        Long texts are cut before tokenizing. A text is tokenized again, uncut, if its cut version has too few tokens
        to be sure that the cut does not affect the result.
        """
        sure = min(self._content, self._text_max_length) + SEAM_TOKENS
        cut = sure * CHARACTERS_PER_TOKEN
        encodings, begins, ends = self._encode_whole([text[:cut] for text in texts])
        unsure = [i for i, text in enumerate(texts) if len(text) > cut and ends[i] - begins[i] < sure]
        if unsure:
            again, begins[unsure], ends[unsure] = self._encode_whole([texts[i] for i in unsure])
            for i, encoding in zip(unsure, again, strict=True):
                encodings[i] = encoding
        return encodings, begins, ends

    def _encode_whole(self, texts: Sequence[str]) -> tuple[list["Encoding"], IntArray, IntArray]:
        prefix, suffix = self.recipe.prefix, self.recipe.suffix
        if not suffix and (not prefix or self._is_one_with_its_prefix):  # the common cases need no offsets
            encodings = self._backend.encode_batch_fast([prefix + text for text in texts], add_special_tokens=False)
            sizes = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
            return encodings, np.zeros_like(sizes), sizes
        encodings = self._backend.encode_batch([prefix + text + suffix for text in texts], add_special_tokens=False)
        own = [self._text_tokens(encoding, len(text)) for text, encoding in zip(texts, encodings, strict=True)]
        begins, ends = np.array(own, dtype=np.int64).reshape(-1, 2).T.copy()
        return encodings, begins, ends

    def _text_tokens(self, encoding: "Encoding", characters: int) -> tuple[int, int]:
        """Return begin and end of the tokens that end inside the text: `characters` characters after the prefix."""
        begin = _tokens_until(encoding, len(self.recipe.prefix), self._prefix_tokens)
        if not self.recipe.suffix:
            return begin, len(encoding)
        return begin, _tokens_until(encoding, len(self.recipe.prefix) + characters, len(encoding))

    def _spans(self, lengths: IntArray, begins: IntArray) -> IntArray:
        """Return begin and end of the pooled tokens [n, 2] of sequences with `begins` [n] prefix tokens each.

        An empty span is replaced by the whole sequence.
        """
        own = len(self._before) + begins
        firsts, lasts = np.zeros_like(lengths), lengths
        if self.recipe.pooled == "text":
            firsts, lasts = own, lengths - len(self._after)
        elif self.recipe.pooled == "after_prefix":
            counted = len(self._before) + self._prefix_tokens - self._prefix_ends_special
            # a short text can merge into the prefix's last token: by this count, no token of the text would remain
            firsts = np.where(counted < lengths, counted, own)
        some = firsts < lasts
        return np.stack([np.where(some, firsts, 0), np.where(some, lasts, lengths)], axis=1)


def _offsets(encoding: "Encoding") -> IntArray:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    found: IntArray = np.maximum.accumulate(offsets)  # a normalizer can move characters, and offsets back
    return found


def _flat(
    ids: list[list[int]],
    lengths: IntArray,
    spans: IntArray,
    truncated: npt.NDArray[np.bool_],
    owners: IntArray | None = None,
) -> TokenizedTexts:
    return TokenizedTexts(
        ids=np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum())),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        spans=spans,
        truncated=truncated,
        owners=owners,
    )


def _tokens_until(encoding: "Encoding", character: int, guess: int) -> int:
    """Return how many tokens end at or before `character`; the search starts at `guess`."""

    def ends_by(index: int) -> bool:
        span: tuple[int, int] | None = encoding.token_to_chars(index)
        return span is not None and span[1] <= character

    count = min(guess, len(encoding))
    while count > 0 and not ends_by(count - 1):
        count -= 1
    while count < len(encoding) and ends_by(count):
        count += 1
    return count


def special_tokens(backend: "Tokenizer") -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer's template puts before and after every text.

    Raises ModelError if the tokenizer yields no token for any text.
    """
    for probe in chain("a", map(backend.id_to_token, range(backend.get_vocab_size()))):  # "a" may be in no token
        with_specials = backend.encode(probe or "")
        own = [i for i, special in enumerate(with_specials.special_tokens_mask) if not special]
        if own:
            return with_specials.ids[: own[0]], with_specials.ids[own[-1] + 1 :]
    raise ModelError("the tokenizer yields no token for any text: its vocabulary is empty or damaged")


def without_surrogates(text: str) -> str:
    """Return `text` with each lone surrogate, which UTF-8 cannot encode, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can encode `text`: Python decodes invalid bytes in an argument as lone surrogates."""
    return text == without_surrogates(text)
