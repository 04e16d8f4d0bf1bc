"""Label shift: the target's shares of the classes differ from the source's, and within a class p(x | y) is the same.

Legend: n and m rows, C classes; p(y) shares of the classes in the source, q(y) in the target. In float64.

`bbse` needs labelled rows of the source and takes predictions of any quality; `em` needs none, and calibrated
probabilities (Alexandari et al. 2020). Weights for `reweighted` from the prior q that `em` finds are q / p.
"""

from collections.abc import Sequence

import numpy as np

from tljax.errors import DataError

CONDITION = 1e3  # at most, of the confusions, whatever the number of rows
NOISE = 2.0  # sampling errors of the confusions, that the least of their singular values has to stand above
CHANGE = 1e-8  # of a share, below which EM has converged
TURNS = 10_000  # of EM at most; where classes overlap much it comes closer ever more slowly


def bbse(labels_n: np.ndarray, probs_nC: np.ndarray, target_probs_mC: np.ndarray,
         classes: Sequence[str] = ()) -> np.ndarray:  # fmt: skip
    """Weights w(y) = q(y) / p(y), float64 (C,), by black box shift estimation (Lipton et al. 2018), the soft version.

    M[i, j], the mean probability of class i over validation rows of class j, times q is the mean probability over the
    target's rows. The least squares solution with q >= 0 and sum 1 is taken.

    Args:
      labels_n: of validation rows of the source, 0 … C - 1; p is their shares.
      probs_nC: the predictions for them, which they must not have been trained on.
      target_probs_mC: the same network's for the target.
      classes: the names of the classes, for errors.

    Raises:
      DataError: predictions that do not tell some classes apart (the condition number of M); classes without
        validation rows; shapes, labels or probabilities that are none.
    """
    probs_nC, target_probs_mC = _checked("validation", probs_nC), _checked("target", target_probs_mC)
    n, C = probs_nC.shape
    names = [str(name) for name in classes] or [str(c) for c in range(C)]
    if labels_n.shape != (n,) or target_probs_mC.shape[1] != C or len(names) != C:
        found = (
            f"labels {labels_n.shape}, probabilities {probs_nC.shape} and {target_probs_mC.shape}, {len(names)} names"
        )
        raise DataError("label shift", found, f"({n},), ({n}, {C}), (m, {C}) and {C}")
    if labels_n.min() < 0 or labels_n.max() >= C:
        raise DataError("label shift", f"labels {labels_n.min()} to {labels_n.max()}", f"0 to {C - 1}")
    counts_C = np.bincount(labels_n, minlength=C)
    if empty := [names[c] for c in np.flatnonzero(counts_C == 0)]:
        raise DataError("label shift", f"no validation rows of {len(empty)} of {C} classes", "at least 1 of each",
                        details=empty[:20])  # fmt: skip
    M_CC = _of_class(probs_nC, labels_n, counts_C).T
    _check_condition(M_CC, probs_nC, labels_n, counts_C, names)
    q_C = _nonnegative(M_CC, target_probs_mC.mean(0))
    return q_C / q_C.sum() / (counts_C / n)


def _of_class(rows_nC: np.ndarray, labels_n: np.ndarray, counts_C: np.ndarray) -> np.ndarray:
    """The mean of the rows of each class, (C, C) with the class first."""
    sums_CC = np.zeros((len(counts_C), rows_nC.shape[1]))
    np.add.at(sums_CC, labels_n, rows_nC)
    return sums_CC / counts_C[:, None]


def _check_condition(M_CC: np.ndarray, probs_nC: np.ndarray, labels_n: np.ndarray, counts_C: np.ndarray,
                     names: list[str]) -> None:  # fmt: skip
    """Refuses confusions by which chance in the validation rows would decide about the shares.

    Of predictions that know nothing, all columns of M are the same but for sampling errors: those of rows whose mean
    they are. So where the least singular value is no larger than such errors, some classes cannot be told apart.
    """
    values_C = np.linalg.svd(M_CC, compute_uv=False)
    variance = ((probs_nC - M_CC.T[labels_n]) ** 2).sum() / max(len(labels_n) - len(counts_C), 1)  # within a class
    noise = float(np.sqrt(variance * (1 / counts_C).mean()))
    most = min(CONDITION, float(values_C[0]) / max(NOISE * noise, 1e-12))
    if values_C[-1] * most >= values_C[0]:
        return
    condition = float(values_C[0]) / max(float(values_C[-1]), 1e-300)
    squares_C = (M_CC**2).sum(0)
    apart_CC = squares_C[:, None] + squares_C[None, :] - 2 * M_CC.T @ M_CC + 9 * np.eye(len(M_CC))
    a, b = sorted(divmod(int(apart_CC.argmin()), len(M_CC)))
    shown = f"{condition:.3g}" if condition < 1e12 else "infinite"
    alike = f"{names[a]!r} and {names[b]!r} are the most alike"
    raise DataError("label shift", f"the predictions do not tell the classes apart (condition number {shown})",
                    f"at most {most:.3g} with {len(labels_n)} validation rows",
                    f"add validation rows, or merge classes: {alike}")  # fmt: skip


def _nonnegative(A_CC: np.ndarray, b_C: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least |A x - b|, by active sets (Lawson & Hanson 1974, ch. 23), all of them free at first."""
    C = len(b_C)
    x_C, free_C = np.full(C, 1 / C), np.ones(C, bool)
    for _ in range(10 * C):
        while True:
            best_C = np.zeros(C)
            best_C[free_C] = np.linalg.lstsq(A_CC[:, free_C], b_C, rcond=None)[0]
            low_C = free_C & (best_C < 0)
            if not low_C.any():
                break
            steps_C = np.full(C, np.inf)
            steps_C[low_C] = x_C[low_C] / (x_C[low_C] - best_C[low_C])
            x_C = x_C + steps_C.min() * (best_C - x_C)
            free_C[steps_C <= steps_C.min()] = False
            x_C[~free_C] = 0
        x_C = best_C
        pull_C = np.where(free_C, -np.inf, A_CC.T @ (b_C - A_CC @ x_C))
        if pull_C.max() <= 1e-12:
            break
        free_C[pull_C.argmax()] = True
    return x_C


def em(source_prior_C: np.ndarray, target_probs_nC: np.ndarray) -> np.ndarray:
    """The target's shares q(y), float64 (C,), of the greatest likelihood, by EM (Saerens et al. 2002).

    Iterates q(y) <- mean over rows of `reweighted(probs, q / p)` from q = p until no share changes by 1e-8.

    Args:
      source_prior_C: shares of the classes p(y) that the network was trained with, all above 0.
      target_probs_nC: its probabilities for rows of the target.

    Raises:
      DataError: a prior or probabilities that are none.
    """
    probs_nC = _checked("target", target_probs_nC)
    p_C = np.asarray(source_prior_C, np.float64)
    if p_C.shape != probs_nC.shape[1:] or not (p_C > 0).all() or abs(p_C.sum() - 1) > 1e-2:
        raise DataError("label shift", f"a prior {p_C.shape} from {p_C.min(initial=0):g}, with the sum {p_C.sum():g}",
                        f"({probs_nC.shape[1]},) above 0, with the sum 1")  # fmt: skip
    p_C = p_C / p_C.sum()
    q_C = p_C
    for _ in range(TURNS):
        before_C, q_C = q_C, _reweighted(probs_nC, q_C / p_C).mean(0)
        if abs(q_C - before_C).max() < CHANGE:
            break
    return q_C


def reweighted(probs_nC: np.ndarray, weights_C: np.ndarray) -> np.ndarray:
    """p(y | x) w(y) / sum, (n, C): what the network would say, had it been trained on the target's shares.

    A row whose every class has the weight 0 or the probability 0 stays as it is.

    >>> reweighted(np.array([[0.5, 0.5]]), np.array([0.4, 1.6])).tolist()
    [[0.2, 0.8]]
    """
    probs_nC = _checked("predicted", probs_nC)
    if weights_C.shape != probs_nC.shape[1:] or not (np.isfinite(weights_C) & (weights_C >= 0)).all():
        raise DataError("label shift", f"weights {weights_C.shape} from {weights_C.min(initial=0):g}",
                        f"({probs_nC.shape[1]},), finite and at least 0")  # fmt: skip
    return _reweighted(probs_nC, weights_C)


def _reweighted(probs_nC: np.ndarray, weights_C: np.ndarray) -> np.ndarray:
    joint_nC = probs_nC * weights_C
    total_n1 = joint_nC.sum(1, keepdims=True)
    return np.where(total_n1 > 0, joint_nC / np.where(total_n1 > 0, total_n1, 1), probs_nC)


def _checked(name: str, probs_nC: np.ndarray) -> np.ndarray:
    """The probabilities in float64."""
    if probs_nC.ndim != 2 or 0 in probs_nC.shape:
        raise DataError("label shift", f"{name} probabilities {probs_nC.shape}", "(rows, classes), at least 1 of each")
    wide_nC = probs_nC.astype(np.float64)
    # A bfloat16 softmax over hundreds of classes is as far from 1 as that; and what is not finite is refused too.
    good_n = (wide_nC >= 0).all(1) & (abs(wide_nC.sum(1) - 1) <= 1e-2)
    if len(bad := np.flatnonzero(~good_n)):
        raise DataError(f"label shift, {name} row {bad[0]}", f"{len(bad)} of {len(wide_nC)} rows are no probabilities",
                        "at least 0, with the sum 1", "hand over softmax(logits), not logits")  # fmt: skip
    return wide_nC
