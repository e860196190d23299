"""Every YAML is parsed by the parser that runs it; values are the papers'; overlays hold what differs and nothing else."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import set_parsing_settings

import eval.steps
from eval.__main__ import parse as parse_eval
from lightning_rlhf import cli, fit, labelers, online, prompts
from lightning_rlhf.tasks import TASKS, Task, UsageError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
HUMAN = sorted((CONFIGS / "human").iterdir())  # reward models on human comparisons, outside the papers' four tasks
BASES = [f for f in FILES if f.parent.parent == CONFIGS and f.parent.name not in ("hardware", "human", "memory")]
OVERLAYS = [f for f in FILES if f.parent.parent.parent == CONFIGS]
HARDWARE = [f for f in FILES if f.parent.name == "hardware"]
MEMORY = [f for f in FILES if f.parent.name == "memory"]
FIT, FUNCTION = ("sft", "start", "reward", "ppo"), ("prompts", "labels", "online")
# Ziegler et al. 2019, the four tasks, written out independently of the package's registry
PAPER: dict[str, dict[str, Any]] = {
    "sentiment": dict(
        query_length=64, response_length=24, truncate_after=16, truncate_text=".", start_text=".", end_text=".", prefix="",
        suffix="", temperature=0.7, reward=(32, 5e-5), ppo=(512, 1e-5), kl=(0.15, 6.0, 10_000), whiten=True,
    ),
    "tldr": dict(
        query_length=500, response_length=75, truncate_after=55, truncate_text="\n", start_text=None, end_text=None, prefix="",
        suffix="\n\nTL;DR:", temperature=0.7, reward=(16, 2.5e-5), ppo=(32, 2e-6), kl=(0.03, None, 10_000), whiten=False,
    ),
}  # fmt: skip
PAPER["descriptiveness"] = PAPER["sentiment"]
PAPER["cnndm"] = {**PAPER["tldr"], "prefix": "Article:\n\n", "end_text": "\n", "temperature": 0.5, "kl": (0.01, None, 10_000)}


pytestmark = pytest.mark.filterwarnings("ignore:.*args parameter is intended to run from within.*")


class Parsed(fit.RLHFCLI):
    """The real command line up to the parsed config: nothing is instantiated or run."""

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def parse(stage: str, *words: str) -> dict[str, Any]:
    """The options of a stage, with ${run_dir} and ${lm} filled in, by the parser of its command."""
    if stage == "eval":
        return vars(parse_eval(["report", *words]))
    if stage in FUNCTION:
        return cli.parse_function(stage, list(words))
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parsed = Parsed(fit.StageModule, fit.StageData, args=["fit", *words], **fit.CLI_OPTIONS)
    return dict(parsed.config["fit"].as_dict())


def read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def base_of(overlay: Path) -> Path:
    return overlay.parent.parent / overlay.name


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of everything that is not a mapping."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def name(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


@pytest.fixture(autouse=True)
def nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing needs no model, not even to know that there is one."""

    def refuse(*args: Any) -> None:
        raise AssertionError("a model was looked up while parsing")

    import lightning_rlhf.models
    import lightning_rlhf.ppo_setup
    import lightning_rlhf.reward
    import lightning_rlhf.sft

    looking = (lightning_rlhf.models, lightning_rlhf.ppo_setup, lightning_rlhf.reward, lightning_rlhf.sft, eval.steps)
    for module in (*looking, labelers, online, prompts):
        monkeypatch.setattr(module, "find_policy" if hasattr(module, "find_policy") else "find_lm", refuse)


def test_every_file_is_known() -> None:
    assert FILES
    assert sorted([*BASES, *OVERLAYS, *HARDWARE, *MEMORY, *HUMAN]) == FILES
    for task in TASKS:
        assert {f.stem for f in BASES if f.parent.name == task} >= {"sft", "reward", "ppo", "eval"}
    assert {f.stem for f in FILES if f not in HUMAN} <= {*FIT, *FUNCTION, "eval", *(f.stem for f in HARDWARE + MEMORY)}


@pytest.mark.parametrize("file", BASES, ids=name)
def test_base_parses_and_is_complete(file: Path) -> None:
    given = read(file)
    options = parse(file.stem, "-c", str(file))
    assert "${" not in str(options)
    if file.stem in FIT:
        assert options["lm"] == "gpt2"
        assert options["model"]["init_args"]["policy"] == "gpt2"
        assert options["model"]["init_args"]["output"] == f"out/{file.parent.name}/gpt2/{file.stem}"
        assert options["data"]["init_args"]["tokenizer"] == "gpt2"
        assert options["data"]["init_args"]["seed"] == options["model"]["init_args"]["seed"] == 1
        assert asdict(TASKS[file.parent.name]) == {**options["task"]}
    else:
        assert isinstance(options["task"], Task)
        assert options["task"] == TASKS[file.parent.name]
    assert given["task"] == asdict(TASKS[file.parent.name])  # written out whole, so that the file can be read alone
    assert given["task"]["name"] == file.parent.name


@pytest.mark.parametrize("file", HUMAN, ids=name)
def test_human_comparisons_parse_and_are_complete(file: Path) -> None:
    given = read(file)
    options = parse("reward", "-c", str(file))
    assert "${" not in str(options)
    assert given["task"].keys() == asdict(Task()).keys()
    assert given["task"]["name"] == file.stem
    assert options["model"]["init_args"]["output"] == f"out/human/smollm2/{file.stem}/reward"
    assert options["data"]["init_args"]["tokenizer"] == options["model"]["init_args"]["policy"] == "smollm2"


@pytest.mark.parametrize("file", BASES + HUMAN, ids=name)
def test_base_says_how_to_run_it(file: Path) -> None:
    head = "".join(line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#"))
    assert f"configs/{name(file)}" in head
    assert "Hardware:" in head


@pytest.mark.parametrize("file", OVERLAYS, ids=name)
def test_overlay_merges_over_its_base(file: Path) -> None:
    base, over = read(base_of(file)), read(file)
    options = parse(file.stem, "-c", str(base_of(file)), "-c", str(file))
    text = str(options)
    assert f"out/{file.parent.parent.name}/gpt2" not in text
    merged = options if file.stem in FIT else {**options, "task": asdict(options["task"])}
    for path, value in leaves(over):
        if isinstance(value, (int, float, bool)) or (isinstance(value, str) and "${" not in value and path[0] in merged):
            assert at(merged, path) == value, path
    kept = [p for p, v in leaves(base) if p not in dict(leaves(over)) and isinstance(v, (int, float, bool))]
    for path in kept:
        assert at(merged, path) == at(base, path), path


@pytest.mark.parametrize("file", OVERLAYS, ids=name)
def test_overlay_holds_only_what_differs(file: Path) -> None:
    base, over = read(base_of(file)), read(file)
    for path, value in leaves(over):
        try:
            before = at(base, path)
        except (KeyError, TypeError):
            continue
        assert value != before, f"{'.'.join(path)}: {value!r} stands in the base already"
    assert {"run_dir", "lm"} <= over.keys()
    assert "class_path" not in {key for path, _ in leaves(over) for key in path}


@pytest.mark.parametrize("file", HARDWARE, ids=name)
def test_hardware_merges_and_is_the_trainers_alone(file: Path) -> None:
    given = read(file)
    assert given.keys() == {"trainer"}
    files = [CONFIGS / "sentiment/ppo.yaml", CONFIGS / "sentiment/stories260k/ppo.yaml", file]
    options = parse("ppo", *(word for f in files for word in ("-c", str(f))))
    for path, value in leaves(given):
        assert str(at(options, path)) == str(value), path  # a timedelta is written as it prints
    assert options["trainer"]["callbacks"], "a base's callbacks were lost"


@pytest.mark.parametrize("file", [f for f in HARDWARE if "strategy" in read(f)["trainer"]], ids=name)
def test_strategies_fit_their_devices(file: Path) -> None:
    """Of what is written: sharded over all devices, checkpoints of one file, and a rank that is gone is missed in a minute."""
    trainer = read(file)["trainer"]
    options = trainer["strategy"]["init_args"]
    assert options["timeout"] == "0:01:00"
    assert isinstance(trainer["devices"], int) or trainer.get("num_nodes", 1) == 1
    if "data_parallel_size" in options:
        assert options["data_parallel_size"] == trainer["devices"] * trainer["num_nodes"]
        assert (options["tensor_parallel_size"], options["save_distributed_checkpoint"]) == (1, False)


def test_the_readmes_lines_for_several_machines_parse() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("torchrun", "srun"))]
    assert [line.split()[0] for line in lines] == ["torchrun", "srun"]
    for line in lines:
        started, command = (part.split() for part in line.split(" fit "))
        options = parse("ppo", *[str(ROOT / w) if w.endswith(".yaml") else w for w in command])
        each = started[started.index("--nproc_per_node" if started[0] == "torchrun" else "--ntasks-per-node") + 1]
        nodes = started[started.index("--nnodes" if started[0] == "torchrun" else "--nodes") + 1]
        assert (options["trainer"]["num_nodes"], options["trainer"]["devices"]) in ((int(nodes), int(each)), (int(nodes), each))


@pytest.mark.parametrize(
    ("file", "stage"), [(f, s) for f in MEMORY for s in ("sft", "reward", "ppo") if s == "ppo" or f.stem != "frozen_bf16"]
)
def test_memory_merges_over_each_stage_it_is_for(file: Path, stage: str) -> None:
    given = read(file)
    base = CONFIGS / "sentiment" / f"{stage}.yaml"
    before, options = parse(stage, "-c", str(base)), parse(stage, "-c", str(base), "-c", str(file))
    for path, value in leaves(given):
        assert at(options, path) == value, path
    changed = {p for p, v in leaves(options) if dict(leaves(before)).get(p, v) != v}
    assert all(p[:2] == ("model", "init_args") and p[2] in given["model"]["init_args"] for p in changed)


def test_a_flag_changes_an_adapter() -> None:
    words = ["-c", str(CONFIGS / "sentiment/ppo.yaml")]
    options = parse("ppo", *words, "-c", str(CONFIGS / "memory/lora.yaml"), "--model.lora.r", "8")
    lora = {"r": 8, "alpha": 32.0, "target_modules": "all-linear", "top_blocks": None}
    assert options["model"]["init_args"]["lora"] == lora
    options = parse("ppo", *words, "--model.lora.target_modules", "[q_proj,v_proj]")
    assert options["model"]["init_args"]["lora"] == {**lora, "r": 16, "target_modules": ["q_proj", "v_proj"]}
    assert parse("ppo", *words)["model"]["init_args"]["lora"] is None


@pytest.mark.parametrize("file", BASES + OVERLAYS + HARDWARE + MEMORY + HUMAN, ids=name)
def test_misspelt_key_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    """In each file, in the block that its last value stands in."""
    stage = "ppo" if file in HARDWARE + MEMORY else "reward" if file in HUMAN else file.stem
    before = [] if file in BASES + HUMAN else ["-c", str(base_of(file) if file in OVERLAYS else CONFIGS / "sentiment/ppo.yaml")]
    tree = read(file)
    *blocks, _ = list(leaves(tree))[-1][0]
    at(tree, tuple(blocks))["mispelt_key"] = 1
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(UsageError, match=r"wrong\.yaml:\d+: [\w.]*mispelt_key: found an unknown option") as told:
        parse(stage, *before, "-c", str(tmp_path / "wrong.yaml"))
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("task", TASKS)
def test_values_are_the_papers(task: str) -> None:
    paper = PAPER[task]
    reward, ppo = (parse(stage, "-c", str(CONFIGS / task / f"{stage}.yaml")) for stage in ("reward", "ppo"))
    given = ppo["task"]
    for key in ("query_length", "response_length", "truncate_after", "truncate_text", "start_text", "end_text", "temperature"):
        assert given[key] == paper[key], key
    assert (given["query_prefix"], given["query_suffix"], given["penalty"]) == (paper["prefix"], paper["suffix"], -1.0)
    for options, stage in ((reward, "reward"), (ppo, "ppo")):
        optimizer = options["model"]["init_args"]["optimizer"]
        assert (options["data"]["init_args"]["batch_size"], optimizer["init_args"]["lr"]) == paper[stage]
        assert optimizer["class_path"] == "lightning_rlhf.optim.AdamTF"
        assert optimizer["init_args"]["eps"] == 1e-5
        assert options["trainer"]["max_epochs"] == 1
    model = ppo["model"]["init_args"]
    assert (model["kl_coef"], model["kl_target"], model["kl_horizon"]) == paper["kl"]
    assert model["whiten_rewards"] is paper["whiten"]
    assert ppo["data"]["init_args"]["total_episodes"] == 1_000_000
    assert (model["num_ppo_epochs"], model["num_mini_batches"], model["vf_coef"]) == (4, 1, 0.1)
    assert (model["cliprange"], model["cliprange_value"], model["gamma"], model["lam"]) == (0.2, 0.2, 1.0, 0.95)
    assert model["trainable_layers"] is None
    assert reward["model"]["init_args"]["normalise_samples"] == 256
    assert model["guard_comparisons"]  # the shipped runs are guarded
    assert not any(model[k] for k in ("allow_unguarded", "allow_other_task", "allow_negative_kl"))


def test_labels_are_best_of_four() -> None:
    options = parse("labels", "-c", str(CONFIGS / "sentiment/labels.yaml"))
    assert (options["num_samples"], options["labeler"]) == (4, "known:sentiment")


def test_one_flag_moves_a_whole_run() -> None:
    base = CONFIGS / "sentiment/ppo.yaml"
    options = parse("ppo", "-c", str(base), "--run_dir", "elsewhere", "--lm", "stories260k")
    model = options["model"]["init_args"]
    assert (model["policy"], model["reward"], model["output"]) == ("stories260k", "elsewhere/reward", "elsewhere/ppo")
    assert options["data"]["init_args"]["train"] == "elsewhere/prompts/train.jsonl"
    assert options["trainer"]["callbacks"][0]["init_args"]["path"] == "elsewhere/checkpoints/ppo.ckpt"


@pytest.mark.parametrize("file", sorted((ROOT / "runs").glob("*.py")), ids=lambda f: f.stem)
def test_a_script_finds_what_it_imports(file: Path) -> None:
    """What runs for an hour must not end in a name that is no longer there."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
