"""An independent reading of stories260K, and the fixture that the converted model is tested against.

    python scripts/check_stories260k.py FOLDER [--output tests/fixtures/stories260k_logits.npz]

FOLDER holds llama2.c's `stories260K.bin` and `tok512.bin`. Nothing here comes from the conversion, torch or
transformers: a NumPy forward pass (float64, interleaved rotary pairs, a plain loop over positions and heads)
and llama2.c's own encoder (single characters or bytes first, then the best-scoring adjacent pair, again and
again). The fixture holds the token ids of all texts, and the float32 logits of every position of five short
texts and of the last four positions of one text that fills the context.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np

TEXTS = [
    # The first five also have their logits in the fixture.
    "Once upon a time, there was a little girl named Lily.",
    "Tom had a red ball. He liked to play with it",
    '"Can I help you?" asked the big dog.\nSara said, "Yes!"',
    "The cat sat in the sun; it was happy, warm and very sleepy",
    "One day, Tim's mom gave him 3 apples - and a pear…",
    # Token ids only.
    "",
    " ",
    "x",
    " leading space, and  two  inside",
    "trailing space ",
    "a\n\nb\n",
    "tabs\tand\r\nreturns",
    "Mr. Brown paid $5.40 (50% off) & left: <b>bye</b> [ok] {no} ~ ^ _ | \\ /",
    "Curly quotes: “hello” ‘there’ – an en dash — an em dash",
    "café, naïve, señor, Zürich, Ωμέγα, Привет, 日本語, 🙂",
    "▁ is a character of its own here",
    "In the meantime the beadle, whose cocked hat was by far the most remarkable object there, sat down.",
    "THE END. THE END! THE END?",
    "....!!!!????,,,,",
    "aaaaaaaaaaaaaaaaaaaaaaaa thethethethe wasashehe",
    "supercalifragilisticexpialidocious",
    "He said he had had a hat that the hen that hid had had.",
]
WITH_LOGITS = 5
LONG = "The little bird and the big dog went to the park to play. They were very happy. " * 20
LONG_KEPT = 4  # positions at the end of the long text


class Reference:
    """stories260K as llama2.c reads it.

    Args:
        folder: directory with `stories260K.bin` and `tok512.bin`.
    """

    def __init__(self, folder: Path) -> None:
        raw = (folder / "stories260K.bin").read_bytes()
        self.dim, self.hidden, self.layers, self.heads, self.kv_heads, self.vocab, self.seq = struct.unpack(
            "<7i", raw[:28]
        )
        numbers = np.frombuffer(raw[28:], dtype="<f4").astype(np.float64)
        taken = 0

        def take(*shape: int) -> np.ndarray:
            nonlocal taken
            size = int(np.prod(shape))
            taken += size
            return numbers[taken - size : taken].reshape(shape)

        size, kv_size = self.dim, self.dim // self.heads * self.kv_heads
        self.embedding = take(self.vocab, self.dim)
        self.rms_att = take(self.layers, self.dim)
        self.wq = take(self.layers, size, self.dim)
        self.wk = take(self.layers, kv_size, self.dim)
        self.wv = take(self.layers, kv_size, self.dim)
        self.wo = take(self.layers, self.dim, size)
        self.rms_ffn = take(self.layers, self.dim)
        self.w1 = take(self.layers, self.hidden, self.dim)
        self.w2 = take(self.layers, self.dim, self.hidden)
        self.w3 = take(self.layers, self.hidden, self.dim)
        self.rms_final = take(self.dim)

        vocabulary, at = (folder / "tok512.bin").read_bytes(), 4
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        for _ in range(self.vocab):
            score, length = struct.unpack("<fi", vocabulary[at : at + 8])
            self.pieces.append(vocabulary[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, `<s>` (1) first; llama2.c's `encode` with bos on and eos off."""
        tokens = [1]
        if text:
            tokens.append(self.ids[b" "])
        for character in text:
            piece = character.encode()
            tokens += [self.ids[piece]] if piece in self.ids else [byte + 3 for byte in piece]
        while True:
            best_score, best_at, best_id = -1e10, -1, -1
            for i in range(1, len(tokens) - 1):
                merged = self.ids.get(self.pieces[tokens[i]] + self.pieces[tokens[i + 1]], -1)
                if merged >= 0 and self.scores[merged] > best_score:
                    best_score, best_at, best_id = self.scores[merged], i, merged
            if best_at < 0:
                return tokens
            tokens[best_at : best_at + 2] = [best_id]

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Next-token logits of one sequence: (T,) ids → (T, vocab) float32. Token by token with a cache."""
        head, group = self.dim // self.heads, self.heads // self.kv_heads
        keys = np.zeros((self.layers, len(tokens), self.kv_heads, head))
        values = np.zeros_like(keys)
        out = np.zeros((len(tokens), self.vocab), dtype=np.float32)
        for t, token in enumerate(tokens):
            x = self.embedding[token]
            for i in range(self.layers):
                y = rms_norm(x, self.rms_att[i])
                query = (self.wq[i] @ y).reshape(self.heads, head)
                keys[i, t] = (self.wk[i] @ y).reshape(self.kv_heads, head)
                values[i, t] = (self.wv[i] @ y).reshape(self.kv_heads, head)
                rotate(query, t)
                rotate(keys[i, t], t)
                mixed = np.zeros((self.heads, head))
                for h in range(self.heads):
                    scores = keys[i, : t + 1, h // group] @ query[h] / np.sqrt(head)
                    weights = np.exp(scores - scores.max())
                    mixed[h] = weights / weights.sum() @ values[i, : t + 1, h // group]
                x = x + self.wo[i] @ mixed.reshape(-1)
                y = rms_norm(x, self.rms_ffn[i])
                gate = self.w1[i] @ y
                x = x + self.w2[i] @ (gate / (1 + np.exp(-gate)) * (self.w3[i] @ y))
            out[t] = self.embedding @ rms_norm(x, self.rms_final)
        return out


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt(np.mean(x * x) + 1e-5)


def rotate(vectors: np.ndarray, position: int) -> None:
    """Rotate neighbouring pairs (0, 1), (2, 3), … of each row of (heads, head) in place."""
    head = vectors.shape[1]
    for j in range(0, head, 2):
        angle = position / 10000.0 ** (j / head)
        a, b = vectors[:, j].copy(), vectors[:, j + 1].copy()
        vectors[:, j] = a * np.cos(angle) - b * np.sin(angle)
        vectors[:, j + 1] = a * np.sin(angle) + b * np.cos(angle)


def build(folder: Path) -> dict[str, np.ndarray]:
    """The fixture's arrays.

    `texts` (JSON bytes: a list of strings); `ids_i` int16 for text i; `logits_i` float32 (T, vocab) for the
    first five; `long_ids` and `long_logits` for the last `LONG_KEPT` positions of a text of the context's
    length.
    """
    reference = Reference(folder)
    arrays = {"texts": np.frombuffer(json.dumps(TEXTS).encode(), dtype=np.uint8)}
    for i, text in enumerate(TEXTS):
        ids = reference.encode(text)
        arrays[f"ids_{i}"] = np.array(ids, dtype=np.int16)
        if i < WITH_LOGITS:
            arrays[f"logits_{i}"] = reference.logits(ids)
    long_ids = reference.encode(LONG)[: reference.seq]
    arrays["long_ids"] = np.array(long_ids, dtype=np.int16)
    arrays["long_logits"] = reference.logits(long_ids)[-LONG_KEPT:]
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with stories260K.bin and tok512.bin")
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--output", type=Path, default=root / "tests/fixtures/stories260k_logits.npz")
    args = parser.parse_args()
    arrays = build(args.folder)
    np.savez_compressed(args.output, **arrays)
    lengths = [len(arrays[f"ids_{i}"]) for i in range(len(TEXTS))]
    print(f"{args.output.name}: {args.output.stat().st_size:,} bytes; tokens per text {lengths}")


if __name__ == "__main__":
    main()
