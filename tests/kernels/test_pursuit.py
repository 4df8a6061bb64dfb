"""Matching pursuit and orthogonal matching pursuit on a CPU: meaning, rules, gradients, bad input, peers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from sparsebook.kernels.pursuit import (
    PursuitCodes,
    Rule,
    _choose_form,
    matching_pursuit,
    matching_pursuit_reference,
    orthogonal_matching_pursuit,
    orthogonal_matching_pursuit_reference,
)
from sparsebook.kernels.pursuit.cpu import matching_pursuit_gradient_cpu
from sparsebook.kernels.pursuit.gradient import matching_pursuit_gradient

OPTIONS: dict[Rule, dict[str, bool]] = {
    Rule.POSITIVE: {},
    Rule.SIGNED: {"nonnegative": False},
    Rule.ABSOLUTE: {"nonnegative": False, "absolute": True},
}


def problem(rows: int, dim: int, atoms: int, groups: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [groups, rows, dim] and unit rows [groups, atoms, dim]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, rows, dim, generator=generator)
    return x, normalize(torch.randn(groups, atoms, dim, generator=generator), dim=-1)


def close(codes: PursuitCodes, reference: tuple[Tensor, Tensor, Tensor], tolerance: float = 1e-5) -> None:
    assert torch.equal(codes.indices, reference[0])
    for mine, exact in ((codes.coefficients, reference[1]), (codes.residual, reference[2])):
        torch.testing.assert_close(mine.double(), exact.double(), rtol=tolerance, atol=tolerance)


# What a step does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("use_gram", [True, False])
def test_the_residual_is_orthogonal_to_the_atom_taken_and_loses_its_energy(
    rule: Rule, use_gram: bool
) -> None:
    x, dictionary = (part[0] for part in problem(50, 24, 60))
    codes = matching_pursuit(
        x, dictionary, n_steps=8, return_path=True, use_gram=use_gram, **OPTIONS[rule]
    )  # fmt: skip
    assert codes.path is not None
    after = codes.path[:, 1:]
    products = (dictionary[codes.indices] * after).sum(-1)
    assert products.abs().max() < 1e-5
    lost = codes.path[:, :-1].square().sum(-1) - after.square().sum(-1)
    torch.testing.assert_close(lost, codes.coefficients.square(), rtol=1e-4, atol=1e-4)
    energy = codes.coefficients.square().sum(-1) + codes.residual.square().sum(-1)
    torch.testing.assert_close(energy, x.square().sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codes.residual, after[:, -1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x - codes.dense() @ dictionary, codes.residual, rtol=1e-4, atol=1e-5)


def test_a_dictionary_closed_under_sign_reaches_the_projection_on_its_span() -> None:
    x, dictionary = (part[0] for part in problem(30, 10, 4))
    both = torch.cat([dictionary, -dictionary])
    basis = torch.linalg.qr(dictionary.T)[0]
    outside = x - x @ basis @ basis.T
    for atoms, options in ((both, {}), (dictionary, OPTIONS[Rule.ABSOLUTE])):
        residual = matching_pursuit(x, atoms, n_steps=400, **options).residual
        torch.testing.assert_close(residual, outside, rtol=1e-5, atol=1e-5)
    stuck = matching_pursuit(x, dictionary, n_steps=400).residual
    assert (stuck - outside).norm(dim=-1).median() > 0.1


def test_the_signed_maximum_stops_inside_the_cone() -> None:
    """Two atoms 60 degrees apart, x between them at 20: the first pick overshoots, nothing takes it back."""
    angle = torch.tensor([0.0, math.pi / 3, math.pi / 9], dtype=torch.float64)
    directions = torch.stack([angle.cos(), angle.sin()], -1)
    dictionary, x = directions[:2], directions[2]
    for options in (OPTIONS[Rule.POSITIVE], OPTIONS[Rule.SIGNED]):
        for n_steps in (2, 50):
            codes = matching_pursuit(x, dictionary, n_steps=n_steps, **options)
            assert codes.residual.norm().item() == pytest.approx(0.171, abs=5e-4)
    assert matching_pursuit(x, dictionary, n_steps=50, **OPTIONS[Rule.ABSOLUTE]).residual.norm() < 1e-6


@pytest.mark.parametrize(("rule", "expected"), [(0, [-1]), (1, [0]), (2, [1])])
def test_what_the_rules_do_with_negative_correlations(rule: int, expected: list[int]) -> None:
    dictionary = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    codes = matching_pursuit(torch.tensor([-1.0, 0.0]), dictionary, n_steps=1, **OPTIONS[Rule(rule)])
    assert codes.indices.tolist() == expected
    assert codes.coefficients.tolist() == pytest.approx([[0.0], [-0.6], [-1.0]][rule])


def test_stops() -> None:
    dictionary = torch.eye(3)
    x = torch.tensor([[3.0, 2.0, 1.0], [3.0, 0.01, 0.0], [0.0, 0.0, 0.0], [0.001, 0.0, 0.0]])
    codes = matching_pursuit(x, dictionary, tolerance=0.05, stop_on_repeat=True)
    # Down to nothing; below the tolerance after a step; nothing to take; the first step is always done.
    assert codes.indices.tolist() == [[0, 1, 2], [0, -1, -1], [-1, -1, -1], [0, -1, -1]]
    assert codes.n_active().tolist() == [3, 1, 0, 1]
    angle = torch.tensor([0.0, math.pi / 3])
    frame = torch.stack([angle.cos(), angle.sin()], -1)
    slow = matching_pursuit(torch.tensor([[0.5, 0.9]]), -frame, stop_on_repeat=True, **OPTIONS[Rule.ABSOLUTE])
    assert slow.indices.tolist() == [[1, 0, 1]]  # the repeated step is applied before the row stops
    assert slow.n_active().item() == 2


def test_the_path_cut_short_is_a_shorter_pursuit() -> None:
    x, dictionary = (part[0] for part in problem(40, 16, 50))
    whole = matching_pursuit(x, dictionary, n_steps=10, return_path=True)
    for n_steps in (1, 4, 10):
        cut, short = whole.first(n_steps), matching_pursuit(x, dictionary, n_steps=n_steps)
        assert torch.equal(cut.indices, short.indices)
        torch.testing.assert_close(cut.residual, short.residual, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cut.dense(), short.dense())
    with pytest.raises(ValueError, match="n_steps must be in"):
        whole.first(11)
    with pytest.raises(ValueError, match="path is missing"):
        orthogonal_matching_pursuit(x, dictionary, n_steps=3).first(2)


def test_one_shot_top_k_is_no_pursuit() -> None:
    """The twin that takes the T largest correlations at once leaves more, and breaks what a step does."""
    x, dictionary = (part[0] for part in problem(200, 24, 96))
    pursued = matching_pursuit(x, dictionary, n_steps=6).residual
    values, indices = (x @ dictionary.T).topk(6)
    at_once = x - (values[..., None] * dictionary[indices]).sum(1)
    assert (at_once.norm(dim=-1) > pursued.norm(dim=-1)).float().mean() > 0.95
    assert (dictionary[indices[:, -1]] * at_once).sum(-1).abs().median() > 0.05


# Forms, types, shapes ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 3)),
    n_steps=st.integers(1, 12),
    rule=st.sampled_from(list(Rule)),
    limits=st.sampled_from([(0.0, False), (1.0, False), (0.0, True), (0.3, True)]),
    seed=st.integers(0, 1000),
)
def test_both_forms_agree_with_the_reference(
    sizes: tuple[int, int, int, int], n_steps: int, rule: Rule, limits: tuple[float, bool], seed: int
) -> None:
    """Any shape, T > p too. Picks may differ where only rounding decides, so what they leave is compared."""
    x, dictionary = problem(*sizes, seed=seed)
    exact = matching_pursuit_reference(x.double(), dictionary.double(), n_steps, *limits[:1], rule, limits[1])
    for use_gram in (True, False):
        codes = matching_pursuit(
            x, dictionary, n_steps=n_steps, tolerance=limits[0] or None, stop_on_repeat=limits[1],
            use_gram=use_gram, **OPTIONS[rule],
        )  # fmt: skip
        torch.testing.assert_close(codes.residual.double(), exact[2], rtol=1e-4, atol=1e-4)
        left = x - codes.dense() @ dictionary
        torch.testing.assert_close(codes.residual, left, rtol=1e-4, atol=1e-4)
        assert ((codes.indices == -1) == (codes.coefficients == 0)).all()


@pytest.mark.parametrize("rule", list(Rule))
def test_float32_takes_the_picks_of_float64_where_they_are_clear(rule: Rule) -> None:
    """Rows whose two best correlations differ by more than 1e-4 at every step: the other rows are few."""
    x, dictionary = problem(400, 32, 200)
    exact = matching_pursuit(x.double(), dictionary.double(), n_steps=10, return_path=True, **OPTIONS[rule])
    assert exact.path is not None
    score = exact.path[..., :-1, :] @ dictionary.double().mT[:, None]
    best = (score.abs() if rule == Rule.ABSOLUTE else score).topk(2).values
    clear = ((best[..., 0] - best[..., 1]) > 1e-4).all(-1)
    assert clear.float().mean() > 0.9
    for use_gram in (True, False):
        fast = matching_pursuit(x, dictionary, n_steps=10, use_gram=use_gram, **OPTIONS[rule])
        assert torch.equal(fast.indices[clear], exact.indices[clear])
        torch.testing.assert_close(
            fast.coefficients[clear], exact.coefficients[clear].float(), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("use_gram", [True, False])
def test_many_chunks_and_long_dictionaries(use_gram: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 rows, and of two groups of three."""
    monkeypatch.setattr("sparsebook.kernels.pursuit.cpu._CORRELATIONS", 5000)
    for sizes in ((50, 20, 700, 1), (10, 8, 100, 3)):
        x, dictionary = problem(*sizes)
        exact = matching_pursuit_reference(x.double(), dictionary.double(), 3, 0.0, 0, False)
        close(matching_pursuit(x, dictionary, n_steps=3, use_gram=use_gram), exact)
        fitted = orthogonal_matching_pursuit_reference(x.double(), dictionary.double(), 3, 0.0)
        close(orthogonal_matching_pursuit(x, dictionary, n_steps=3, use_gram=use_gram), fitted, 1e-4)


def test_the_cheaper_form_is_chosen() -> None:
    """A Gram matrix pays for many vectors, for small dictionaries, and where it is given."""
    x, dictionary = torch.empty(1, 4096, 384), torch.empty(1, 4096, 384)
    for kept in (0.0, 8.0):
        assert _choose_form(x, dictionary, None, 16, kept)
        assert not _choose_form(x[:, :8], dictionary, None, 16, kept)
        assert _choose_form(torch.empty(90, 200, 20), torch.empty(90, 20, 20), None, 20, kept)
    assert _choose_form(x[:, :8], dictionary, torch.empty(1, 4096, 4096), 16, 0.0)
    assert not _choose_form(x, torch.empty(1, 32_768, 1).expand(1, 32_768, 384), None, 16, 0.0)


def test_ties_go_to_the_lowest_index() -> None:
    x, dictionary = (part[0] for part in problem(30, 12, 70))
    twice = torch.cat([dictionary, dictionary])
    for pursue in (matching_pursuit, orthogonal_matching_pursuit):
        for use_gram in (True, False):
            codes = pursue(x, twice, n_steps=6, use_gram=use_gram)
            assert codes.indices[:, 0].max() < 70
            once = pursue(x, dictionary, n_steps=6, use_gram=use_gram)
            torch.testing.assert_close(codes.residual, once.residual, rtol=1e-4, atol=1e-5)


def test_every_leading_shape() -> None:
    x, dictionaries = problem(24, 8, 20, groups=3)
    stacked = matching_pursuit(x.view(3, 4, 6, 8), dictionaries, n_steps=3, return_path=True)
    assert stacked.path is not None
    assert stacked.indices.shape == (3, 4, 6, 3)
    assert stacked.path.shape == (3, 4, 6, 4, 8)
    assert stacked.dense().shape == (3, 4, 6, 20)
    for g in range(3):
        alone = matching_pursuit(x[g], dictionaries[g], n_steps=3)
        assert torch.equal(stacked.indices[g].view(24, 3), alone.indices)
        torch.testing.assert_close(stacked.residual[g].view(24, 8), alone.residual)
    single = matching_pursuit(x[0, 0], dictionaries[0], n_steps=3)
    assert single.indices.tolist() == stacked.indices[0, 0, 0].tolist()
    strided = matching_pursuit(x[0].T.contiguous().T, dictionaries[0].T.contiguous().T, n_steps=3)
    assert torch.equal(strided.indices, stacked.indices[0].view(24, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    x, dictionary = (part[0].to(dtype).requires_grad_() for part in problem(20, 16, 40))
    codes = matching_pursuit(x, dictionary, n_steps=4)
    exact = matching_pursuit(x.detach().float(), dictionary.detach().float(), n_steps=4)
    assert codes.coefficients.dtype == codes.residual.dtype == dtype
    assert torch.equal(codes.indices, exact.indices)
    torch.testing.assert_close(codes.coefficients, exact.coefficients.to(dtype))
    codes.residual.square().sum().backward()
    assert x.grad is not None
    assert dictionary.grad is not None
    assert x.grad.dtype == dictionary.grad.dtype == dtype


def test_a_given_gram_matrix() -> None:
    x, dictionary = (part[0] for part in problem(50, 16, 45))
    for pursue in (matching_pursuit, orthogonal_matching_pursuit):
        given, own = (pursue(x, dictionary, n_steps=5, gram=g) for g in (dictionary @ dictionary.T, None))
        assert torch.equal(given.indices, own.indices)
        torch.testing.assert_close(given.residual, own.residual)


# Orthogonal pursuit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_gram", [True, False])
def test_orthogonal_pursuit_fits_all_atoms(use_gram: bool) -> None:
    x, dictionary = problem(60, 24, 80, groups=2)
    dictionary *= torch.rand(2, 80, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    exact = orthogonal_matching_pursuit_reference(x.double(), dictionary.double(), 8, 0.0)
    codes = orthogonal_matching_pursuit(x, dictionary, n_steps=8, use_gram=use_gram)
    close(codes, exact, 1e-4)
    assert (codes.n_active() == 8).all()
    group = torch.arange(2)[:, None, None]
    products = (dictionary[group, codes.indices] * codes.residual[:, :, None]).sum(-1)
    assert products.abs().max() < 1e-4
    loose = orthogonal_matching_pursuit_reference(x.double(), dictionary.double(), 8, 3.0)
    close(
        orthogonal_matching_pursuit(x, dictionary, n_steps=8, tolerance=3.0, use_gram=use_gram), loose, 1e-4
    )
    assert (loose[0] == -1).any()


@pytest.mark.parametrize("use_gram", [True, False])
def test_orthogonal_pursuit_ends_when_nothing_is_left(use_gram: bool) -> None:
    dictionary = problem(1, 12, 6)[1][0]
    x = torch.stack([2 * dictionary[4] - dictionary[1], torch.zeros(12)])
    codes = orthogonal_matching_pursuit(x, torch.cat([dictionary, -dictionary]), n_steps=6, use_gram=use_gram)
    assert codes.n_active().tolist() == [2, 0]
    assert codes.residual.norm() < 1e-5


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_orthogonal_pursuit_is_scikit_learns() -> None:
    from sklearn.linear_model import orthogonal_mp, orthogonal_mp_gram

    x, dictionary = (part[0] for part in problem(40, 32, 100))
    D, X = dictionary.double().numpy(), x.double().numpy()
    theirs = torch.from_numpy(orthogonal_mp(D.T, X.T, n_nonzero_coefs=8).T)
    by_gram = torch.from_numpy(orthogonal_mp_gram(D @ D.T, D @ X.T, n_nonzero_coefs=8).T)
    torch.testing.assert_close(theirs, by_gram)
    for use_gram in (True, False):
        mine = orthogonal_matching_pursuit(x, dictionary, n_steps=8, use_gram=use_gram).dense()
        assert torch.equal(mine != 0, theirs != 0)
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)
    exact = orthogonal_matching_pursuit(x.double(), dictionary.double(), n_steps=8).dense()
    torch.testing.assert_close(exact, theirs, rtol=1e-9, atol=1e-9)


# Other people's loops ------------------------------------------------------------------------------------


def sae_lens_rule(x: Tensor, dictionary: Tensor, threshold: float, steps: int) -> Tensor:
    """The published toy's loop with a cap: ReLU, all rows at once, support compared with the last one."""
    residual, codes = x.clone(), x.new_zeros(len(x), len(dictionary))
    support, done = codes != 0, torch.zeros(len(x), dtype=torch.bool)
    for _ in range(steps):
        value, index = (residual @ dictionary.T).relu().max(1)
        taken = torch.where(done, 0.0, value)[:, None] * one_hot(index, len(dictionary))
        codes, residual = codes + taken, residual - taken @ dictionary
        before, support = support, codes != 0
        done = done | (support == before).all(1) | (residual.norm(dim=1) < threshold)
    return codes


@pytest.mark.parametrize(("threshold", "dim", "atoms"), [(0.01, 12, 30), (0.05, 20, 20), (0.8, 12, 30)])
def test_the_rule_of_the_published_toy(threshold: float, dim: int, atoms: int) -> None:
    x, dictionary = (part[0].double() for part in problem(300, dim, atoms))
    dictionary = dictionary * torch.linspace(0.95, 1.05, atoms)[:, None].double()
    theirs = sae_lens_rule(x, dictionary, threshold, dim)
    mine = matching_pursuit(x, dictionary, n_steps=dim, tolerance=threshold, stop_on_repeat=True)
    torch.testing.assert_close(mine.dense(), theirs, rtol=1e-9, atol=1e-9)
    fast = matching_pursuit(
        x.float(), dictionary.float(), n_steps=dim, tolerance=threshold, stop_on_repeat=True
    )
    torch.testing.assert_close(fast.dense().double(), theirs, rtol=1e-3, atol=1e-3)


def test_the_rule_of_a_fixed_number_of_steps() -> None:
    """As `overcomplete` encodes: the signed maximum as it is, dense one-hot codes."""
    x, dictionary = (part[0] for part in problem(100, 16, 60))
    residual, codes = x.clone(), x.new_zeros(100, 60)
    for _ in range(5):
        value, index = (residual @ dictionary.T).max(1)
        taken = value[:, None] * one_hot(index, 60)
        codes, residual = codes + taken, residual - taken @ dictionary
    mine = matching_pursuit(x, dictionary, n_steps=5, nonnegative=False)
    torch.testing.assert_close(mine.dense(), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.residual, residual, rtol=1e-4, atol=1e-5)


# Gradients -----------------------------------------------------------------------------------------------


def clear_rows(x: Tensor, dictionary: Tensor, n_steps: int, rule: Rule) -> Tensor:
    """Rows of x whose two best correlations differ by more than 1e-3 at every step, and is not 0."""
    path = matching_pursuit(x, dictionary, n_steps=n_steps, return_path=True, **OPTIONS[rule]).path
    assert path is not None
    score = path[:, :-1] @ dictionary.T
    best = (score.abs() if rule == Rule.ABSOLUTE else score).topk(2).values
    return x[((best[..., 0] - best[..., 1] > 1e-3) & (best[..., 0].abs() > 1e-3)).all(-1)]


@pytest.mark.parametrize("rule", list(Rule))
def test_gradients_of_matching_pursuit(rule: Rule) -> None:
    x, dictionary = (part[0].double() for part in problem(12, 5, 9))
    x = clear_rows(x, dictionary, 4, rule)[:6]
    assert len(x) >= 4

    def loss(x: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        codes = matching_pursuit(x, dictionary, n_steps=4, **OPTIONS[rule])
        return codes.dense(), codes.residual.square().sum(-1)

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), dictionary.requires_grad_()))


def test_gradients_are_those_of_the_unrolled_loop() -> None:
    """Autograd through plain steps with the same picks, at early stops too, and with float32's own code."""
    x, dictionary = (part.double().requires_grad_() for part in problem(30, 12, 25, groups=2))
    codes = matching_pursuit(x, dictionary, n_steps=6, tolerance=1.5, stop_on_repeat=True)
    assert (codes.indices == -1).any()
    weight = torch.randn(codes.coefficients.shape, generator=torch.Generator().manual_seed(1)).double()
    ((weight * codes.coefficients).sum() + codes.residual.pow(3).sum()).backward()
    mine = x.grad, dictionary.grad

    x2, dictionary2 = (part.detach().clone().requires_grad_() for part in (x, dictionary))
    residual, total = x2, x2.new_zeros(())
    for t in range(6):
        pick = codes.indices[..., t]
        atom = dictionary2[torch.arange(2)[:, None], pick.clamp(min=0)]
        coefficient = torch.where(pick >= 0, (atom * residual).sum(-1), 0.0)
        total = total + (weight[..., t] * coefficient).sum()
        residual = residual - coefficient[..., None] * atom
    (total + residual.pow(3).sum()).backward()
    for a, b in zip(mine, (x2.grad, dictionary2.grad), strict=True):
        torch.testing.assert_close(a, b)

    grads = (weight, codes.residual.detach() * 2, dictionary.detach())
    saved = (codes.indices, codes.coefficients.detach(), codes.residual.detach())
    exact = matching_pursuit_gradient(*grads, *saved)
    fast = matching_pursuit_gradient_cpu(
        *(g.float() for g in grads), saved[0], *(s.float() for s in saved[1:])
    )
    for a, b in zip(fast, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_gradients_of_orthogonal_matching_pursuit() -> None:
    x, dictionary = (part[0].double() for part in problem(2, 4, 5, seed=2))

    def loss(x: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        codes = orthogonal_matching_pursuit(x, dictionary, n_steps=2, tolerance=0.8)
        return codes.dense(), codes.residual

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), dictionary.requires_grad_()))


def test_backward_keeps_no_more_than_the_picks() -> None:
    x, dictionary = (part[0].requires_grad_() for part in problem(64, 32, 500))
    codes = matching_pursuit(x, dictionary, n_steps=10)
    node = codes.residual.grad_fn
    while node is not None and not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]
    kept = sum(tensor.numel() for tensor in node.saved_tensors)  # type: ignore[union-attr]
    assert kept == dictionary.numel() + x.numel() + 2 * 64 * 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators(dtype: torch.dtype) -> None:
    x, dictionary = (part.to(dtype).requires_grad_() for part in problem(6, 8, 12, groups=2))
    operators = torch.ops.sparsebook
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, options in (
        (operators.matching_pursuit, (3, 0.0, 1, False, True)),
        (operators.orthogonal_matching_pursuit, (3, 0.0, True)),
    ):
        torch.library.opcheck(operator.default, (x, dictionary, None, *options), test_utils=checks)
        arguments = operator(x.detach(), dictionary.detach(), None, *options)
        gradient = getattr(operators, operator._qualified_op_name.split("::")[1] + "_backward")
        torch.library.opcheck(
            gradient.default,
            (*arguments[:2], dictionary.detach(), arguments[2], *arguments[:2]),
            test_utils=checks,
        )


# Bad input -----------------------------------------------------------------------------------------------

UNIT = torch.eye(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x must have shape \(..., 4\)"),
        ({"x": torch.zeros(3, 4), "dictionary": UNIT.expand(2, 4, 4)}, r"x must have shape \(2, ..., 4\)"),
        ({"x": torch.zeros(0, 4)}, "x must hold at least one vector"),
        ({"x": torch.tensor([[1.0, math.nan, 0.0, 0.0]])}, "x must be finite"),
        ({"x": torch.full((1, 4), math.inf)}, "x must be finite"),
        ({"x": torch.zeros(2, 4).double()}, "dictionary must be float32"),
        ({"dictionary": torch.zeros(4)}, "dictionary must have shape"),
        ({"dictionary": torch.zeros(0, 4)}, "dictionary must have shape"),
        ({"dictionary": UNIT * math.nan}, "dictionary must be finite"),
        ({"dictionary": UNIT * torch.tensor([[1.0], [1.0], [0.0], [1.0]])}, "zero atom, got one in row 2"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"tolerance": -1.0}, "tolerance must be positive"),
        ({"tolerance": math.nan}, "tolerance must be positive"),
        ({"gram": torch.eye(3)}, "gram must be torch.float32 of shape"),
        ({"gram": 2 * UNIT}, "its diagonal differs"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.ones(2, 4), "dictionary": UNIT, "n_steps": 2} | changes
    x, dictionary = arguments.pop("x"), arguments.pop("dictionary")
    for pursue in (matching_pursuit, orthogonal_matching_pursuit):
        with pytest.raises(ValueError, match=message):
            pursue(x, dictionary, **arguments)


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="absolute needs nonnegative=False"):
        matching_pursuit(torch.ones(4), UNIT, n_steps=2, absolute=True)
    with pytest.raises(ValueError, match="n_steps must be given"):
        matching_pursuit(torch.ones(4), UNIT, tolerance=0.1)
    with pytest.raises(ValueError, match="n_steps must be at most 4"):
        orthogonal_matching_pursuit(torch.ones(4), UNIT, n_steps=5)


def test_tiny_and_huge_atoms_are_neither_zero_nor_infinite() -> None:
    dictionary = torch.tensor([[1e-30, 0.0], [0.0, 1e30]])
    codes = matching_pursuit(torch.tensor([1.0, 0.0]), dictionary, n_steps=1)
    assert codes.indices.tolist() == [0]
