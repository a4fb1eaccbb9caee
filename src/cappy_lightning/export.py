"""Exports: what a training has learned as an adapter, a model directory or ONNX, each loaded back and compared."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, get_token
from torch import Tensor

from cappy_lightning.checkpoints import CHECKPOINTS, CONFIG, latest_checkpoint, read_checkpoint
from cappy_lightning.config import FinetuneConfig, ScorerConfig
from cappy_lightning.errors import InputError, first_line
from cappy_lightning.files import atomic_path, write_text
from cappy_lightning.model_card import checkpoint_facts, model_card
from cappy_lightning.run_dir import CONFIG as RUN_CONFIG
from cappy_lightning.scorer.adapter import add_adapter, save_adapter
from cappy_lightning.scorer.inference import Pair
from cappy_lightning.scorer.model import Scorer, build_scorer
from cappy_lightning.scorer.onnx import OnnxModel, write_onnx
from cappy_lightning.scorer.places import expanded
from cappy_lightning.scorer.pretrained import Floats, PretrainedScorer
from cappy_lightning.scorer.saving import write_model
from cappy_lightning.selection.fusion import FILE as FUSION
from cappy_lightning.selection.fusion import find_fusion

#: Largest difference between a score in training and the same score from the loaded export, in fp32,
TOLERANCE = 1e-5
#: where the training computes with bf16 weights and the export holds their fp32 masters,
BF16_TOLERANCE = 3e-2
#: between torch and ONNX Runtime,
ONNX_TOLERANCE = 1e-4
#: and where weights are rounded to 8 bits: more than this is a fault, and no rounding.
INT8_TOLERANCE = 0.5

_TEXTS = (
    ("Q: What is the capital of France?\nA:", "Paris"),
    ("Q: What is the capital of France?\nA:", "The answer cannot be known from what was said."),
    ("Premise: A man is playing a guitar on stage.\nHypothesis: Somebody makes music.\nDoes it follow?", "yes"),
    ("Premise: A man is playing a guitar on stage.\nHypothesis: Somebody makes music.\nDoes it follow?", "no"),
    ("Message: The blue teapot arrived in three pieces.\nSubject:", "item problem: blue teapot"),
    ("Übersetze ins Englische: Der Zug hatte Verspätung.", "The train was late."),
    ("", "an answer without a question"),
    ("A question without an answer?", ""),
    ("for i in range(10): print(i ** 2)", "0, 1, 4, 9, 16, 25, 36, 49, 64, 81"),
)
#: The pairs on which an export is compared: of all lengths, up to some that no encoder takes whole.
PROBE: list[Pair] = [
    (" ".join([instruction] * times), " ".join([response] * longer))
    for instruction, response in _TEXTS
    for times, longer in ((1, 1), (4, 1), (16, 2), (256, 3))
] + [("short", "a response that is too long for any encoder " * 256)]


#: The model card.
CARD = "README.md"


def rebuild(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[Scorer, dict[str, Any]]:
    """The scorer of a run with trained weights, made anew from its base; and the settings of its adapter, if it is one.

    Args:
        config: what a checkpoint says about its run: at least the sections `scorer` and `finetune`.
        weights: every trained parameter by its name in the LightningModule.

    Raises:
        InputError: the base cannot be found or read, or a weight is missing, too many, or of another shape; or the
            checkpoint is of another program or version.
    """
    try:
        finetune, base = FinetuneConfig(**config["finetune"]), ScorerConfig(**config["scorer"])
    except (KeyError, TypeError) as error:
        raise InputError("checkpoint", f"does not say how its scorer was made ({first_line(error)})") from None
    scorer = build_scorer(base)
    settings = {} if finetune.mode == "full" else add_adapter(scorer, finetune)
    trained = {f"model.{name}": p for name, p in scorer.model.named_parameters() if p.requires_grad}
    constant = {f"model.{name}" for name, _ in scorer.model.named_buffers()}
    if odd := sorted(set(trained) ^ (set(weights) - constant)):
        raise InputError("checkpoint", f"{'lacks' if odd[0] in trained else 'has an unknown'} weight {odd[0]}")
    with torch.no_grad():
        for name, parameter in trained.items():
            if parameter.shape != weights[name].shape:
                shapes = f"{list(weights[name].shape)}, expected {list(parameter.shape)}"
                raise InputError("checkpoint", f"weight {name} has the shape {shapes}")
            parameter.copy_(weights[name])
    scorer.model.eval()
    return scorer, settings


def export(
    scorer: Scorer,
    directory: Path,
    kind: str,
    settings: dict[str, Any],
    beside: Mapping[str, str],
    expected: Floats,
    tolerance: float,
    device: str,
) -> Floats:
    """Write an export, load it back, and let it take its place only if it gives the same scores.

    Args:
        scorer: with the trained weights.
        directory: what stands there stays until the new export is verified.
        kind: `adapter`, `model` (adapters merged), `onnx` or `onnx-int8`.
        settings: of the adapter.
        beside: texts to be put into it, by file name: its model card, and where there is one its fusion.
        expected: the scores of `PROBE`, [pairs].
        tolerance: the largest difference that is allowed.
        device: on which they were computed, where the export computes its own.

    Returns:
        the differences, [pairs].

    Raises:
        RuntimeError: the scores differ: the export does not hold what was trained.
    """
    with atomic_path(directory) as scratch:
        scratch.mkdir()
        if kind == "adapter":
            save_adapter(scorer, settings, scratch)
        elif kind == "model":
            write_model(scorer, scratch)
        else:
            write_onnx(scorer, scratch, int8=kind == "onnx-int8")
        with exact_products():
            found = PretrainedScorer.from_pretrained(scratch, device=None if "onnx" in kind else device).score(PROBE)
        for name, text in beside.items():
            write_text(scratch / name, text)
        differences: Floats = np.abs(found - expected)
        if not differences.max() <= tolerance:
            raise RuntimeError(
                f"the export's scores differ from the trained ones by {differences.max():.2e},"
                f" expected at most {tolerance}"
            )
    return differences


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Products of fp32 numbers as such: a GPU would otherwise take TF32's for them where the training lets it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_hub_token() -> None:
    """Say before a long training that its export could not be uploaded.

    Raises:
        InputError: there is no token.
    """
    if get_token() is None:
        raise InputError("push_to_hub", "needs a token, expected it in $HF_TOKEN")


def push(directory: Path, repository: str) -> str:
    """Upload an export to a repository of the Hugging Face hub, which is made if need be, as a private one.

    Returns:
        the address of the repository.

    Raises:
        InputError: the hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        made = api.create_repo(repository, exist_ok=True, private=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=directory, commit_message="Export of cappy-lightning")
    except Exception as error:  # by the hub, its client, the network; each has kinds of its own
        raise InputError(
            "push_to_hub",
            f"{directory} could not be uploaded to {repository} ({first_line(error)}); the run itself is complete",
        ) from None
    return str(made)


def export_any(source: str, directory: Path, kind: str | None, activation: str | None = None) -> str:
    """The job behind `cappy export`.

    Args:
        source: a run directory (its latest checkpoint is taken), a checkpoint of any strategy, a saved scorer,
            an adapter, or a hub name.
        directory: where the export goes.
        kind: `adapter`, `model`, `onnx` or `onnx-int8`; None: what the run exports itself.
        activation: of a scorer that does not say it.

    Returns:
        what was exported, where to, and how exact it is, in one line.

    Raises:
        InputError: see `read_checkpoint`, `rebuild` and `PretrainedScorer.from_pretrained`; or a kind that is missing.
    """
    path = Path(expanded(source))
    if (path / RUN_CONFIG).is_file():
        latest = latest_checkpoint(path / CHECKPOINTS)
        if latest is None:
            raise InputError(path, "is a run without a checkpoint, expected one that has come so far")
        path = latest
    settings: dict[str, Any] = {}
    checkpoint: dict[str, Any] | None = None
    if path.suffix == ".ckpt":
        checkpoint = read_checkpoint(path)
        if CONFIG not in checkpoint or "state_dict" not in checkpoint:
            raise InputError(path, "does not say how its scorer was made, expected a checkpoint of a run")
        scorer, settings = rebuild(checkpoint[CONFIG], checkpoint["state_dict"])
    else:
        scorer = PretrainedScorer.from_pretrained(source, activation=activation).scorer
        if isinstance(scorer.model, OnnxModel):
            raise InputError(source, "is an ONNX graph, expected a scorer with weights")
    kind = kind or ("adapter" if settings else "model")
    if kind == "adapter" and not settings:
        raise InputError(source, "cannot become an adapter, expected --as model or onnx")
    beside = {CARD: model_card(kind, checkpoint[CONFIG], checkpoint_facts(checkpoint))} if checkpoint else {}
    if fusion := find_fusion(source):
        beside[FUSION] = fusion.read_text(encoding="utf-8")
    with exact_products():
        expected = PretrainedScorer(scorer).score(PROBE)
    tolerance = {"onnx": ONNX_TOLERANCE, "onnx-int8": INT8_TOLERANCE}.get(kind, TOLERANCE)
    differences = export(scorer, directory, kind, settings, beside, expected, tolerance, str(scorer.device))
    return (
        f"exported and verified: {directory} ({kind}); on {len(PROBE)} texts its scores differ by"
        f" {differences.mean():.1g} on average, {differences.max():.1g} at most"
    )
