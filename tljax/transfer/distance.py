"""How far two domains are apart, on frozen features and before any training.

Legend: n rows of the source, m of the target, N of both, D features, K principal components, P permutations; float64.

Features show what p(x) does. That the same x has another label in the target (p(y | x)), no distance here can see.
"""

import dataclasses

import numpy as np

from tljax.errors import DataError

PERMUTATIONS = 499  # with the true assignment 500, so that the least p-value is 0.002
COMPONENTS = 256  # at most, that the classifier sees
PENALTIES = np.logspace(-4, 4, 9)  # of ridge regression, times the mean of the squared singular values
LEAST = 10  # rows of a domain: of fewer, chance alone tells most domains apart

READINGS = (  # (proxy A-distance from here on, what it means); 1.6 is 90 % of rows told right, 1.0 75 %, 0.4 60 %
    (1.6, "a classifier tells the domains apart almost always; "
          "expect accuracy on the source to say little about accuracy on the target"),
    (1.0, "a classifier mostly tells the domains apart; expect to lose accuracy on the target"),
    (0.4, "a classifier tells the domains apart more often than chance; expect to lose a little on the target"),
    (0.0, "a classifier hardly tells the domains apart; expect accuracy on the target to be near that on the source"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far apart two domains are.

    Attributes:
      proxy_a: proxy A-distance, 0 (a classifier can but guess) to 2 (it always knows the domain).
      mmd: squared maximum mean discrepancy, unbiased: about 0 for equal domains, at times below.
      p: of domains that are equal, the share that would give so large an `mmd`.
    """

    proxy_a: float
    mmd: float
    p: float

    def sentence(self) -> str:
        """In one line, for people.

        >>> print(Distance(0.13, 0.00021, 0.39).sentence().split(";")[0])
        proxy A-distance 0.13 of 2, MMD² 0.00021 (p = 0.39): a classifier hardly tells the domains apart
        """
        chance = "p < 0.01" if self.p < 0.01 else f"p = {self.p:.2f}"
        reading = next(words for least, words in READINGS if self.proxy_a >= least)
        return f"proxy A-distance {self.proxy_a:.2f} of 2, MMD² {self.mmd:.2g} ({chance}): {reading}"


def between(source_nD: np.ndarray, target_mD: np.ndarray, seed: int = 0) -> Distance:
    """Both distances; seconds for thousands of rows. Raises as they do."""
    return Distance(proxy_a_distance(source_nD, target_mD, seed), *mmd(source_nD, target_mD, seed))


def mmd(source_nD: np.ndarray, target_mD: np.ndarray, seed: int = 0, most: int = 2000) -> tuple[float, float]:
    """(MMD², p-value): the unbiased estimate, and the share of permutations of the rows with one as large.

    The kernel is the mean of exp(-|x - y|² / (f h)) over f = 1/4 … 4 where h is the median of |x - y|² over all pairs
    (Gretton et al. 2012, JMLR 13, eq. 3 and section 8). The assignment that was found counts as one permutation, so
    that p is never 0 (Phipson & Smyth 2010).

    Args:
      seed: of the rows that are drawn and of the permutations.
      most: rows of a domain, drawn where there are more.

    Raises:
      DataError: fewer than 10 rows, other numbers of features in source and target, or values that are not finite.
    """
    rng = np.random.default_rng(seed)
    source, target = (_drawn(x, most, rng) for x in _checked(source_nD, target_mD))
    n, m = len(source), len(target)
    kernel_NN = _kernel(np.concatenate([source, target]))
    first_NP = np.zeros((n + m, 1 + PERMUTATIONS))  # 1 for the rows that pass for the source; column 0: those that are
    first_NP[:n] = 1
    first_NP[:, 1:] = rng.permuted(first_NP[:, 1:], axis=0)
    inner_P = (first_NP * (kernel_NN @ first_NP)).sum(0)
    touched_P = kernel_NN.sum(0) @ first_NP
    crossing_P = touched_P - inner_P
    outer_P = kernel_NN.sum() - touched_P - crossing_P
    found_P = inner_P / (n * (n - 1)) + outer_P / (m * (m - 1)) - 2 * crossing_P / (n * m)
    return float(found_P[0]), float((found_P >= found_P[0] - 1e-12).mean())  # less rounding: ties count


def _kernel(x_ND: np.ndarray) -> np.ndarray:
    """The kernel (N, N), 0 between a row and itself."""
    x_ND = x_ND - x_ND.mean(0)
    squares_N = (x_ND**2).sum(1)
    kernel_NN = -2 * (x_ND @ x_ND.T)
    kernel_NN += squares_N[:, None] + squares_N[None, :]
    np.maximum(kernel_NN, 0, out=kernel_NN)
    pairs = kernel_NN[np.tri(len(x_ND), k=-1, dtype=bool)]
    # Where most rows are copies the median is rounding, and where all are the mean is too.
    bandwidth = next((h for h in (np.median(pairs), pairs.mean()) if h > 1e-12 * squares_N.max()), np.inf)
    kernel_NN /= -4 * bandwidth
    np.exp(kernel_NN, out=kernel_NN)
    total_NN = kernel_NN.copy()
    for _ in range(4):  # f = 2, 1, 1/2, 1/4: half the bandwidth is the square of the kernel
        np.square(kernel_NN, out=kernel_NN)
        total_NN += kernel_NN
    np.fill_diagonal(total_NN, 0)
    return total_NN / 5


def proxy_a_distance(source_nD: np.ndarray, target_mD: np.ndarray, seed: int = 0, most: int = 2000) -> float:
    """2 (1 - 2 err), and 0 where err is above 1/2, of a linear classifier of the domains (Ben-David et al. 2007, 2010).

    The classifier is ridge regression on standardised features, at the penalty that is best when each row is left out
    once; it is fitted on a random half of each domain, and err is its share of errors on the other halves. Each domain
    counts half in all of it, however many rows it has. By chance equal domains are not at 0: of N rows in all, half of
    each domain, one pair in twenty is above 4 / sqrt(N), such as 0.4 for 50 and 50 (measured).

    Args, raises: as `mmd`.
    """
    rng = np.random.default_rng(seed)
    halves = [np.array_split(_drawn(x, most, rng), 2) for x in _checked(source_nD, target_mD)]
    x_ND = np.concatenate([fitted for fitted, _ in halves])
    y_N = np.concatenate([np.full(len(fitted), sign) for (fitted, _), sign in zip(halves, (1.0, -1.0), strict=True)])
    w_N = np.concatenate([np.full(len(fitted), 0.5 / len(fitted)) for fitted, _ in halves])
    mean_D = w_N @ x_ND
    deviation_D = np.sqrt(w_N @ (x_ND - mean_D) ** 2)
    scale_D = np.where(deviation_D > 1e-10 * abs(mean_D), deviation_D, np.inf)  # what is constant tells nothing
    slope_D = _ridge((x_ND - mean_D) / scale_D, y_N, w_N)
    margins = [((held - mean_D) / scale_D) @ slope_D * sign for (_, held), sign in zip(halves, (1, -1), strict=True)]
    error = float(np.mean([(1 - np.sign(margin)).mean() / 2 for margin in margins]))  # on the border: half an error
    return max(2 * (1 - 2 * error), 0.0)


def _ridge(x_ND: np.ndarray, y_N: np.ndarray, w_N: np.ndarray) -> np.ndarray:
    """The slope (D,) of ridge regression on the first principal components; x, y have the weighted mean 0, w sum 1."""
    x_ND, y_N = np.sqrt(w_N)[:, None] * x_ND, np.sqrt(w_N) * y_N
    tall = len(x_ND) >= x_ND.shape[1]
    values, vectors = np.linalg.eigh(x_ND.T @ x_ND if tall else x_ND @ x_ND.T)  # of the smaller of the two
    kept = np.flatnonzero(values > 1e-10 * max(values[-1], 1.0))[-COMPONENTS:]
    if not len(kept):
        return np.zeros(x_ND.shape[1])
    squares_K = values[kept]
    axes_DK = vectors[:, kept] if tall else x_ND.T @ vectors[:, kept] / np.sqrt(squares_K)
    u_NK = x_ND @ axes_DK / np.sqrt(squares_K)
    along_K = u_NK.T @ y_N

    def left_out(penalty: float) -> float:
        shrunk_K = squares_K / (squares_K + penalty)
        leverage_N = u_NK**2 @ shrunk_K + w_N  # and that of the mean
        return float((((y_N - u_NK @ (shrunk_K * along_K)) / np.maximum(1 - leverage_N, 1e-9)) ** 2).sum())

    penalty = min(squares_K.mean() * PENALTIES, key=left_out)
    return axes_DK @ (np.sqrt(squares_K) / (squares_K + penalty) * along_K)


def _drawn(x_nD: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most so many rows, in a random order."""
    return x_nD[rng.permutation(len(x_nD))[:most]]


def _checked(source_nD: np.ndarray, target_mD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if source_nD.ndim != 2 or target_mD.ndim != 2 or source_nD.shape[1] != target_mD.shape[1]:
        raise DataError("distance of domains", f"features {source_nD.shape} and {target_mD.shape}",
                        "(rows, D) with the same D", "take both from the same layer of the same network")  # fmt: skip
    wide = source_nD.astype(np.float64), target_mD.astype(np.float64)
    for name, x in zip(("source", "target"), wide, strict=True):
        if len(x) < LEAST:
            raise DataError(f"the {name} domain", f"{len(x)} rows", f"at least {LEAST}")
        if len(bad := np.flatnonzero(~np.isfinite(x).all(1))):
            raise DataError(f"the {name} domain, row {bad[0]}", f"features that are not finite in {len(bad)} of "
                            f"{len(x)} rows", "finite numbers")  # fmt: skip
    return wide
