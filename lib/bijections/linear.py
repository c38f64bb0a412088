"""Linear maps: permutation, activation normalisation, LU and orthogonal matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.bijections.base import Bijection
from lib.checks import reject, whole


def householder(vectors: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """The first m columns of a product of m Householder reflections, Q = H_1 ... H_m.

        H_k = I - 2 v_k v_k^T / |v_k|^2,   v_k = (0, ..., 0, 1, free entries below row k)

    Up to the signs of its columns, every matrix with orthonormal columns is such a product. No v_k
    can vanish. The product is formed at once:

        Q = I - V S^-1 V^T,   S = strict upper triangle of V^T V plus half its diagonal.

    Args:
        vectors: entries strictly below the diagonal are read.

    Returns:
        Orthonormal columns, to working precision.

    Source: Joffrain et al. (2006), Accumulating Householder transformations, revisited.
    """
    n, m = vectors.shape
    eye = torch.eye(n, m, dtype=vectors.dtype, device=vectors.device)
    V = vectors.tril(-1) + eye
    V = V / torch.linalg.vector_norm(V, dim=0)
    gram = V.T @ V
    half = torch.eye(m, dtype=V.dtype, device=V.device) / 2
    return eye - V @ torch.linalg.solve_triangular(gram.triu(1) + half, V[:m].T, upper=True)


class _Channels(Bijection):
    """A map of vectors, which acts on the channels (C, ...) where an event has more dimensions."""

    def __init__(self, features: int, event_dim: int) -> None:
        super().__init__()
        features = whole("features", features)
        self.event_shape = (features, *[None] * (whole("event_dim", event_dim) - 1))

    def _log_det(self, x: Tensor, each: Tensor | float) -> Tensor:
        """The log-determinant of one vector, times the number of vectors in an event."""
        dims = self.event_dim
        places = x.shape[x.ndim - dims + 1 :].numel()
        return x.new_zeros(x.shape[: x.ndim - dims]) + each * places

    def _align(self, vector: Tensor) -> Tensor:
        """A vector over channels, with the dimensions that follow them."""
        return vector.reshape(-1, *[1] * (self.event_dim - 1))


class Permutation(_Channels):
    """Reorder the features: z_i = x_order[i], log |det| = 0.

    Args:
        order: each of 0, ..., features - 1 once.
        event_dim: 1 for vectors, 3 for the channels of images (C, H, W).

    Raises:
        ValueError: not a permutation.
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int], *, event_dim: int = 1) -> None:
        if not hasattr(order, "__iter__"):
            reject("order", "a sequence of integers", type(order).__name__)
        places = [whole("order", i, low=0) for i in order]
        if not places or sorted(places) != list(range(len(places))):
            reject("order", "each of 0, ..., features - 1 once", places)
        super().__init__(len(places), event_dim)
        self.register_buffer("order", torch.tensor(places))
        self.register_buffer("back", torch.tensor(places).argsort())

    @classmethod
    def reverse(cls, features: int, *, event_dim: int = 1) -> Permutation:
        """Last feature first."""
        return cls(range(whole("features", features))[::-1], event_dim=event_dim)

    @classmethod
    def random(
        cls, features: int, generator: torch.Generator | None = None, *, event_dim: int = 1
    ) -> Permutation:
        """Each order with the same probability."""
        device = None if generator is None else generator.device
        features = whole("features", features)
        order = torch.randperm(features, generator=generator, device=device)
        return cls(order.tolist(), event_dim=event_dim)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.index_select(-self.event_dim, self.order), self._log_det(x, 0.0)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return z.index_select(-self.event_dim, self.back), self._log_det(z, 0.0)


class ActNorm(_Channels):
    """Standardise each feature, or each channel of an image, with parameters that are trained on:

        z = (x - loc) exp(-log_scale),   log |det| = -places sum_i log_scale_i

    with H W places in an image, one in a vector. The identity until `initialise` sees a batch; a
    call never sets anything.

    Args:
        features: length of x, or number of channels.
        event_dim: 1 for vectors, 3 for images (C, H, W).

    Raises:
        ValueError: sizes that are not positive whole numbers.

    Source: Kingma and Dhariwal (2018), section 3.1.
    """

    def __init__(self, features: int, *, event_dim: int = 1) -> None:
        super().__init__(features, event_dim)
        self.loc = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set loc and scale to mean and standard deviation of a batch.

        Where a feature is constant up to rounding, its scale becomes 1.

        Raises:
            ValueError: an event of another shape, or an empty batch.
        """
        self._check("x", x, self.event_shape, context)
        if x.numel() == 0:
            reject("x", "at least one event", f"shape {tuple(x.shape)}")
        columns = x.movedim(-self.event_dim, -1).flatten(0, -2) if x.ndim > 1 else x[None]
        loc = columns.mean(0)
        scale = (columns - loc).square().mean(0).sqrt()
        rounding = 8 * torch.finfo(x.dtype).eps * columns.abs().amax(0)
        self.loc.copy_(loc)
        self.log_scale.copy_(torch.where(scale > rounding, scale, torch.ones_like(scale)).log())

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._align(self.loc), self._align(self.log_scale)
        return (x - loc) * (-log_scale).exp(), self._log_det(x, -self.log_scale.sum())

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._align(self.loc), self._align(self.log_scale)
        return loc + z * log_scale.exp(), self._log_det(z, self.log_scale.sum())


class LULinear(_Channels):
    """A matrix in triangular factors; on images, the invertible 1x1 convolution:

        z = L U x + b,   log |det| = places sum_i log U_ii

    L has ones on its diagonal, U has U_ii = exp(log_diagonal_i). The identity at initialisation.
    The inverse solves two triangular systems. A product L U does not permute: put a `Permutation`
    or an `Orthogonal` next to it.

    Args:
        features: length of x, or number of channels.
        event_dim: 1 for vectors, 3 for images (C, H, W), where it acts on the channels.
        bias: whether b is there.

    Raises:
        ValueError: sizes that are not positive whole numbers.

    Source: Kingma and Dhariwal (2018), equation 10.
    """

    def __init__(self, features: int, *, event_dim: int = 1, bias: bool = True) -> None:
        super().__init__(features, event_dim)
        self.lower = nn.Parameter(torch.zeros(features, features))  # read below the diagonal
        self.upper = nn.Parameter(torch.zeros(features, features))  # read above the diagonal
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None

    def factors(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
        """L and U."""
        one = torch.ones_like(self.log_diagonal)
        return (
            self.lower.tril(-1) + torch.diag(one),
            self.upper.triu(1) + torch.diag(self.log_diagonal.exp()),
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        L, U = self.factors()
        z = (x.movedim(-self.event_dim, -1) @ U.T @ L.T).movedim(-1, -self.event_dim)
        if self.bias is not None:
            z = z + self._align(self.bias)
        return z, self._log_det(x, self.log_diagonal.sum())

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        L, U = self.factors()
        x = z if self.bias is None else z - self._align(self.bias)
        x = x.movedim(-self.event_dim, -1)
        rows = x.reshape(-1, x.shape[-1])  # x^T = z^T L^-T U^-T
        rows = torch.linalg.solve_triangular(L.T, rows, upper=True, left=False, unitriangular=True)
        rows = torch.linalg.solve_triangular(U.T, rows, upper=False, left=False)
        x = rows.reshape(x.shape).movedim(-1, -self.event_dim)
        return x, self._log_det(z, -self.log_diagonal.sum())


class Orthogonal(_Channels):
    """A rotation, with or without a reflection: z = Q x, Q^T Q = I, log |det| = 0.

    Q is a product of Householder reflections and signs, see `householder`, at first drawn uniformly
    from the orthogonal group. It is orthogonal to working precision in each dtype, whatever the
    parameters are: they are not the matrix. The inverse is the transpose.

    Args:
        features: length of x, or number of channels.
        generator: source of the initial matrix; its device is where the module is made.
        event_dim: 1 for vectors, 3 for images (C, H, W), where it acts on the channels.

    Raises:
        ValueError: sizes that are not positive whole numbers.

    Source: Mezzadri (2007), section 5, for the uniform draw.
    """

    signs: Tensor

    def __init__(
        self, features: int, *, generator: torch.Generator | None = None, event_dim: int = 1
    ) -> None:
        super().__init__(features, event_dim)
        device = None if generator is None else generator.device
        draw = torch.randn(features, features, generator=generator, device=device)
        packed, _ = torch.geqrf(draw)  # vectors below the diagonal, R above
        self.vectors = nn.Parameter(packed.tril(-1))
        self.register_buffer("signs", packed.diagonal().sign())

    def matrix(self) -> Float[Tensor, "n n"]:
        """Q."""
        return householder(self.vectors) * self.signs

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z = x.movedim(-self.event_dim, -1) @ self.matrix().T
        return z.movedim(-1, -self.event_dim), self._log_det(x, 0.0)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = z.movedim(-self.event_dim, -1) @ self.matrix()
        return x.movedim(-1, -self.event_dim), self._log_det(z, 0.0)
