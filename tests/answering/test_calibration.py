"""Thresholds of answering: on hand-made pools, and on the quickstart's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import QUICKSTART_POOL, Run

from cappy_lightning import Cappy
from cappy_lightning.answering.calibration import (
    Sampled,
    _decodings,
    _held_out,
    _say_missed,
    calibrate,
    choose_abstain,
    choose_stop,
    choose_thresholds,
    overlay,
    read_held_out,
    sample,
)
from cappy_lightning.config_loading import NO_DATA, load_config
from cappy_lightning.errors import InputError
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.records import Candidate, Example, Pool
from cappy_lightning.selection.baselines import rewards

#: Three runs of four candidates; the best score so far, and the reward of the selected one.
BEST = np.array([[0.2, 0.6, 0.6, 0.9], [0.7, 0.7, 0.7, 0.7], [0.1, 0.3, 0.5, 0.5]])
REWARD = np.array([[0.0, 0.5, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])
COUNT = np.tile(np.arange(1.0, 5.0), (3, 1))


def sampled(rounds: list[int]) -> Sampled:
    return Sampled(np.arange(3), rounds, COUNT, BEST, BEST, REWARD)


def test_a_run_stops_at_the_first_round_with_the_score_or_at_the_last() -> None:
    counts, scores, gained = sampled([2, 4]).stopped(0.6)
    assert counts.tolist() == [2, 2, 4]
    assert scores.tolist() == [0.6, 0.7, 0.5]
    assert gained.tolist() == [0.5, 1.0, 0.5]
    assert sampled([1, 2, 3, 4]).stopped(None)[0].tolist() == [4, 4, 4]


def test_the_threshold_with_the_fewest_candidates_that_keeps_enough() -> None:
    every = sampled([1, 2, 3, 4])
    # All candidates: 2.5 / 3. The second run may stop at once; the first may not before its fourth.
    stop = choose_stop(every, 1.0)
    assert stop is not None
    assert 0.6 < stop <= 0.7
    assert every.stopped(stop)[0].tolist() == [4, 1, 4]
    # Two thirds of 2.5: what the first rounds have is not enough, 0.5 + 1 + 0.5 is.
    low = choose_stop(every, 0.8)
    assert low is not None
    assert every.stopped(low)[0].tolist() == [2, 1, 3]
    assert choose_stop(sampled([4]), 1.0) is None  # there is nothing to be saved


def test_the_lowest_score_with_which_the_answers_are_good_enough() -> None:
    scores, gained = np.array([0.9, 0.8, 0.4, 0.1]), np.array([1.0, 0.5, 0.9, 0.0])
    assert choose_abstain(scores, gained, 0.6) == pytest.approx(0.1)
    assert 0.1 < choose_abstain(scores, gained, 0.79) <= 0.4
    assert 0.8 < choose_abstain(scores, gained, 0.9) <= 0.9
    assert choose_abstain(scores, np.zeros(4), 0.5) == np.inf


def test_sampling_ends_at_no_answer_that_would_be_withheld() -> None:
    every = sampled([1, 2, 3, 4])
    # 0.5, 1 and 0.5 are four fifths of what there is; with 0.75 on average the third is withheld, and so is the first,
    # unless it goes on.
    low = choose_stop(every, 0.8)
    assert low is not None
    _, scores, gained = every.stopped(low)
    assert choose_abstain(scores, gained, 0.9) > low
    stop, abstain = choose_thresholds(every, 0.8, 0.9)
    assert stop is not None
    assert abstain is not None
    assert 0.5 < abstain <= stop
    assert 0.6 < stop <= 0.7
    counts, scores, gained = every.stopped(stop)
    assert counts.tolist() == [4, 1, 4]
    assert gained[scores >= abstain].tolist() == [1.0, 1.0]
    assert choose_thresholds(every, 0.8, None) == (low, None)
    assert choose_thresholds(sampled([4]), 0.8, 0.9)[0] is None
    assert choose_thresholds(Sampled(np.arange(3), [1, 4], COUNT, BEST, BEST, 0 * REWARD), 0.8, 0.9)[1] == np.inf


def test_sampling_is_played_from_the_pools(lora_run: Path, pools: list[Pool]) -> None:
    some, cappy = pools[:6], Cappy.from_pretrained(lora_run / "adapter")
    gains = rewards(some, open_measure("rouge_l", "paper"))
    played = sample(cappy, some, gains, 4)
    assert played.rounds == [4, 8, 12, 13]
    assert played.best.shape == (60, 13)
    assert (np.diff(played.best, axis=1) >= 0).all()
    for number, pool in enumerate(some):
        own = played.pools == number
        selection = cappy.select(pool.example.instruction, [one.response for one in pool.candidates])
        assert played.scores[own][:, -1] == pytest.approx(selection.score)
        assert played.rewards[own][:, -1] == pytest.approx(gains[number][selection.index])
        assert played.rewards[own][:, 0] == pytest.approx(gains[number][0])  # greedy stands alone
    assert np.unique(played.best[played.pools == 0], axis=0).shape[0] > 5  # orders differ
    again = sample(cappy, some, gains, 4)
    assert (again.rewards == played.rewards).all()


def test_the_command_writes_an_overlay_and_says_what_it_promises(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    out, found, page = (tmp_path / name for name in ("answer.yaml", "found.json", "page.html"))
    pool = tmp_path / "pool.jsonl"
    lines = QUICKSTART_POOL.read_text(encoding="utf-8").splitlines(keepends=True)
    pool.write_text("".join([*lines[:20], *lines[-80:]]), encoding="utf-8")
    words = ["calibrate", pool, "--scorer", lora_run / "adapter", "--precision", "0.22", "answer.step=3"]
    done = cappy(*words, "-o", out, "--report", found, "--html", page)
    assert done.returncode == 0, done.stderr
    assert "the 80 examples of the split validation are used" in done.stderr
    first = out.read_text().splitlines()[0]
    assert first == f"# cappy calibrate {pool} --scorer {lora_run / 'adapter'} --keep 1 --precision 0.22 answer.step=3"
    result = json.loads(found.read_text())
    written = load_config([str(out), *NO_DATA]).answer
    assert (written.step, written.stop, written.abstain) == (3, result["stop"], result["abstain"])
    assert result["stop"] >= result["abstain"]
    assert yaml.safe_load(out.read_text()).keys() == {"answer", "backbone"}
    assert yaml.safe_load(overlay(result, "fused"))["select"] == {"by": "fused"}
    # What is sampled is what was calibrated.
    sampled_kinds = {"greedy": 1, "sampling": 4, "temperature_0.7": 4, "nucleus_0.9": 4}
    assert load_config(["backbone.decodings.top_k_3=1", str(out), *NO_DATA]).backbone.decodings == sampled_kinds
    assert result["decodings"] == sampled_kinds
    assert result["abstaining"]["precision"] == pytest.approx(0.22, abs=0.08)
    assert result["stopping"]["candidates"] < result["all"] == 13.0
    fixed = dict(map(tuple, result["fixed"]))
    assert fixed[13.0] == pytest.approx(result["reward"])
    coverage = np.array(result["coverage"])
    assert coverage[-1] == pytest.approx([1.0, coverage[-1, 1]])
    assert page.read_text(encoding="utf-8").count("data:image/png;base64,") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "0.99"], "--precision: is 0.99, expected what can be reached, at most 0."),
        (["--precision", "7"], "--precision: is 7.0, expected a share above 0, at most 1"),
        (["--keep", "0"], "--keep: is 0.0, expected a share above 0, at most 1"),
    ],
)
def test_what_cannot_be_promised(cappy: Run, lora_run: Path, tmp_path: Path, words: list[str], said: str) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(QUICKSTART_POOL.read_text(encoding="utf-8").splitlines(keepends=True)[-12:]))
    done = cappy("calibrate", few, "--scorer", lora_run / "adapter", "-o", tmp_path / "out", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_examples_that_were_trained_on_are_refused(
    pools: list[Pool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(*splits: str | None) -> str:
        path = tmp_path / "pool.jsonl"
        rows = [
            replace(pool, example=replace(pool.example, split=split)).to_row()
            for split, pool in zip(splits, pools, strict=False)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    with pytest.raises(InputError, match="has examples of the split train only"):
        read_held_out(written(*["train"] * 8))
    assert len(read_held_out(written(*[None] * 8))) == 8
    assert "the scorer must not have been trained on its examples" in capsys.readouterr().err
    assert len(read_held_out(written(*["train"] * 5, *[None] * 6))) == 6
    with pytest.raises(InputError, match="has 3 pools to choose by, expected at least 5"):
        read_held_out(written(*["train"] * 5, *["validation"] * 3))


def test_rewards_of_two_kinds_are_refused(lora_run: Path, pools: list[Pool]) -> None:
    rows = [{"task": "t", "instruction": str(n), "choices": ["a", "b"], "label": n % 2} for n in range(6)]
    mixed = [*pools[:6], *(Pool.from_row(row, "w") for row in rows)]
    with pytest.raises(InputError, match="pools: some examples have references and some choices, expected one kind"):
        calibrate(Cappy.from_pretrained(lora_run / "adapter"), mixed, load_config(NO_DATA), 0.99, None)


def test_the_decodings_of_most_pools_are_written_where_a_backbone_can_do_them() -> None:
    def pool(*decodings: str) -> Pool:
        return Pool(Example("t", "1", "x", ("y",)), tuple(Candidate("z", name) for name in decodings))

    most = pool("greedy", "temperature_0.7", "temperature_0.7")
    assert _decodings([most, most, pool("greedy"), pool("sampling")]) == {"greedy": 1, "temperature_0.7": 2}
    assert _decodings([most, pool("given")]) is None
    assert _decodings([most, pool("someone's own")]) is None
    assert _decodings([pool("greedy", "greedy")]) is None
    thresholds = {"step": 2, "stop": 0.5, "abstain": None}
    assert yaml.safe_load(overlay({**thresholds, "decodings": None})) == {"answer": {"step": 2, "stop": 0.5}}


def test_folds_do_not_hang_on_the_order_of_the_file() -> None:
    seen: list[Sequence[int]] = []
    many = Sampled(np.repeat(np.arange(20), 2), [1], *[np.ones((40, 1))] * 4)

    def thresholds(own: Sampled) -> tuple[None, None]:
        seen.append(sorted(set(own.pools.tolist())))
        return None, None

    _held_out(many, thresholds)
    held = [sorted(set(range(20)) - set(own)) for own in seen]
    assert sorted(place for own in held for place in own) == list(range(20))
    assert {len(own) for own in held} == {4}
    assert held[0] != list(range(0, 20, 5))


def test_a_promise_that_is_not_kept_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def said(keep: float, stopping: float, precision: float | None) -> str:
        promises = {"stopping": {"reward": stopping}, "abstaining": {"asked": 0.6, "precision": precision}}
        _say_missed({"reward": 0.5, **promises}, keep)
        return capsys.readouterr().err

    others = "on examples that the thresholds were not chosen on, "
    assert said(1.0, 0.5, 0.6) == said(0.98, 0.49, 0.7) == ""
    assert said(1.0, 0.49, 0.6) == f"{others}98.0% of the reward is kept (asked: 100%)\n"
    assert said(0.9, 0.49, 0.5912) == f"{others}the precision is 0.591 (asked: 0.6)\n"
    assert said(1.0, 0.49, None) == (
        f"{others}98.0% of the reward is kept (asked: 100%) and no answer is given (asked: 0.6)\n"
    )
