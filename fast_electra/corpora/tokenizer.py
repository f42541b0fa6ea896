"""One tokenizer for a corpus, its models and their exports: trained here, or an existing language model's own.

A trained one is SentencePiece's (Kudo and Richardson, EMNLP 2018), cased and without any normalisation, with a piece
for each byte, so that every text comes back exactly from its tokens: emoji and rare scripts cost several tokens, never
[UNK]. It is saved as a stock transformers fast tokenizer, which `AutoTokenizer` loads without SentencePiece installed.

SentencePiece works on lines; a text is its lines, each encoded as SentencePiece encodes it, joined by the piece of the
newline byte. So the first word of a paragraph is the same token as inside of one. The one text that does not come back
is U+2581, SentencePiece's own sign for a space, which becomes a space.

Training reads an even sample of the text (see `train`): a unigram vocabulary of 16,000 from 10 million characters of
English Wikipedia gives 4.38 characters a token, from 33 million 4.43, from 100 million 4.45; but it takes 10 s and
0.27 GiB, instead of 36 s and 0.72 GiB or 150 s and 1.9 GiB.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import sentencepiece
import xxhash
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # their ids are 0 to 4
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # ids 5 to 260
SAMPLE_CHARACTERS = 10_000_000
TOKENIZER_FOLDER = "tokenizer"  # within a corpus's folder

_RESERVED = len(SPECIAL_TOKENS) + len(BYTE_PIECES)
_SPACE = "\u2581"
# A line for SentencePiece, which drops longer ones: up to 1,000 characters, cut where a word ends if one does.
_SENTENCE = re.compile(r"\S.{0,998}\S(?!\S)|\S{1,1000}")
_TRAINER_THREADS = 8  # fixed: SentencePiece's sums, and so its pieces, depend on the number of threads
# Texts in which tokenizers differ: case, accents, compatibility forms, spaces, digits, scripts, a special token's name.
_PROBES = (
    "The quick brown fox doesn't jump over 3,141.59 lazy dogs; Replaced-Token Detection, e.g. (McDONALD'S).",
    "Stra\u00dfe na\u00efve nai\u0308ve \ufb01ne \u2167 \uff21\u0130\u0131 \u201cquoted\u201d \u2014 x\u00b2",
    "  two  spaces,\ttab\r\nnew line \u00a0 end ",
    "\u4f60\u597d \u043c\u0438\u0440 \u0645\u0631\u062d\u0628\u0627 \u0939\u093f \U0001f600 [MASK] <mask> </s>",
)


def train(
    documents: Iterable[str],
    vocab_size: int,
    output: str | Path,
    *,
    kind: Literal["unigram", "bpe"] = "unigram",
    max_characters: int = SAMPLE_CHARACTERS,
) -> PreTrainedTokenizerFast:
    """Train a SentencePiece tokenizer of exactly `vocab_size` entries and save it in the folder `output`.

    `documents` is read once and in whole, of which an even sample is kept: every k-th line (longer ones in pieces of
    1,000 characters), k doubling whenever the sample passes `max_characters`, so that memory is bounded and between
    half and all of `max_characters` are used. The result depends on the documents alone: no randomness, no clock.

    Raises ValueError for an unknown kind, documents without text, and a `vocab_size` that is too small for the
    characters of the text or too large for its words, naming the nearest possible one.
    """
    if kind not in ("unigram", "bpe"):
        raise ValueError(f"unknown kind of tokenizer {kind!r}: choose 'unigram' or 'bpe'")
    sample = _even_sample(documents, max_characters)
    if not sample:
        raise ValueError("no text to train a tokenizer on: every document is empty; give inputs that hold text")
    processor = _train_sentencepiece(sample, vocab_size, kind)
    tokenizer = _wrap(processor, kind)
    tokenizer.save_pretrained(output)
    return tokenizer


def load(path_or_name: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an existing masked language model from a folder, or from the hub by its name.

    Of a corpus's folder it is the one that the corpus was made with. Raises ValueError if there is none, if it lacks a
    special token that masking and packing need, or if it has no fast version. Code that comes with a model is never
    run.
    """
    of_corpus, own = Path(path_or_name, TOKENIZER_FOLDER), Path(path_or_name, "tokenizer_config.json")
    place = of_corpus if of_corpus.is_dir() and not own.exists() else path_or_name
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(place), trust_remote_code=False)
        tokenizer(_PROBES[0], verbose=False)  # damage in a setting shows on first use
    except Exception as error:  # transformers raises whatever the tokenizer's files provoke
        raise ValueError(
            f"no tokenizer could be loaded from {str(path_or_name)!r} ({type(error).__name__}: {error!s:.500}). Give "
            "a folder written by save_pretrained or a name on the hub; tokenizers that need their own code are not "
            "supported"
        ) from error
    require_special_tokens(tokenizer, path_or_name)
    return tokenizer


def require_special_tokens(tokenizer: PreTrainedTokenizerBase, name: str | Path = "this tokenizer") -> None:
    """Raise ValueError unless `tokenizer` is a fast one with words and with mask, cls, sep, pad and unk tokens."""
    missing = [role for role in ("mask", "cls", "sep", "pad", "unk") if getattr(tokenizer, f"{role}_token_id") is None]
    if missing:
        raise ValueError(
            f"{str(name)!r} has no {', no '.join(f'{role}_token' for role in missing)}: take the tokenizer of a masked "
            "language model (BERT, RoBERTa, ELECTRA, DeBERTa, ModernBERT), or train one (vocab_size instead)"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{str(name)!r} has no fast version (tokenizer.json): convert it with transformers, or train one"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"{str(name)!r} has special tokens only ({len(tokenizer)}): its vocabulary file is missing")


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what a tokenizer does: its vocabulary, its special tokens' ids, what it makes of texts where others differ.

    Equal for copies saved by different library versions, unlike a hash of the files; padding, truncation and lengths
    do not enter. 32 hexadecimal digits (xxh3_128).
    """
    roles = ("pad", "unk", "cls", "sep", "mask")
    behaviour = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": [getattr(tokenizer, f"{role}_token_id") for role in roles],
        "probes": [tokenizer(probe, verbose=False)["input_ids"] for probe in _PROBES],
        "pair": tokenizer("one", "two", verbose=False)["input_ids"],
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(behaviour).encode())


def _even_sample(documents: Iterable[str], max_characters: int) -> list[str]:
    kept: list[str] = []
    size, stride = 0, 1
    for number, sentence in enumerate(_sentences(documents)):
        if number % stride == 0:
            kept.append(sentence)
            size += len(sentence)
            if size > max_characters:
                kept, stride = kept[::2], stride * 2
                size = sum(map(len, kept))
    return kept


def _sentences(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        for line in document.split("\n"):
            yield from _SENTENCE.findall(line)


def _train_sentencepiece(sentences: list[str], vocab_size: int, kind: str) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=max(vocab_size, _RESERVED),  # of fewer it tells no least number
            model_type=kind,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            # With these in the vocabulary, the name of a special piece in a text is never cheaper than its characters.
            required_chars="".join(sorted(set("".join(SPECIAL_TOKENS + BYTE_PIECES)))),
            max_sentence_length=8192,  # bytes; our sentences have at most 4 x 1,000
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=pad,
            unk_piece=unk,
            bos_piece=cls,
            eos_piece=sep,
            control_symbols=[mask],
            num_threads=_TRAINER_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size) from error
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _explained(error: RuntimeError, vocab_size: int) -> Exception:
    """SentencePiece's refusal of a vocabulary size as a ValueError, any other error as it is."""
    if largest := re.search(r"Vocabulary size too high .* value <= (\d+)", str(error)):
        return ValueError(
            f"vocab_size={vocab_size} is too large: this text has pieces for at most {largest[1]}. "
            f"Set vocab_size to {largest[1]} or less, or give more text"
        )
    if smallest := re.search(r"Vocabulary size is smaller than required_chars. \d+ vs (\d+)", str(error)):
        return ValueError(
            f"vocab_size={vocab_size} is too small: the special tokens, the bytes and the characters of this text "
            f"alone are {smallest[1]}. Set vocab_size to {smallest[1]} or more"
        )
    return error


def _wrap(processor: sentencepiece.SentencePieceProcessor, kind: str) -> PreTrainedTokenizerFast:
    """The same pieces and the same way of choosing them in the `tokenizers` library, as transformers stores it."""
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    backend = Tokenizer(_unigram(processor, pieces) if kind == "unigram" else _bpe(pieces))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(_SPACE),
            normalizers.Replace(Regex(r"\n(?=[^\n])"), f"\n{_SPACE}"),  # a blank line is its newline alone
            normalizers.Replace(" ", _SPACE),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")  # no piece spans two words
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, pieces.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        # The blanks beside a mask are the masked word's: what follows it is a word's beginning in any case.
        mask_token=AddedToken(mask, lstrip=True, rstrip=True, normalized=False, special=True),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _unigram(processor: sentencepiece.SentencePieceProcessor, pieces: list[str]) -> Unigram:
    """The pieces with their log probabilities, the special and byte pieces' so low that their names match no text.

    SentencePiece keeps such names out of its search; `tokenizers` does not, and their stored score of 0 would win.
    """
    learned = {index: processor.get_score(index) for index in range(_RESERVED, len(pieces))}
    lowest = min(learned.values()) - 1000.0
    scores = [(piece, learned.get(index, lowest)) for index, piece in enumerate(pieces)]
    return Unigram(scores, unk_id=1, byte_fallback=True)


def _bpe(pieces: list[str]) -> BPE:
    """The pieces with the merges behind them: learned pieces stand in the order in which they were merged."""
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for piece in pieces[_RESERVED:]:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges.extend(sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]])))
    return BPE(vocabulary, merges, unk_token=SPECIAL_TOKENS[1], byte_fallback=True, fuse_unk=True)
