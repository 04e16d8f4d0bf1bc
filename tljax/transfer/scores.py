"""Transferability scores: how well frozen features tell classes apart, from one pass and without training.

Legend: n examples, D features, C classes of the target, Z classes of the source. All in float64.
"""

import numpy as np

TURNS = 100  # of LogME's fixed point; it takes 3 to 20
DISTORTION = 1e-4  # eps of TransRate, as its authors have it


def logme(features_nD: np.ndarray, labels_n: np.ndarray, classes: int) -> float:
    """Log of the evidence of a linear model for each class against the rest, per example (You et al. 2021, LogME).

    The evidence of y = F w + noise, with w ~ N(0, 1/alpha) and noise ~ N(0, 1/beta), is maximised over alpha and beta
    by MacKay's fixed point, in the basis of F's singular vectors.
    """
    F = _checked(features_nD, labels_n, classes)
    n, D = F.shape
    U, s, _ = np.linalg.svd(F, full_matrices=False)
    squares = s**2
    return float(np.mean([_evidence(U, squares, labels_n == c, n, D) for c in range(classes)]))


def _evidence(U: np.ndarray, squares: np.ndarray, of_class: np.ndarray, n: int, D: int) -> float:
    y = of_class.astype(np.float64)
    along = (U.T @ y) ** 2  # of y, in the directions that F has
    beside = max(float(y @ y - along.sum()), 0.0)  # and in the others
    alpha = beta = 1.0
    for _ in range(TURNS):
        t = alpha / beta
        gamma = float((squares / (squares + t)).sum())
        m2 = float((squares * along / (squares + t) ** 2).sum())
        residue = float((along / (1 + squares / t) ** 2).sum()) + beside
        alpha, beta = gamma / max(m2, 1e-12), (n - gamma) / max(residue, 1e-12)
        if abs(alpha / beta - t) <= 1e-3 * t:
            break
    t = alpha / beta
    m2 = float((squares * along / (squares + t) ** 2).sum())
    residue = float((along / (1 + squares / t) ** 2).sum()) + beside
    logdet = float(np.log(alpha + beta * squares).sum()) + (D - len(squares)) * np.log(alpha)
    evidence = D * np.log(alpha) + n * np.log(beta) - beta * residue - alpha * m2 - logdet - n * np.log(2 * np.pi)
    return float(evidence / (2 * n))


def h_score(features_nD: np.ndarray, labels_n: np.ndarray, classes: int) -> float:
    """tr(cov(f)^-1 cov(E[f | y])) with a shrunk covariance (Bao et al. 2019; Ibrahim et al. 2021)."""
    F = _checked(features_nD, labels_n, classes)
    n, D = F.shape
    F = F - F.mean(0)
    cov = F.T @ F / n
    shrunk, alpha = _ledoit_wolf(F, cov)
    means = np.zeros((classes, D))
    np.add.at(means, labels_n, F)
    counts = np.bincount(labels_n, minlength=classes)
    means /= np.maximum(counts, 1)[:, None]
    between = (means * (counts / n)[:, None]).T @ means
    return float((1 - alpha) * np.trace(np.linalg.pinv(shrunk, hermitian=True) @ between))


def _ledoit_wolf(F: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, float]:
    """The covariance shrunk towards a multiple of the identity, and by how much (Ledoit & Wolf 2004). F is centred."""
    n, D = F.shape
    mu = np.trace(cov) / D
    squared = F**2
    noise = float((squared.T @ squared).sum()) / n - float((cov**2).sum())
    spread = float((cov**2).sum()) - D * mu**2
    alpha = 0.0 if spread <= 0 else min(max(noise / n / spread, 0.0), 1.0)
    return (1 - alpha) * cov + alpha * mu * np.eye(D), alpha


def transrate(features_nD: np.ndarray, labels_n: np.ndarray, classes: int, eps: float = DISTORTION) -> float:
    """Coding rate of the features less that within classes (Huang et al. 2022, TransRate)."""
    F = _checked(features_nD, labels_n, classes)
    F = F - F.mean(0)
    F = F / np.sqrt(max(float(np.trace(F @ F.T)), 1e-300))
    within = sum(_rate(F[labels_n == c], eps) for c in range(classes) if (labels_n == c).any()) / classes
    return _rate(F, eps) - within


def _rate(F: np.ndarray, eps: float) -> float:
    """Half of log det(I + F'F / (n eps)): nats that code a row to within eps."""
    n, D = F.shape
    gram = F.T @ F if n >= D else F @ F.T
    return float(np.linalg.slogdet(np.eye(len(gram)) + gram / (n * eps))[1]) / 2


def leep(source_nZ: np.ndarray, labels_n: np.ndarray, classes: int) -> float:
    """Mean log-likelihood of the labels by the source head's probabilities and P(y | z) (Nguyen et al. 2020, LEEP)."""
    P = _checked(source_nZ, labels_n, classes)
    joint = np.zeros((classes, P.shape[1]))
    np.add.at(joint, labels_n, P)
    conditional = joint / np.maximum(joint.sum(0), 1e-300)
    return float(np.log(np.maximum((P @ conditional.T)[np.arange(len(P)), labels_n], 1e-300)).mean())


def nce(source_nZ: np.ndarray, labels_n: np.ndarray, classes: int) -> float:
    """-H(y | z) for the source head's most probable class z (Tran et al. 2019)."""
    P = _checked(source_nZ, labels_n, classes)
    joint = np.zeros((classes, P.shape[1]))
    np.add.at(joint, (labels_n, P.argmax(1)), 1.0 / len(P))
    marginal = joint.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(joint > 0, joint * np.log(joint / marginal), 0.0)
    return float(each.sum())


def nearest_neighbours(features_nD: np.ndarray, labels_n: np.ndarray, classes: int, k: int = 5) -> float:
    """Accuracy of a vote of the k nearest others by cosine, each example left out once; ties go to the nearest."""
    F = _checked(features_nD, labels_n, classes)
    F = F / np.maximum(np.linalg.norm(F, axis=1, keepdims=True), 1e-12)
    right, k = 0, min(k, len(F) - 1)
    for at in range(0, len(F), 1024):
        rows = np.arange(at, min(at + 1024, len(F)))
        near = F[rows] @ F.T
        near[np.arange(len(rows)), rows] = -np.inf
        first = np.argsort(-near, axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(rows), classes))
        # a little more for the nearer ones, too little to outvote another
        np.add.at(votes, (np.arange(len(rows))[:, None], labels_n[first]), 1 - np.arange(k) * 1e-6)
        right += int((votes.argmax(1) == labels_n[rows]).sum())
    return right / len(F)


def ridge_probe(features_nD: np.ndarray, labels_n: np.ndarray, classes: int) -> float:
    """Leave-one-out accuracy of ridge regression on the classes, at the best of nine penalties.

    In closed form: the prediction for an example that was left out is (f - h y) / (1 - h), h being its leverage.
    """
    F = _checked(features_nD, labels_n, classes)
    F = F - F.mean(0)
    Y = np.eye(classes)[labels_n]
    mean = Y.mean(0)
    Y = Y - mean
    U, s, _ = np.linalg.svd(F, full_matrices=False)
    scale = float((s**2).mean()) or 1.0
    best = 0.0
    for penalty in scale * np.logspace(-4, 4, 9):
        kept = s**2 / (s**2 + penalty)
        leverage = (U**2) @ kept + 1 / len(F)  # and of the mean, which is fitted too
        fitted = (U * kept) @ (U.T @ Y)
        left_out = (fitted - leverage[:, None] * Y) / np.maximum(1 - leverage, 1e-9)[:, None]
        best = max(best, float(((left_out + mean).argmax(1) == labels_n).mean()))
    return best


def _checked(array: np.ndarray, labels_n: np.ndarray, classes: int) -> np.ndarray:
    if array.ndim != 2 or len(array) != len(labels_n) or not len(array):
        raise ValueError(f"features {array.shape} and labels {labels_n.shape}, expected (n, D) and (n,), n at least 1")
    if labels_n.min() < 0 or labels_n.max() >= classes:
        raise ValueError(f"labels {labels_n.min()} to {labels_n.max()}, expected 0 to {classes - 1}")
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("features that are not finite")
    return wide
