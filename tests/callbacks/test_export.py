"""Exports: what other libraries load from them, and what is refused."""

import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import exporting
import numpy as np
import pytest
import torch
from conftest import SHORT_RUN, Run
from forked import Forked
from hub import open_hub
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cappy_lightning import Cappy
from cappy_lightning.errors import InputError
from cappy_lightning.export import PROBE, export, push
from cappy_lightning.records import Pool
from cappy_lightning.scorer.adapter import read_settings
from cappy_lightning.scorer.model import resolve_base

Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def pairs(pools: list[Pool]) -> Pairs:
    """200 real pairs of different lengths, among them instructions that are too long."""
    found = [
        (pool.example.instruction, pool.candidates[i % 13 % len(pool.candidates)].response)
        for i, pool in enumerate(pools[:200])
    ]
    return [(f"{a} " * 12 if i % 10 == 0 else a, b) for i, (a, b) in enumerate(found)]


def plain_logits(model: torch.nn.Module, tokenizer: object, pairs: Pairs) -> np.ndarray:
    """Logits as a user of transformers would compute them."""
    found = []
    for instruction, response in pairs:
        inputs = tokenizer(instruction, response, truncation="only_first", max_length=128, return_tensors="pt")
        with torch.inference_mode():
            found.append(float(model(**inputs).logits[0, 0]))
    return np.array(found)


def test_the_adapter_is_small_and_holds_lora_and_head_only(lora_run: Path) -> None:
    adapter = lora_run / "adapter"
    assert sum(file.stat().st_size for file in adapter.iterdir()) < 5e6
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
        names = list(tensors.keys())
    assert all("lora_" in name or ".pooler." in name or ".classifier." in name for name in names)
    assert {"base_model.model.classifier.weight", "base_model.model.bert.pooler.dense.weight"} <= set(names)
    assert (
        sum("lora_A" in name for name in names) == sum("lora_B" in name for name in names) == 6 * 2
    )  # layers, targets


def test_plain_peft_gives_the_same_scores_from_the_adapter(lora_run: Path, pairs: Pairs) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(resolve_base("embedded"), num_labels=1)
    model = PeftModel.from_pretrained(base, lora_run / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("embedded"), truncation_side="left")
    mine = Cappy.from_pretrained(lora_run / "adapter").logits(pairs)
    assert np.abs(plain_logits(model, tokenizer, pairs) - mine).max() <= 1e-5


@pytest.mark.parametrize("kind", ["merged", "full"])
def test_transformers_and_cross_encoder_give_the_same_scores_from_a_model(
    lora_run: Path, full_run: Path, pairs: Pairs, tmp_path: Path, kind: str
) -> None:
    cappy = Cappy.from_pretrained(lora_run / "adapter" if kind == "merged" else full_run / "model")
    cappy.save_pretrained(tmp_path / "model")
    scores = cappy.score(pairs)
    assert np.ptp(scores) > 0.01
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    logits = plain_logits(model, tokenizer, pairs)
    assert np.abs(1 / (1 + np.exp(-logits)) - scores).max() <= 1e-5
    assert np.abs(CrossEncoder(str(tmp_path / "model")).predict(pairs) - scores).max() <= 1e-5
    assert np.abs(Cappy.from_pretrained(tmp_path / "model").score(pairs) - scores).max() <= 1e-5
    if kind == "full":
        assert np.abs(CrossEncoder(str(full_run / "model")).predict(pairs) - scores).max() <= 1e-5


def test_the_adapter_says_its_base_by_name_and_hash(lora_run: Path) -> None:
    settings = json.loads((lora_run / "adapter" / "cappy.json").read_text())
    peft = json.loads((lora_run / "adapter" / "adapter_config.json").read_text())
    assert settings["base"] == "embedded"
    assert peft["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert len(settings["base_sha256"]) == 64
    card = (lora_run / "adapter" / "README.md").read_text()
    assert settings["base_sha256"] in card
    assert "Rouge-L × 100, with 95% paired" in card
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2" in card
    assert "lora_rank: 16" in card


def test_several_adapters_share_a_base_and_answer_by_task(lora_run: Path, pairs: Pairs, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(lora_run / "adapter", other)
    tensors = load_file(other / "adapter_model.safetensors")
    tensors["base_model.model.classifier.bias"] += 1
    save_file(tensors, other / "adapter_model.safetensors")
    seal(other)
    names = ("glue.mrpc", "train")  # of which PEFT takes neither for an adapter
    both = Cappy.from_pretrained("embedded", adapter=dict(zip(names, (lora_run / "adapter", other), strict=True)))
    alone = Cappy.from_pretrained(lora_run / "adapter").logits(pairs[:20])
    assert np.abs(both.logits(pairs[:20], task=names[0]) - alone).max() <= 1e-5
    assert np.abs(both.logits(pairs[:20], task=names[1]) - alone - 1).max() <= 1e-5
    with pytest.raises(InputError, match=r"task: is None, expected one of glue.mrpc, train"):
        both.score(pairs[:1])
    with pytest.raises(InputError, match=r"embedded: has adapters for glue.mrpc, train, expected one to be merged"):
        both.save_pretrained(tmp_path / "saved")


def test_a_logit_is_read_in_one_of_two_ways(lora_run: Path) -> None:
    with pytest.raises(InputError, match="activation: is 'Sigmoid', expected one of sigmoid, identity"):
        Cappy.from_pretrained(lora_run / "adapter", activation="Sigmoid")


def test_rows_of_several_tasks_are_scored_in_one_call_by_adapters_of_several_modes(
    lora_run: Path, pairs: Pairs, tmp_path: Path, cappy: Run
) -> None:
    """One adapter has LoRA and the head, one the head alone; one with whole layers goes beside its like only."""
    places = {"lora": lora_run / "adapter"}
    for mode in ("layers", "head"):
        done = cappy("train", *SHORT_RUN, f"finetune.mode={mode}", "trainer.max_steps=3", f"run_dir={tmp_path / mode}")
        assert done.returncode == 0, done.stderr
        places[mode] = tmp_path / mode / "adapter"
    with pytest.raises(InputError, match="trained other layers whole than the first adapter"):
        Cappy.from_pretrained("embedded", adapter=places)
    layers = places.pop("layers")
    twice = Cappy.from_pretrained("embedded", adapter={"a": layers, "b": layers})
    assert (
        np.abs(twice.score(pairs[:4], task=list("abab")) - Cappy.from_pretrained(layers).score(pairs[:4])).max() <= 1e-5
    )
    together = Cappy.from_pretrained("embedded", adapter=places)
    for tasks in (["lora"], ["lora"] * 5):
        with pytest.raises(InputError, match=f"task: has {len(tasks)} names, expected one for each of the 4 pairs"):
            together.score(pairs[:4], task=tasks)
    tasks = [("lora", "head")[i % 3 % 2] for i in range(30)]
    scores = together.score(pairs[:30], task=tasks)
    for task, place in places.items():
        rows = [i for i in range(30) if tasks[i] == task]
        own = Cappy.from_pretrained(place).score([pairs[i] for i in rows])
        assert np.abs(scores[rows] - own).max() <= 1e-5
    rows = [{"task": task, "instruction": a, "response": b} for task, (a, b) in zip(tasks, pairs, strict=False)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [word for task, place in places.items() for word in ("--adapter", f"{task}={place}")]
    done = cappy("score", path, "--scorer", "embedded", *named)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["score"] for line in done.stdout.splitlines()]
    assert np.abs(np.array(found) - scores).max() <= 1e-5
    path.write_text(json.dumps({**rows[0], "task": "billing"}) + "\n")
    done = cappy("score", path, "--scorer", "embedded", *named)
    assert done.returncode == 2
    assert "rows.jsonl:1: field 'task' is 'billing', expected one of lora, head" in done.stderr
    done = cappy("score", path, "--scorer", "embedded", *named, "--adapter", places["head"])
    assert done.returncode == 2
    assert "expected one, or TASK=ADAPTER for each task" in done.stderr


def test_the_activation_of_a_scorer_that_does_not_say_it_can_be_told(tmp_path: Path, cappy: Run) -> None:
    encoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model("bert", vocab_size=30522, num_labels=1, **encoder)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(resolve_base("embedded")).save_pretrained(tmp_path / "reward")
    words = ["export", tmp_path / "reward", "-o", tmp_path / "out"]
    refused = cappy(*words)
    assert (refused.returncode, "does not say how its logit is to be read" in refused.stderr) == (2, True)
    done = cappy(*words, "--activation", "identity")
    assert done.returncode == 0, done.stderr
    assert Cappy.from_pretrained(tmp_path / "out").scorer.activation == "identity"


def test_onnx_runtime_gives_the_same_scores(lora_run: Path, pairs: Pairs, tmp_path: Path, cappy: Run) -> None:
    done = cappy("export", lora_run / "adapter", "-o", tmp_path / "onnx", "--as", "onnx")
    assert done.returncode == 0, done.stderr
    found = Cappy.from_pretrained(tmp_path / "onnx").score(pairs)
    expected = Cappy.from_pretrained(lora_run / "adapter").score(pairs)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.ptp(found) > 0.01
    done = cappy("export", lora_run / "adapter", "-o", tmp_path / "int8", "--as", "onnx-int8")
    assert (done.returncode, "on 37 texts its scores differ by" in done.stderr) == (0, True), done.stderr
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("onnx", "int8")]
    assert sizes[1] < sizes[0] / 3
    rounded = Cappy.from_pretrained(tmp_path / "int8")
    assert 0 < np.abs(rounded.score(pairs) - expected).mean() < 0.05
    # Shorter pairs, and the ids that they are cut to, as with the weights.
    short = [Cappy.from_pretrained(place, max_length=16) for place in (tmp_path / "onnx", lora_run / "adapter")]
    assert np.abs(short[0].score(pairs) - short[1].score(pairs)).max() <= 1e-4
    for refused, problem in (
        (lambda: rounded.save_pretrained(tmp_path / "again"), "is an ONNX graph, expected a scorer with weights"),
        (lambda: Cappy.from_pretrained(tmp_path / "int8", dtype="bfloat16"), "dtype: is bfloat16 for the ONNX graph"),
        (lambda: Cappy.from_pretrained(tmp_path / "int8", device="cuda"), "device: is cuda for the ONNX graph"),
        (lambda: Cappy.from_pretrained(tmp_path / "int8", dtype="int8"), "dtype: is 'int8', expected one of"),
    ):
        with pytest.raises(InputError, match=re.escape(problem)):
            refused()
    again = cappy("export", tmp_path / "onnx", "-o", tmp_path / "model", "--as", "model")
    assert (again.returncode, "is an ONNX graph" in again.stderr) == (2, True)
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no graph")
    damaged = cappy("score", "-", "--scorer", tmp_path / "onnx")
    assert (damaged.returncode, damaged.stderr.count("\n"), "cannot be loaded" in damaged.stderr) == (2, 1, True)


def test_an_adapter_is_uploaded_by_a_run_and_loaded_by_its_name(
    lora_run: Path, pairs: Pairs, tmp_path: Path, cappy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub's own client, to a stand-in of the hub."""
    shutil.copytree(lora_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()  # what is left to do is to export and report
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    with open_hub(str(tmp_path / "cache"), monkeypatch) as hub:
        done = cappy("train", *SHORT_RUN, "push_to_hub=me/tickets", f"run_dir={tmp_path / 'run'}")
        assert done.returncode == 0, done.stderr
        assert hub.private == {"me/tickets": True}
        assert hub.tokens == {"Bearer a-secret"}
        assert hub.files["me/tickets"] == {
            file.name: file.read_bytes() for file in (tmp_path / "run" / "adapter").iterdir()
        }
        expected = Cappy.from_pretrained(lora_run / "adapter").score(pairs[:10])
        assert (Cappy.from_pretrained("me/tickets").score(pairs[:10]) == expected).all()
        both = Cappy.from_pretrained("embedded", adapter={"a": "me/tickets", "b": lora_run / "adapter"})
        assert np.abs(both.score(pairs[:10], task="a") - expected).max() <= 1e-6
    assert "a-secret" not in done.stdout + done.stderr
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"a-secret" in path.read_bytes()]


def test_an_upload_that_fails_is_said_in_one_line_and_without_a_token_before_the_training(
    lora_run: Path, tmp_path: Path, cappy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cappy_lightning.export.get_token", lambda: None)
    done = cappy("train", *SHORT_RUN, "push_to_hub=me/tickets", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "push_to_hub: needs a token, expected it in $HF_TOKEN" in done.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(InputError, match=r"could not be uploaded to me/tickets .*; the run itself is complete"):
        push(lora_run / "adapter", "me/tickets")  # the tests have no hub


def kill_in_exports(adapter: Path, kills: int, seed: int) -> int:
    """Kill a process that exports again and again, at random moments; after each kill there is a whole adapter."""
    random = np.random.default_rng(seed)
    written = 0
    for _ in range(kills):
        process = Forked(adapter.with_name("output"), adapter, program=exporting.run)
        while "ready" not in process.stdout:
            assert process.returncode is None, process.stderr
            time.sleep(0.01)
        time.sleep(float(random.uniform(0, 4)))
        process.kill()
        process.wait()
        written += process.stdout.count("written")
        read_settings(adapter)
        names = {path.name for path in adapter.iterdir()}
        assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "cappy.json"} == names
    Cappy.from_pretrained(adapter)
    return written


def test_a_kill_during_an_export_leaves_a_whole_adapter(lora_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lora_run / "adapter", tmp_path / "adapter")
    kill_in_exports(tmp_path / "adapter", kills=2, seed=1)


@pytest.mark.soak
def test_many_kills_during_exports(lora_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lora_run / "adapter", tmp_path / "adapter")
    written = kill_in_exports(tmp_path / "adapter", kills=60, seed=2)
    print(f"60 kills, {written} exports finished between them: a whole adapter after each")
    assert written


def seal(adapter: Path) -> None:
    """Make the hash in `cappy.json` that of the tensors, so that what is wrong with them is found otherwise."""
    settings = json.loads((adapter / "cappy.json").read_text())
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    settings["sha256"]["adapter_model.safetensors"] = hashlib.sha256(weights).hexdigest()
    (adapter / "cappy.json").write_text(json.dumps(settings))


def damaged(adapter: Path, target: Path, how: str) -> Path:
    shutil.copytree(adapter, target)
    weights = target / "adapter_model.safetensors"
    tensors = load_file(weights)
    match how:
        case "head":
            del tensors["base_model.model.classifier.weight"]
        case "nan":
            tensors["base_model.model.classifier.weight"][0, 0] = float("nan")
        case "extra":
            tensors["base_model.model.bert.embeddings.word_embeddings.weight"] = torch.zeros(2, 2)
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
            seal(target)
            return target
        case "cut" | "zeroed":
            if how == "cut":
                weights.write_bytes(weights.read_bytes()[:-1000])
            else:
                tensors["base_model.model.classifier.weight"].zero_()
                save_file(tensors, weights)
            return target
        case "scale":
            settings = json.loads((target / "adapter_config.json").read_text())
            (target / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 64}))
            return target
        case "shape":
            tensors["base_model.model.classifier.weight"] = torch.zeros(1, 5)
        case "base":
            settings = json.loads((target / "cappy.json").read_text())
            (target / "cappy.json").write_text(json.dumps(settings | {"base_sha256": "0" * 64}))
    save_file(tensors, weights)
    seal(target)
    return target


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("head", "lacks tensor base_model.model.classifier.weight"),
        ("nan", "is empty or not finite"),
        ("extra", "has an unknown tensor"),
        ("truncated", "cannot be loaded"),
        ("shape", r"has the shape \[1, 5\], expected \[1, 384\]"),
        ("cut", "adapter_model.safetensors: is not as it was exported"),
        ("zeroed", "adapter_model.safetensors: is not as it was exported"),
        ("scale", "adapter_config.json: is not as it was exported"),
        ("base", "was trained on other weights than embedded"),
    ],
)
def test_a_damaged_adapter_is_refused_with_the_reason(lora_run: Path, tmp_path: Path, how: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Cappy.from_pretrained(damaged(lora_run / "adapter", tmp_path / "adapter", how))


def test_an_export_with_other_scores_does_not_count(full_run: Path, tmp_path: Path) -> None:
    scorer = Cappy.from_pretrained(full_run / "model").scorer
    expected = Cappy(scorer).score(PROBE)
    export(scorer, tmp_path / "model", "model", {}, {}, expected, tolerance=1e-5, device="cpu")
    before = (tmp_path / "model" / "model.safetensors").stat()
    with pytest.raises(RuntimeError, match=r"the export's scores differ from the trained ones by 1\.00e-01"):
        export(scorer, tmp_path / "model", "model", {}, {}, expected + np.float32(0.1), tolerance=1e-5, device="cpu")
    assert (tmp_path / "model" / "model.safetensors").stat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_runs_leave_what_the_contract_names(lora_run: Path, full_run: Path) -> None:
    common = {"config.yaml", "versions.json", "metrics.json", "report.json", "report.png", "learning_curve.png"}
    common |= {"calibration.png", "checkpoints", "instances", "logs", "selections.jsonl"}
    for run, kind in ((lora_run, "adapter"), (full_run, "model")):
        found = {path.name for path in run.iterdir() if not path.name.startswith(".")}
        assert found - {f"{kind}_best"} == common | {kind}
        assert all((run / name).read_bytes().startswith(b"\x89PNG") for name in common if name.endswith(".png"))


def test_the_same_command_gives_the_same_metrics_to_the_last_digit(lora_run: Path, tmp_path: Path, cappy: Run) -> None:
    done = cappy("train", lora_run / "config.yaml", f"run_dir={tmp_path / 'again'}")
    assert done.returncode == 0, done.stderr
    for name in ("metrics.json", "report.json"):
        assert (tmp_path / "again" / name).read_bytes() == (lora_run / name).read_bytes()
    assert json.loads((lora_run / "metrics.json").read_text())["train/steps"] == 6
