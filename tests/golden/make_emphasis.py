"""Write emphasis.npz and emphasis.json: the pieces of texts with weights, and the hidden states of such texts, by A1111's web
UI's own code: its modules prompt_parser, sd_hijack_clip and sd_emphasis as they stand.

In an environment of its own: pip install torch==2.13.0 transformers==5.24.0 lark==1.3.1; then with a clone of
github.com/AUTOMATIC1111/stable-diffusion-webui (v1.10.1, commit 82a973c)
`python -m tests.golden.make_emphasis path/to/stable-diffusion-webui` in the project's folder.

In place of the rest of A1111 stand its settings as they come, but for comma_padding_backtrack (see BACKTRACK), no embeddings,
and for an encoder the numbers of emphasis_rule.hidden. The tokenizer is data/tokenizer."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from transformers import CLIPTokenizer

from tests.golden.emphasis_rule import CASES, CHUNKS, MOVED, OTHERWISE, TEXTS, hidden

HERE = Path(__file__).parent
BACKTRACK = 20  # A1111's default; 0 does not move what follows a comma near a chunk's end


def module(name: str, **content) -> None:
    sys.modules[f"modules.{name}"] = ModuleType(name)
    vars(sys.modules[f"modules.{name}"]).update(content)


sys.path.insert(0, sys.argv[1])
OPTIONS = SimpleNamespace(
    emphasis="Original", comma_padding_backtrack=0, textual_inversion_add_hashes_to_infotext=False,
    use_old_emphasis_implementation=False,
)  # fmt: skip
NONE = SimpleNamespace(find_embedding_at_position=lambda tokens, position: (None, None))
HIJACK = SimpleNamespace(embedding_db=NONE, extra_generation_params={}, fixes=None)
module("shared", opts=OPTIONS)
module("devices", device="cpu", torch_npu_set_device=lambda: None)
module("sd_hijack", model_hijack=HIJACK)
from modules import prompt_parser, sd_hijack_clip  # noqa: E402


class Encoder(sd_hijack_clip.TextConditionalModel):
    """A1111's, with our numbers for what its transformer would give."""

    def __init__(self, number: int):
        super().__init__()
        self.number, self.tokenizer = number, CLIPTokenizer.from_pretrained("data/tokenizer")
        self.id_start, self.id_end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.id_pad = 0 if number else self.id_end  # of bigG, sd_hijack_open_clip.py; of CLIP-L, sd_hijack_clip.py
        self.comma_token = self.tokenizer.get_vocab()[",</w>"]

    def tokenize(self, texts):
        return self.tokenizer(texts, truncation=False, add_special_tokens=False)["input_ids"]

    def encode_with_transformers(self, tokens):
        return torch.from_numpy(hidden(tokens.numpy(), self.number))


def states(text: str) -> dict[str, np.ndarray]:
    found = {}
    for number in range(2):
        encoder = Encoder(number)
        chunks, _ = encoder.tokenize_line(text)
        chunks += [encoder.empty_chunk()] * (CHUNKS - len(chunks))
        # One after the other, as its forward has them: each has a mean of its own.
        parts = [encoder.process_tokens([chunk.tokens], [chunk.multipliers]) for chunk in chunks]
        found[f"encoder_{number}"] = torch.cat(parts).numpy()
        found["weights"] = np.array([chunk.multipliers for chunk in chunks], np.float32)
        found[f"ids_{number}"] = np.array([chunk.tokens for chunk in chunks], np.int16)
    return found


def main() -> None:
    arrays = {f"{number}_{name}": values for number, text in enumerate(CASES) for name, values in states(text).items()}
    OPTIONS.comma_padding_backtrack = BACKTRACK
    arrays["moved_ids"] = states(MOVED)["ids_0"]
    np.savez_compressed(HERE / "emphasis.npz", **arrays)
    parsed = {text: prompt_parser.parse_prompt_attention(text) for text in (*TEXTS, *OTHERWISE)}
    (HERE / "emphasis.json").write_text(json.dumps(parsed, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
