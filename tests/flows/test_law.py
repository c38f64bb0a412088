"""A flow as a law of torch.distributions: shapes, support, and a kept density that is right."""

import copy

import pytest
import torch
from torch import distributions as td
from torch.func import functional_call

from lib.bijections import HalfLine
from lib.flows import Flow, StandardNormal
from tests.flows.test_recipes import PLANE, count, made


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# --- a law of torch


@pytest.mark.parametrize("name", PLANE)
def test_a_law_of_torch(name):
    flow = made(name, 2)
    law = flow()
    assert isinstance(law, td.Distribution)
    assert (law.batch_shape, law.event_shape, law.has_rsample) == ((), (2,), True)
    x = law.sample((6,))
    assert x.shape == (6, 2)
    assert not x.requires_grad
    assert law.rsample((6,)).requires_grad
    assert law.support.check(x).shape == (6,)
    assert bool(law.support.check(x).all())
    torch.testing.assert_close(law.log_prob(x.clone()), flow.log_prob(x))
    wide = law.expand((3, 4))
    assert wide.batch_shape == (3, 4)
    assert wide.rsample((2,)).shape == (2, 3, 4, 2)
    assert wide.log_prob(x[0]).shape == (3, 4)
    together = td.Independent(wide, 1, validate_args=False)
    assert (together.batch_shape, together.event_shape) == ((3,), (4, 2))
    y = together.rsample()
    torch.testing.assert_close(together.log_prob(y), flow.log_prob(y).sum(-1), rtol=1e-6, atol=1e-5)


def test_the_support_is_that_of_the_data():
    inside, outside = torch.tensor([0.1, 0.7]), torch.tensor([0.2, 0.8])
    support = made("bounded", 2, torch.float32)().support
    assert support.event_dim == 1
    assert support.check(torch.stack([inside, outside])).tolist() == [True, False]
    assert made("coupling")().support.check(outside * 1e9)
    assert Flow(HalfLine(0.0), StandardNormal(2))().support.check(outside)
    assert not Flow(HalfLine(0.0), StandardNormal(2))().support.check(-outside)


def test_expand_repeats_the_context():
    flow = made("coupling", context_features=1)
    context = torch.randn(4, 1, generator=gen()).double()
    law = flow(context).expand((3, 4))
    x = law.rsample((2,))
    assert x.shape == (2, 3, 4, 2)
    torch.testing.assert_close(law.log_prob(x.clone()), flow.log_prob(x, context))


# --- the kept density is the right one


def kept(name="coupling"):
    flow = made(name, 2)
    law = flow()
    return flow, law, law.rsample((5,))


def test_the_kept_density_is_used_once_and_is_right():
    flow, law, x = kept()
    calls = [count(part) for part in flow.modules() if hasattr(part, "last")]
    first = law.log_prob(x)
    assert not any(calls)
    torch.testing.assert_close(first, flow.log_prob(x))
    torch.testing.assert_close(law.log_prob(x.clone()), first)
    torch.testing.assert_close(law.log_prob(x[:2]), first[:2])


def test_a_step_of_the_parameters_is_seen():
    flow, law, x = kept()
    before = law.log_prob(x).detach()
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.1)
    flow.log_prob(x.detach()).sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = law.log_prob(x)
    torch.testing.assert_close(after, flow.log_prob(x))
    assert float((after - before).abs().max()) > 0.01


def test_a_change_of_the_sample_is_seen():
    flow = made("coupling")
    law = flow()
    with torch.no_grad():
        x = law.rsample((5,))
        before = law.log_prob(x)
        x += 1
        after = law.log_prob(x)
    torch.testing.assert_close(after, flow.log_prob(x))
    assert float((after - before).abs().max()) > 0.01


def test_a_sample_without_gradient_gets_a_density_with_one():
    flow = made("coupling")
    law = flow()
    x = law.sample((5,))
    assert law.log_prob(x).requires_grad
    x = law.rsample((5,))
    with torch.no_grad():
        assert not law.log_prob(x).requires_grad
    assert law.log_prob(x).requires_grad


def test_the_kept_density_has_the_gradient_of_the_sample():
    """Of log q(x(theta); theta): through the latents, and through x and the parameters."""
    flow, law, x = kept()
    weights = list(flow.parameters())
    options = {"retain_graph": True, "materialize_grads": True}  # log q has none in the location
    fast = torch.autograd.grad(law.log_prob(x).sum(), weights, **options)
    slow = torch.autograd.grad(flow.log_prob(x).sum(), weights, **options)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert any(bool(grad.any()) for grad in fast)


def test_a_law_keeps_the_parameters_that_it_was_made_with():
    """As Normal(loc, scale) does: `functional_call` lends tensors to a module, for one call."""
    flow = made("coupling")
    x = flow.sample(5, generator=gen())
    lent = {name: w.detach() + 0.3 for name, w in flow.named_parameters()}
    law = functional_call(flow, lent, ())
    twin = copy.deepcopy(flow)
    twin.load_state_dict(lent, strict=False)
    torch.testing.assert_close(law.log_prob(x), twin.log_prob(x))
    torch.testing.assert_close(law.expand((5,)).log_prob(x), twin.log_prob(x))
    assert not law.log_prob(x).requires_grad
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = law.rsample((4,))
        torch.manual_seed(0)
        theirs = twin.sample(4)
    torch.testing.assert_close(ours, theirs)
    assert float((law.log_prob(x) - flow.log_prob(x)).abs().max()) > 0.01
