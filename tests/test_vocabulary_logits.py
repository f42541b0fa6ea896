import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.cases import Case
from benchmarks.memory import step
from benchmarks.memory.live_memory import allocator_peak
from fast_electra.kernels import vocabulary_logits
from fast_electra.kernels.vocabulary_logits import cross_entropy, sample

NONE = torch.empty(0, dtype=torch.int64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.37, 2.0, 4.0])
def test_samples_follow_the_tempered_softmax(temperature):
    torch.manual_seed(1)
    logits = torch.randn(12) * 2
    uniforms = torch.rand(40_000, dtype=torch.float64)
    counts = torch.bincount(sample(logits.expand(40_000, 12), temperature, uniforms, NONE), minlength=12)
    expected = torch.softmax(logits.double() / temperature, dim=0) * 40_000
    assert stats.chisquare(counts.numpy(), expected.numpy() * counts.sum().item() / expected.sum().item()).pvalue > 1e-3


def test_entropy_of_samples_rises_with_temperature():
    torch.manual_seed(2)
    logits, uniforms = torch.randn(200) * 3, torch.rand(20_000, dtype=torch.float64)

    def entropy(temperature):
        share = torch.bincount(sample(logits.expand(20_000, 200), temperature, uniforms, NONE), minlength=200) / 20_000
        return float(-(share * share.clamp_min(1e-12).log()).sum())

    assert entropy(0.5) < entropy(1.0) < entropy(2.0) < entropy(4.0)


@pytest.mark.parametrize("uniform", [0.0, 2.0**-54, 0.5, 1 - 2.0**-54, 1.0])
def test_words_at_minus_infinity_are_never_drawn_even_at_the_ends(uniform):
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf])
    assert int(sample(logits[None], 1.0, torch.tensor([uniform], dtype=torch.float64), NONE)) in (1, 3)


@pytest.mark.parametrize("vocab_size", [5, 128, 1000, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_is_the_inverse_of_the_cumulative_softmax(vocab_size, dtype):
    """In float64 the number lies between what has passed before the word and with it."""
    torch.manual_seed(3)
    logits = (torch.randn(40, 3, vocab_size) * 4).to(dtype)
    numbers = torch.rand(40, 3, dtype=torch.float64)
    words = sample(logits, 1.5, numbers, torch.tensor([1, 3]))
    assert words.shape == (40, 3)
    exact = (logits.double() / 1.5).index_fill(-1, torch.tensor([1, 3]), -torch.inf).softmax(-1).cumsum(-1)
    passed = exact.gather(-1, words.unsqueeze(-1)).squeeze(-1)
    before = F.pad(exact, (1, 0)).gather(-1, words.unsqueeze(-1)).squeeze(-1)
    assert (before - 1e-6 <= numbers).all()
    assert (numbers <= passed + 1e-6).all()
    assert not torch.isin(words, torch.tensor([1, 3])).any()


def test_neither_chunks_nor_what_stands_beside_it_change_a_sample(monkeypatch):
    torch.manual_seed(4)
    logits, numbers = torch.randn(50, 700), torch.rand(50, dtype=torch.float64)
    kept = logits.clone()
    whole = sample(logits, 2.0, numbers, NONE)
    assert torch.equal(logits, kept)
    monkeypatch.setitem(vocabulary_logits.CHUNK_MIB, "cpu", 1e-6)
    assert torch.equal(whole, sample(logits, 2.0, numbers, NONE))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_stands_at_a_word_that_is_never_drawn_changes_nothing(broken):
    torch.manual_seed(7)
    logits, numbers = torch.randn(50, 300), torch.rand(50, dtype=torch.float64)
    never = torch.tensor([2, 299])
    found = sample(logits.index_fill(1, never, broken), 1.0, numbers, never)
    assert torch.equal(found, sample(logits, 1.0, numbers, never))


def test_of_broken_logits_a_word_too():
    logits = torch.full((2, 300), torch.nan)
    words = sample(logits, 1.0, torch.tensor([0.2, 0.9], dtype=torch.float64), NONE)
    assert ((words >= 0) & (words < 300)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_mib", [1e-6, 4])
def test_cross_entropy_and_its_gradient_are_torchs(dtype, chunk_mib, monkeypatch):
    monkeypatch.setitem(vocabulary_logits.CHUNK_MIB, "cpu", chunk_mib)
    torch.manual_seed(5)
    logits = (torch.randn(4, 6, 900) * 3).to(dtype)
    targets = torch.randint(900, (4, 6))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = cross_entropy(ours, targets)
    expected = F.cross_entropy(theirs.float().flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad)


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest float32 tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.dtype == torch.float32:
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return made


def test_float32_logits_are_never_whole(monkeypatch):
    """The largest float32 tensor that either makes is a chunk."""
    monkeypatch.setitem(vocabulary_logits.CHUNK_MIB, "cpu", 0.05)
    logits = torch.randn(64, 1000).bfloat16().requires_grad_()
    with Largest() as found:
        sample(logits, 1.0, torch.rand(64, dtype=torch.float64), NONE)
        cross_entropy(logits, torch.randint(1000, (64,))).backward()
    assert 0 < found.bytes <= 1.1 * 0.05 * 2**20 < 64 * 1000 * 4


@pytest.mark.parametrize("objective", ["frozen", "mlm", "joint_shallow"])
def test_they_are_not_in_a_step_of_training_and_its_metrics(objective, monkeypatch):
    monkeypatch.setitem(vocabulary_logits.CHUNK_MIB, "cpu", 0.5)
    case, cpu = Case("demo", objective, 64, 8192, "masked", 32), torch.device("cpu")
    of_run, module, _ = step.build(case, cpu)
    batch = step.batch(case, cpu)
    with Largest() as found:
        inputs = of_run.inputs(batch, 0.5)
        loss, *outputs = module(*inputs)
        loss.backward()
        of_run.counts(outputs, inputs)
    assert 0 < found.bytes < 0.5 * batch.positions.numel() * 8192 * 4


def test_nor_are_they_whole_where_a_compiler_takes_all_positions_at_once():
    """By the allocator, on the backend of a run: beside the gradient in the logits' own type, less than a tenth."""
    torch.manual_seed(6)
    whole, cpu = 4 * 64 * 30_000, torch.device("cpu")
    ours, plain = (torch.randn(64, 30_000).mul(3).bfloat16().requires_grad_() for _ in range(2))
    plain.data.copy_(ours.data)
    targets, numbers = torch.randint(30_000, (64,)), torch.rand(64, dtype=torch.float64)
    given = (torch.tensor(1.5, dtype=torch.float64), numbers, torch.arange(5))
    drawing, loss_of = (torch.compile(each, dynamic=False) for each in (sample, cross_entropy))
    assert torch.equal(drawing(ours, *given), sample(plain, *given))
    for logits, function in ((ours, loss_of), (plain, cross_entropy)):
        function(logits, targets).backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    assert allocator_peak(lambda: drawing(ours, *given), cpu) < 0.1 * whole
    ours.grad = None
    loss = []
    assert allocator_peak(lambda: loss.append(loss_of(ours, targets)), cpu) < 0.1 * whole
    assert ours.grad is None
    assert whole / 2 <= allocator_peak(loss[0].backward, cpu) < 0.6 * whole
