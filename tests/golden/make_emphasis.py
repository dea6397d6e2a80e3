"""Write emphasis.npz: hidden states of texts with weights, as A1111's web UI makes them, by PyTorch and transformers.

    pip install torch transformers        (made with torch 2.13.0, transformers 4.57.1)
    python -m tests.golden.make_emphasis

Written from the descriptions of it: the wiki's page Features, "Attention/emphasis" (brackets), and the emphasis that is
called "Original" there (states times weights, then each encoder's mean restored). The tokenizer is data/tokenizer."""

from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTokenizer

from tests.golden.emphasis_rule import CASES, CHUNKS, hidden

TOKENIZER = CLIPTokenizer.from_pretrained("data/tokenizer")
BEGIN, END = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def letters(text: str) -> list[tuple[str, float]]:
    """Each letter with its weight: read from left to right, where a bracket closes what it began is multiplied."""
    found: list[list] = []
    begun: dict[str, list[int]] = {"(": [], "[": []}
    place = 0
    while place < len(text):
        letter = text[place]
        if letter == "\\" and text[place + 1] in "()[]\\":
            found.append([text[place + 1], 1.0])
            place += 1
        elif letter in begun:
            begun[letter].append(len(found))
        elif letter == "]":
            multiply(found, begun["["].pop(), 1 / 1.1)
        elif letter == ")":
            multiply(found, begun["("].pop(), 1.1)
        elif letter == ":" and (number := weight_at(text, place)) is not None:
            multiply(found, begun["("].pop(), number)
            place = text.index(")", place)
        else:
            found.append([letter, 1.0])
        place += 1
    return [tuple(pair) for pair in found]


def multiply(found: list[list], begin: int, times: float) -> None:
    for pair in found[begin:]:
        pair[1] *= times


def weight_at(text: str, place: int) -> float | None:
    """The number between a colon and the bracket that closes."""
    inside = text[place + 1 :].partition(")")[0]
    try:
        return float(inside)
    except ValueError:
        return None


def pieces(text: str) -> list[tuple[str, float]]:
    found = []
    for letter, weight in letters(text):
        if found and abs(found[-1][1] - weight) < 1e-9:
            found[-1] = found[-1][0] + letter, weight
        else:
            found.append((letter, weight))
    return found


def chunked(values: list, begin, end, pad) -> list[list]:
    rows = []
    for number in range(CHUNKS):
        part = values[75 * number : 75 * number + 75]
        rows.append([begin, *part, end, *[pad] * (75 - len(part))])
    return rows


def states(text: str) -> dict[str, np.ndarray]:
    ids, weights = [], []
    for piece, weight in pieces(text):
        own = TOKENIZER(piece, add_special_tokens=False).input_ids
        ids += own
        weights += [weight] * len(own)
    found = {"ids": np.array(ids), "weights": np.array(weights)}
    times = torch.tensor(chunked(weights, 1.0, 1.0, 1.0))
    for encoder, pad in enumerate((END, 0)):
        own = np.array(chunked(ids, BEGIN, END, pad))
        z = torch.from_numpy(hidden(own, encoder))
        for row in range(CHUNKS):  # each chunk is a run of the encoder
            mean = z[row].mean()
            z[row] *= times[row].unsqueeze(-1)
            z[row] *= mean / z[row].mean()
        found[f"encoder_{encoder}"] = z.numpy()
    return found


if __name__ == "__main__":
    arrays = {f"{number}_{name}": values for number, text in enumerate(CASES) for name, values in states(text).items()}
    np.savez_compressed(Path(__file__).parent / "emphasis.npz", **arrays)
