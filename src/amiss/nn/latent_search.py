"""`search_codes`: the codes whose images come closest to given ones, by gradients, all at once.

Schlegl, Seeböck, Waldstein, Schmidt-Erfurth, Langs, "Unsupervised Anomaly Detection with Generative
Adversarial Networks to Guide Marker Discovery", IPMI 2017, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LossOf = Callable[[Tensor, Tensor], Tensor]
"""codes (B, d), numbers (B,) of their images -> loss (B,), each of its own image alone."""

_BETAS, _EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Search:
    """How codes are searched: Adam, `steps` steps, by `rate` in the first two fifths of them, by a
    tenth of it until three fifths, and by a twentieth then.

    With `patience` an image stops whose loss has not fallen by `tolerance` of itself in so many
    steps; 0 never stops one. `bound` keeps codes in [-bound, bound].
    """

    steps: int
    rate: float
    patience: int = 0
    tolerance: float = 0.01
    bound: float | None = None
    keep_best: bool = False

    def rates(self) -> Iterator[float]:
        """The rate of each step."""
        for step in range(self.steps):
            part = step / self.steps
            yield self.rate * (1.0 if part < 0.4 else 0.1 if part < 0.6 else 0.05)


def search_codes(loss_of: LossOf, start: Tensor, search: Search) -> Tensor:
    """From `start` (B, d), the codes (B, d) after the search.

    Adam goes by each value alone, and the gradient of the sum of losses is each one's own, so the
    images of a batch are searched as if each were by itself; images that stop early leave it.
    """
    found = start.clone()
    active = torch.arange(len(start), device=start.device)
    codes, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    lowest = start.new_full((len(start),), torch.inf)
    mark, since = lowest.clone(), torch.zeros_like(active)
    for step, rate in enumerate(search.rates(), 1):
        loss, gradient = _gradient(loss_of, codes, active)
        if search.keep_best:
            better = loss < lowest[active]
            found[active[better]] = codes[better]
            lowest[active[better]] = loss[better]
        mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
        square = _BETAS[1] * square + (1 - _BETAS[1]) * gradient.square()
        size = rate / (1 - _BETAS[0] ** step)
        root = (square / (1 - _BETAS[1] ** step)).sqrt() + _EPS
        codes = codes - size * mean / root
        if search.bound is not None:
            codes = codes.clamp(-search.bound, search.bound)
        if search.patience:
            fell = loss < mark * (1 - search.tolerance)
            mark, since = torch.where(fell, loss, mark), torch.where(fell, 0, since + 1)
            going = since < search.patience
            if not bool(going.all()):
                if not search.keep_best:
                    found[active[~going]] = codes[~going]
                active, codes, mean, square, mark, since = (
                    x[going] for x in (active, codes, mean, square, mark, since)
                )
                if not len(active):
                    break
    if search.keep_best:
        last, _ = _gradient(loss_of, codes, active) if len(active) else (lowest[active], None)
        better = last < lowest[active]
        found[active[better]] = codes[better]
    else:
        found[active] = codes
    return found


def _gradient(loss_of: LossOf, codes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        codes = codes.detach().requires_grad_()
        loss = loss_of(codes, numbers)
        (gradient,) = torch.autograd.grad(loss.sum(), codes)
    return loss.detach(), gradient
