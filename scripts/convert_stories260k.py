"""Convert a llama2.c checkpoint and vocabulary into a Hugging Face Llama directory.

    python scripts/convert_stories260k.py FOLDER [--output lightning_rlhf/assets/stories260k]

FOLDER holds `stories260K.bin` (header of 7 int32: dim, hidden, layers, heads, kv heads, vocab, seq; then
float32 tensors) and `tok512.bin` (int32 longest piece; per token float32 score, int32 length, bytes). Source
of both files and of their formats: https://github.com/karpathy/llama2.c (MIT).

1. Rotary pairs are interleaved in llama2.c, (0, 1), (2, 3), …, and half-split in transformers, (i, i +
   head/2): the rows of wq and wk are permuted within each head; the scores q·k are unchanged.
2. The two RoPE tables after the weights are skipped, transformers computes them (theta 10,000).
3. The head is the embedding (a positive vocabulary size says so) and is stored once.
4. The tokenizer is a byte-fallback BPE over real spaces (no "▁"), so every text, "▁" included, round-trips.
   Its merges are all splits of a piece into two pieces, best score first, which is what llama2.c's greedy
   merging does. Pieces 1 and 2, written with line breaks around them in the file, are called `<s>` and
   `</s>`.
5. `<unk>` is the padding token: byte fallback never produces it, so padding never means the end of a text.
"""

import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MODEL, VOCABULARY = "stories260K.bin", "tok512.bin"
UNK, BOS, EOS = 0, 1, 2

LICENSE = """\
The weights and the vocabulary in this directory are converted from stories260K, published with
https://github.com/karpathy/llama2.c under the following licence.

MIT License

Copyright (c) 2023 Andrej

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

README = """\
# stories260k

A pretrained language model of 0.26 million parameters that writes tiny children's stories: stories260K of
[karpathy/llama2.c](https://github.com/karpathy/llama2.c) (MIT, see LICENSE; trained there on TinyStories),
converted to the Hugging Face Llama format by `scripts/convert_stories260k.py` and checked against an
independent NumPy forward pass by `scripts/check_stories260k.py`. Width 64, 5 layers, 8 heads (4 key-value),
512 tokens, context 512, float32, tied embeddings. The tokenizer puts `<s>` (id 1) before a text but no `</s>`
(id 2) after it, and pads with `<unk>` (id 0). The model ends a story with `<s>`, not with `</s>`: of 32
samples of 480 tokens at temperature 0.7, 30 contained `<s>` and none `</s>`, whose probability stayed below
1e-6. A text gets one space in front before it is cut into tokens, and `decode` takes one leading space off
again, so that `decode(ids, skip_special_tokens=True)` gives back every text without a special token in it.
Decoding a *continuation* by itself therefore also loses its leading space: where that matters, decode prompt
and continuation together and cut the prompt's text off.
"""


def read_model(path: Path) -> tuple[LlamaConfig, dict[str, torch.Tensor]]:
    """Read a llama2.c checkpoint as a Llama config and a transformers state dict (float32, head tied).

    Raises:
        ValueError: the head is untied, or the file is longer or shorter than its header says.
    """
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, seq = struct.unpack_from("<7i", data)
    if vocab < 0:
        raise ValueError(f"{path}: vocabulary size {vocab}: found an untied head, expected a tied one")
    head = dim // heads
    shapes = {
        "embed": (vocab, dim),
        "input_layernorm": (layers, dim),
        "q_proj": (layers, heads * head, dim),
        "k_proj": (layers, kv_heads * head, dim),
        "v_proj": (layers, kv_heads * head, dim),
        "o_proj": (layers, dim, heads * head),
        "post_attention_layernorm": (layers, dim),
        "gate_proj": (layers, hidden, dim),
        "down_proj": (layers, dim, hidden),
        "up_proj": (layers, hidden, dim),
        "norm": (dim,),
    }
    tables = 2 * seq * (head // 2)
    expected = 28 + 4 * (sum(math.prod(shape) for shape in shapes.values()) + tables)
    if len(data) != expected:
        raise ValueError(f"{path}: found {len(data)} bytes, expected {expected} from its header")
    tensors, offset = {}, 28
    for name, shape in shapes.items():
        count = math.prod(shape)
        tensors[name] = torch.from_numpy(np.frombuffer(data, "<f4", count, offset).reshape(shape).copy())
        offset += 4 * count

    state = {"model.embed_tokens.weight": tensors["embed"], "model.norm.weight": tensors["norm"]}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{norm}.weight"] = tensors[norm][i]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = tensors[name][i]
            weight = half_split(weight, head) if name in ("q_proj", "k_proj") else weight
            state[f"{prefix}self_attn.{name}.weight"] = weight
        for name in ("gate_proj", "up_proj", "down_proj"):
            state[f"{prefix}mlp.{name}.weight"] = tensors[name][i]
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=seq,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=UNK,
    )
    return config, {name: tensor.contiguous() for name, tensor in state.items()}


def half_split(weight: torch.Tensor, head: int) -> torch.Tensor:
    """Reorder the rows of a (heads · head, dim) projection from interleaved to half-split rotary pairs."""
    rows = weight.view(-1, head // 2, 2, weight.shape[1])  # (heads, pair, member of the pair, dim)
    return rows.transpose(1, 2).reshape(weight.shape)


def read_vocabulary(path: Path, size: int) -> list[tuple[str, float]]:
    """Read `size` (piece, score) pairs of a llama2.c vocabulary.

    Raises:
        ValueError: the file does not hold exactly `size` pieces.
    """
    data, offset, pieces = path.read_bytes(), 4, []
    while offset < len(data):
        score, length = struct.unpack_from("<fi", data, offset)
        pieces.append((data[offset + 8 : offset + 8 + length].decode(), score))
        offset += 8 + length
    if len(pieces) != size or offset != len(data):
        raise ValueError(f"{path}: found {len(pieces)} pieces, expected {size}")
    return pieces


def build_tokenizer(pieces: list[tuple[str, float]], max_length: int) -> PreTrainedTokenizerFast:
    """The fast tokenizer of (piece, score) pairs: `<unk>`, `<s>`, `</s>`, 256 bytes, then text pieces."""
    names = ["<unk>", "<s>", "</s>", *(piece for piece, _ in pieces[3:])]
    vocab = {name: i for i, name in enumerate(names)}
    merges = []
    for piece, score in pieces[3 + 256 :]:
        for cut in range(1, len(piece)):
            if piece[:cut] in vocab and piece[cut:] in vocab:
                merges.append((-score, vocab[piece], cut, (piece[:cut], piece[cut:])))
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            [pair for *_, pair in sorted(merges)],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def convert(folder: Path, output: Path) -> None:
    """Write the Hugging Face directory `output` from the two files in `folder`."""
    config, state = read_model(folder / MODEL)
    model = LlamaForCausalLM(config)
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    (output / "generation_config.json").unlink(missing_ok=True)
    pieces = read_vocabulary(folder / VOCABULARY, config.vocab_size)
    build_tokenizer(pieces, config.max_position_embeddings).save_pretrained(output)
    described = json.loads((output / "tokenizer_config.json").read_text())
    described.pop("backend", None)
    described["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows, too
    (output / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
    (output / "LICENSE").write_text(LICENSE, encoding="utf-8")
    (output / "README.md").write_text(README, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help=f"folder with {MODEL} and {VOCABULARY}")
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--output", type=Path, default=root / "lightning_rlhf/assets/stories260k")
    args = parser.parse_args()
    torch.set_num_threads(1)
    convert(args.folder, args.output)
    for file in sorted(args.output.iterdir()):
        print(f"{file.name:24} {file.stat().st_size:>9,} bytes")


if __name__ == "__main__":
    main()
