"""The shipped stories260k against an independent reading of llama2.c's files; whether it writes English."""

import gzip
import importlib.util
import json
import os
import random
import re
import struct
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "lightning_rlhf/assets/stories260k"
FIXTURE = ROOT / "tests/fixtures/stories260k_logits.npz"
EXCERPTS = ROOT / "lightning_rlhf/assets/novels/excerpts.jsonl.gz"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURE, allow_pickle=False) as arrays:
        return dict(arrays)


def script(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts_of(reference: dict[str, np.ndarray]) -> list[str]:
    return json.loads(reference["texts"].tobytes())


@torch.no_grad()
def hf_logits(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()


def test_logits_equal_the_independent_forward(
    model: PreTrainedModel, reference: dict[str, np.ndarray]
) -> None:
    worst = 0.0
    for i in range(5):
        expected = reference[f"logits_{i}"]
        worst = max(worst, np.abs(hf_logits(model, reference[f"ids_{i}"]) - expected).max())
    far = hf_logits(model, reference["long_ids"])[-len(reference["long_logits"]) :]
    assert len(reference["long_ids"]) == 512
    worst = max(worst, np.abs(far - reference["long_logits"]).max())
    print(f"max |difference of logits| = {worst:.2e}")
    assert worst < 1e-4


def test_ids_equal_the_independent_encoder(
    tokenizer: PreTrainedTokenizerBase, reference: dict[str, np.ndarray]
) -> None:
    texts = texts_of(reference)
    assert len(texts) >= 20
    for i, text in enumerate(texts):
        assert tokenizer(text).input_ids == reference[f"ids_{i}"].tolist(), text


def test_a_wrong_rotary_layout_would_be_seen(
    model: PreTrainedModel, reference: dict[str, np.ndarray]
) -> None:
    # The mistake that the comparison guards against: rows of wq and wk left interleaved.
    broken = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    for layer in broken.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            rows = projection.weight.data.view(-1, 2, 4, 64)  # head size 8: (heads, member, pair, dim)
            projection.weight.data = rows.transpose(1, 2).reshape(projection.weight.shape).contiguous()
    assert np.abs(hf_logits(broken, reference["ids_0"]) - reference["logits_0"]).max() > 1.0


@pytest.mark.parametrize(
    "text", ["", "  two", "end ", "a\n\nb", "▁ is kept", "é 🙂 “x” ’", " .,!? ' n't 'm", "a . b ,c"]
)
def test_decode_gives_the_text_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_a_continuation_is_decoded_with_its_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, whole = tokenizer("Once upon").input_ids, tokenizer("Once upon a time").input_ids
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == "a time"  # alone: without its leading space
    both = tokenizer.decode(whole, skip_special_tokens=True)
    assert both[len(tokenizer.decode(prompt, skip_special_tokens=True)) :] == " a time"


def test_special_tokens_and_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.is_fast
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.pad_token == tokenizer.unk_token == "<unk>"
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("x").input_ids == [1, 410, 444]  # <s>, space, x; no </s>
    assert tokenizer("x", add_special_tokens=False).input_ids == [410, 444]
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 512
    assert len(tokenizer) == model.config.vocab_size == 512
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    assert model.num_parameters() == 260_032


def test_byte_fallback_never_gives_the_padding_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for start in range(0, 0x3000, 64):
        ids = tokenizer("".join(map(chr, range(start, start + 64)))).input_ids
        assert tokenizer.pad_token_id not in ids


@torch.no_grad()
def test_it_writes_english(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Of the words in sampled stories at least 90 % occur in the shipped novel excerpts.

    Only words in lower case count, which leaves out names, and not the last one of a story, which may be cut
    off.
    """
    with gzip.open(EXCERPTS, "rt", encoding="utf-8") as file:
        known = {word for line in file for word in words(json.loads(line)["text"].lower())}
    prompt = tokenizer(["Once upon a time"] * 8, return_tensors="pt")
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    out = model.generate(**prompt, do_sample=True, temperature=0.7, top_k=0, max_new_tokens=200)
    torch.set_rng_state(generator_state)
    stories = tokenizer.batch_decode(out, skip_special_tokens=True)
    found = [word for story in stories for word in words(story)[:-1]]
    share = sum(word in known for word in found) / len(found)

    shuffled = random.Random(0)
    control = ["".join(shuffled.sample(word, len(word))) for word in found]
    chance = sum(word in known for word in control) / len(control)
    print(f"{share:.1%} of {len(found)} words are known, {chance:.1%} with letters shuffled\n{stories[0]}")
    assert len(found) > 400
    assert share >= 0.9  # 0.94 to 0.98 over twelve seeds
    assert chance < 0.6


def words(text: str) -> list[str]:
    return re.findall(r"\b[a-z]+\b", text)


def fake_checkpoint(folder: Path, vocab: int = 4, extra: bytes = b"") -> Path:
    """A llama2.c file of width 4, hidden 4, one layer, two heads (one key-value), context 2."""
    numbers = 4 * 4 + 4 + 16 + 8 + 8 + 16 + 4 + 16 + 16 + 16 + 4 + 2 * 2
    path = folder / "stories260K.bin"
    path.write_bytes(struct.pack("<7i", 4, 4, 1, 2, 1, vocab, 2) + bytes(4 * numbers) + extra)
    return path


def test_read_model_refuses(tmp_path: Path) -> None:
    convert = script("convert_stories260k")
    config, state = convert.read_model(fake_checkpoint(tmp_path))
    assert config.hidden_size == 4
    assert state["model.layers.0.self_attn.k_proj.weight"].shape == (2, 4)
    with pytest.raises(ValueError, match=r"vocabulary size -4: found an untied head, expected a tied one"):
        convert.read_model(fake_checkpoint(tmp_path, vocab=-4))
    size = fake_checkpoint(tmp_path).stat().st_size
    with pytest.raises(ValueError, match=rf"found {size + 1} bytes, expected {size} from its header"):
        convert.read_model(fake_checkpoint(tmp_path, extra=b"x"))


def test_read_vocabulary_refuses(tmp_path: Path) -> None:
    convert = script("convert_stories260k")
    path = tmp_path / "tok512.bin"
    path.write_bytes(struct.pack("<i", 2) + struct.pack("<fi", -1.0, 2) + b"ab")
    assert convert.read_vocabulary(path, 1) == [("ab", -1.0)]
    with pytest.raises(ValueError, match="found 1 pieces, expected 512"):
        convert.read_vocabulary(path, 512)


def test_half_split_by_hand() -> None:
    # Two heads of four rows: pairs (0, 1), (2, 3) become rows 0, 2 (first members), then 1, 3.
    rows = torch.arange(8.0)[:, None]
    assert script("convert_stories260k").half_split(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_everything_from_the_original_files(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    reference: dict[str, np.ndarray],
) -> None:
    shared = os.environ.get("LIGHTNING_RLHF_SHARED")
    found = sorted(Path(shared).rglob("stories260K.bin")) if shared else []
    if not found:
        pytest.skip("set LIGHTNING_RLHF_SHARED to a folder with stories260K.bin and tok512.bin to run this")
    folder = found[0].parent
    check = script("check_stories260k")
    fresh = check.build(folder)
    assert fresh.keys() == reference.keys()
    for name, array in fresh.items():
        np.testing.assert_allclose(array, reference[name], rtol=0, atol=1e-5, err_msg=name)

    script("convert_stories260k").convert(folder, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    shipped, converted = ((place / "tokenizer.json").read_text() for place in (MODEL, tmp_path))
    assert json.loads(shipped) == json.loads(converted)

    independent = check.Reference(folder)
    with gzip.open(EXCERPTS, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][::20]
    letters = random.Random(0)
    texts += ["".join(letters.choices(' aehinorstdlu.,!"\n', k=80)) for _ in range(200)]
    for text in texts:
        assert tokenizer(text).input_ids == independent.encode(text), text
