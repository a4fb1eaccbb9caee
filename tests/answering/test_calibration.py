"""Thresholds of answering: on hand-made pools, and on the quickstart's."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import QUICKSTART_POOL, Run

from cappy_lightning import Cappy
from cappy_lightning.answering.calibration import Sampled, choose_abstain, choose_stop, sample
from cappy_lightning.config_loading import NO_DATA, load_config
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.records import Pool
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
    done = cappy(*words, "-o", out, "--json", found, "--html", page)
    assert done.returncode == 0, done.stderr
    assert "the 80 examples of the split validation are used" in done.stderr
    result = json.loads(found.read_text())
    written = load_config([str(out), *NO_DATA]).answer
    assert (written.step, written.stop, written.abstain) == (3, result["stop"], result["abstain"])
    assert yaml.safe_load(out.read_text()).keys() == {"answer"}
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
    few.write_text("".join(QUICKSTART_POOL.read_text(encoding="utf-8").splitlines(keepends=True)[:12]))
    done = cappy("calibrate", few, "--scorer", lora_run / "adapter", "-o", tmp_path / "out", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (tmp_path / "out").exists()
