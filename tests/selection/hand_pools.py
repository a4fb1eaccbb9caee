"""Three pools whose rewards are computed by hand, for the tests of the baselines and of the report."""

from cappy_lightning.records import Candidate, Example, Pool, Selection

#: By hand (F = 2 x LCS / (tokens of both)):
#:   pool 1, "a b c d":  a b 2*2/6 = 2/3, a b c d 1, y z 0, a x 2*1/6 = 1/3;              mean 1/2
#:   pool 2, "p q":      r s t u 0, "P, q!" 1, p 2*1/3 = 2/3, p q 1;                       mean 2/3
#:   pool 3, "m n":      m 2*1/3 = 2/3, k k k k 0, m n 1, k k k k 0;                       mean 5/12
REWARDS = [[2 / 3, 1, 0, 1 / 3], [0, 1, 2 / 3, 1], [2 / 3, 0, 1, 0]]

_RESPONSES = [["a b", "a b c d", "y z", "a x"], ["r s t u", "P, q!", "p", "p q"], ["m", "k k k k", "m n", "k k k k"]]
_SUMS = [[-1.0, -4.0, -2.0, -1.0], [-3.0, -2.0, -2.0, -5.0], [-1.0, -1.5, -2.0, -1.5]]
_MEANS = [[-0.5, -1.0, -1.0, -0.25], [-1.5, -0.5, -2.0, -1.25], [-1.0, -1.5, -1.0, -1.5]]
_DECODINGS = ["greedy", "sampling", "sampling", "sampling"]

POOLS = [
    Pool(Example(task, str(n), f"instruction {n}", (reference,)), tuple(map(Candidate, *columns)))
    for n, (task, reference, *columns) in enumerate(
        zip("ttu", ("a b c d", "p q", "m n"), _RESPONSES, [_DECODINGS] * 3, _SUMS, _MEANS, strict=True)
    )
]


def selected(pool: Pool, index: int) -> Selection:
    """A selection of the candidate at `index`, the others being worse the later they stand."""
    logits = tuple(float(n == index) - n / 100 for n in range(len(pool.candidates)))
    return Selection(index, pool.candidates[index].response, 0.5, (0.5,) * len(logits), logits)


#: The scorer picks a b (2/3), "P, q!" (1) and m n (1).
SELECTIONS = [selected(pool, index) for pool, index in zip(POOLS, (0, 1, 2), strict=True)]

#: What every method gets from pools 1, 2 and 3:
VALUES = {
    "random": [1 / 2, 2 / 3, 5 / 12],
    "greedy": [2 / 3, 0, 2 / 3],
    "sampling": [(1 + 0 + 1 / 3) / 3, (1 + 2 / 3 + 1) / 3, 1 / 3],
    # -1 stands twice in pool 1, -2 in pool 2: a b, "P, q!", m
    "self_score_sum": [2 / 3, 1, 2 / 3],
    # a x, "P, q!", and of two equal ones the first: m
    "self_score_mean": [1 / 3, 1, 2 / 3],
    # all answers of pool 1 stand once: the first; "P, q!" is p q normalized, and stands first; k k k k
    "majority": [2 / 3, 1, 0],
    # pool 1, sums of the similarities to the others: a b 2/3 + 0 + 1/2, a b c d 2/3 + 0 + 1/3, y z 0, a x 1/2 + 1/3
    # pool 2: 0, 2/3 + 1, 2/3 + 2/3, 2/3 + 1; pool 3: m 2/3, k k k k 1, m n 2/3, k k k k 1
    "mbr": [2 / 3, 1, 0],
    # a b, y z and a x have three characters; p; m
    "shortest": [2 / 3, 2 / 3, 2 / 3],
    # a b c d; r s t u; k k k k
    "longest": [1, 0, 0],
    "cappy": [2 / 3, 1, 1],
    "oracle": [1, 1, 1],
}
