"""A head that is tied to the embedding, in a rotated residual stream.

With x^ what the final norm makes of the stream before its weights w, the source's logits are E diag(w) x^. The rotated
model knows z = Q^T x^ and has the embedding E Q, so its logits are E Q diag(g) z: g is all that is free. But a subspace
has many bases Q U, and with them E Q U diag(g) U^T z = E Q S z for any symmetric S. The S with the least squared error
of the logits solves

    A S B + B S A = R + R^T,   A = Q^T G Q,  B = Q^T M Q,  R = Q^T G diag(w) M Q,   G = E^T E,  M = E[x^ x^T]

Its eigenvectors are the basis, its eigenvalues the norm's weights. With all directions kept S is diag(w): exact.
"""

from dataclasses import dataclass

import numpy as np

from minitron_cli.prune.reconstruction import Error

_RIDGE = 1e-5  # of the mean diagonal of G and M, which are float32: both may leave directions out
_NOTHING = 1e-6  # of G's largest eigenvalue: its products are float32


@dataclass(frozen=True, slots=True)
class TiedHead:
    """What a tied head is fitted to: G (hidden, hidden), the final norm's weights w (hidden,), and M.

    Of a LayerNorm (`centred`) the basis holds the mean over channels too, and cannot be chosen freely: g is then
    fitted by itself.
    """

    embedding: np.ndarray
    weight: np.ndarray
    moment: np.ndarray
    centred: bool = False
    norm_bias: np.ndarray | None = None

    def fitted(self, basis: np.ndarray) -> np.ndarray:
        """S (kept, kept) float64, for a basis Q (hidden, kept)."""
        basis = basis.astype(np.float64)
        read, seen = _ridged(self.embedding) @ basis, _ridged(self.moment) @ basis
        right = read.T @ (self.weight[:, None] * seen)
        # With W^T A W = I and W^T B W = diag(v), S = W S' W^T turns the equation into S' diag(v) + diag(v) S' =
        # W^T (R + R^T) W.
        values, both = _diagonalised(basis.T @ read, basis.T @ seen)
        solved = both.T @ (right + right.T) @ both / np.add.outer(values, values)
        return both @ solved @ both.T

    def diagonal(self, basis: np.ndarray) -> np.ndarray:
        """diag(g) (kept, kept), the norm's weights in a basis Q (hidden, kept)."""
        if not self.centred:
            return np.diag(np.diagonal(self.fitted(basis)))
        basis = basis.astype(np.float64)
        read, seen = _ridged(self.embedding) @ basis, _ridged(self.moment) @ basis
        right = np.einsum("ni,n,ni->i", read, self.weight, seen)
        return np.diag(np.linalg.solve((basis.T @ read) * (basis.T @ seen), right))

    def bias(self, basis: np.ndarray) -> np.ndarray:
        """The bias (kept,) whose logits E Q b' are nearest to E b, for a basis Q (hidden, kept)."""
        assert self.norm_bias is not None
        basis = basis.astype(np.float64)
        read = _ridged(self.embedding) @ basis
        return np.linalg.solve(basis.T @ read, read.T @ self.norm_bias)

    @property
    def normed(self) -> np.ndarray:
        """E[diag(w) x^ x^T diag(w)], after the final norm: (hidden, hidden)."""
        return np.outer(self.weight, self.weight) * self.moment

    def read_by_rows(self) -> np.ndarray:
        """`normed` without directions in which no row of the embedding has a part."""
        values, vectors = np.linalg.eigh(self.embedding)
        rows = vectors[:, values > _NOTHING * values[-1]]
        return rows @ (rows.T @ self.normed @ rows) @ rows.T

    def error(self, basis: np.ndarray, found: np.ndarray) -> Error:
        """Of the logits E Q S z; plain trimming keeps the channels that give most to them."""
        off = basis @ found @ basis.T - np.diag(self.weight)
        given = self.embedding * self.normed
        dropped = np.argsort(-np.diagonal(given), kind="stable")[basis.shape[1] :]
        made = float(np.sum((off.T @ self.embedding @ off) * self.moment))
        return Error(made, float(given[np.ix_(dropped, dropped)].sum()))


def _diagonalised(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(v (n,), W (n, n)) with W^T one W = I and W^T other W = diag(v), both positive definite (n, n)."""
    import torch

    root = torch.linalg.cholesky(torch.from_numpy(one))
    half = torch.linalg.solve_triangular(root, torch.from_numpy(other), upper=False)
    whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    return values.numpy(), torch.linalg.solve_triangular(root.T, vectors, upper=True).numpy()


def _ridged(matrix: np.ndarray) -> np.ndarray:
    ridged = matrix.copy()
    ridged[np.diag_indices_from(ridged)] += _RIDGE * np.diagonal(matrix).mean()
    return ridged
