"""Makes the demo's tokenizer in CLIP's form (vocab.json, merges.txt): byte-level byte-pair encoding of 1,024 entries.

Ids 0..511 are the 256 bytes, inside a word and at its end; then one id for each merge; the last two ids are the start
and the end of a text, so that the largest id of a row is its end, as in CLIP. Merges are learnt (arXiv 1508.07909,
algorithm 1) from the words of the captions, which become one token each, then from some common English words."""

import json
from collections import Counter
from pathlib import Path

from transformers.models.clip.tokenization_clip import bytes_to_unicode

from demo import pictures

VOCAB_SIZE = 1024
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
COMMON = """the of and to in is it that was for as with his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know get through back much go good new
write our me man too any day same right look think also around another came come work three word must because does
part even place well such here take why things help put years different away again off went old number great tell men
say small every found still between name should home big give air line set own under read last never us left end along
while might next sound below saw something thought both few those always looked show large often together asked house
world going want school important until form food keep children feet land side without boy once animals life enough
took sometimes four head above kind began almost live page got earth need far hand high year mother light parts
country father let night following picture being study second eyes soon times story boys since white days ever paper
hard near sentence better best across during today others however sure means knew try told young miles sun ways thing
whole hear example heard several change answer room sea against top turned learn point city play toward five using
himself usually money seen car morning photo drawing painting face smiling heart hands flag animal bird flower tree
fruit hair person woman skin tone style art sign symbol button clock moon cloud snow fire star sky cat dog fish horse
book box ball wearing holding standing sitting"""


def learn_merges(words: Counter, count: int) -> list[tuple[str, str]]:
    """The `count` merges of the most frequent neighbours, in the order of learning; of equals the first by alphabet.

    `words` counts words in byte symbols, each ending in `</w>`. Raises ValueError when they have no more pairs."""
    bare = {word: word.removesuffix(END_OF_WORD) for word in words}
    split = {word: (*letters[:-1], letters[-1] + END_OF_WORD) for word, letters in bare.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter = Counter()
        for word, symbols in split.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += words[word]
        if not pairs:
            raise ValueError(f"the words give {len(merges)} merges, {count} are wanted: add words to COMMON")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(symbols, best) for word, symbols in split.items()}
    return merges


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def caption_words() -> set[str]:
    """Every word that a caption of demo/pictures.py can hold."""
    choices = (pictures.SIZES, pictures.SHAPE_COLORS, pictures.SHAPES, pictures.POSITIONS, pictures.BACKGROUND_COLORS)
    return {"a", "an", "on", "background"} | {word for group in choices for phrase in group for word in phrase.split()}


def write(folder: Path) -> None:
    """Write vocab.json and merges.txt, as `CLIPTokenizer.from_pretrained(folder)` reads them."""
    letters = list(bytes_to_unicode().values())
    symbols = letters + [letter + END_OF_WORD for letter in letters]
    words = Counter({word + END_OF_WORD: 1000 for word in caption_words()})
    for word in COMMON.split():
        words[word + END_OF_WORD] += 1
    merges = learn_merges(words, VOCAB_SIZE - len(symbols) - 2)
    vocabulary = symbols + [left + right for left, right in merges] + [START, END]
    if len(set(vocabulary)) != VOCAB_SIZE:
        raise ValueError(f"the vocabulary has {len(set(vocabulary))} different entries, {VOCAB_SIZE} are wanted")
    folder.mkdir(parents=True, exist_ok=True)
    ids = {symbol: number for number, symbol in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
