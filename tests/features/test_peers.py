"""The autoencoders against SAELens and dictionary-learning: same weights, same codes, losses and gradients.

Neither package is a dependency; a test whose package is missing is skipped. To run them, put the unpacked
wheels of sae-lens and dictionary-learning on PYTHONPATH. What those import at their top and what an
autoencoder never touches (language models, data sets) need not be there: see `selection_kernels.peers`.

Where the packages define something differently, the test says what, and compares what is defined alike:

- SAELens reads a BatchTopK budget as the integer below ``k B``, this book rounds; here ``k B`` is whole.
- dictionary-learning's JumpReLU takes no bias from the input, and its L0 is counted from the codes and not
  from the affinities, so that only tokens above a threshold move it.
- The loss of TopK and BatchTopK is divided here by the variance of the batch, as OpenAI's program does, and
  there it is not.
- SAELens' loss for dead latents has another scale than OpenAI's, which dictionary-learning and this book
  have.
"""

import importlib
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from sparsebook.experiments.selection_kernels import peers
from sparsebook.features.sae import BatchTopKSAE, JumpReLUSAE, SelectionSAE, TopKSAE
from sparsebook.features.trainer import auxiliary_loss

pytestmark = pytest.mark.peer
WIDTH, LATENTS, TOKENS, K = 24, 96, 64, 5
CLOSE = {"rtol": 1e-4, "atol": 2e-6}
SAE_LENS = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU"}


@pytest.fixture(autouse=True)
def _modules_as_before():
    """Packages loaded without their own ``__init__`` are not left to other tests."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("sae_lens", "dictionary_learning", "transformer_lens"):
            del sys.modules[name]


@pytest.fixture
def sae_lens():
    """SAELens' three training autoencoders and the input of a step."""
    _needed("sae_lens")
    load = {
        name: peers._module(f"sae_lens.saes.{name}_sae", peers._bare_sae_lens)
        for name in ("topk", "batchtopk", "jumprelu")
    }
    registry = importlib.import_module("sae_lens.registry")
    for kind, name in SAE_LENS.items():  # what the package's own __init__ does, where it ran
        if kind not in registry.SAE_TRAINING_CLASS_REGISTRY:
            classes = (
                getattr(load[kind], f"{name}TrainingSAE"),
                getattr(load[kind], f"{name}TrainingSAEConfig"),
            )
            registry.register_sae_training_class(kind, *classes)
        if kind == "jumprelu" and kind not in registry.SAE_CLASS_REGISTRY:
            registry.register_sae_class(kind, load[kind].JumpReLUSAE, load[kind].JumpReLUSAEConfig)
    return SimpleNamespace(**load, step=sys.modules["sae_lens.saes.sae"].TrainStepInput)


@pytest.fixture
def dictionary_learning():
    """dictionary-learning's trainers of the same three."""
    _needed("dictionary_learning")

    def bare():
        peers._bare("dictionary_learning")
        peers._bare("dictionary_learning.trainers")

    load = {
        name: peers._module(f"dictionary_learning.trainers.{name}", bare)
        for name in ("top_k", "batch_top_k", "jumprelu")
    }
    return SimpleNamespace(**load)


def _needed(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def tokens():
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def shaken(sae):
    """The autoencoder with biases that are not zero and an encoder that is not the decoder's transpose."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (sae.pre_bias, sae.encoder_bias, sae.encoder):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return sae


def ours(kind):
    """Our autoencoder of a kind, thresholds among the affinities where it has any."""
    if kind == "topk":
        return shaken(TopKSAE(WIDTH, LATENTS, K))
    if kind == "batchtopk":
        return shaken(BatchTopKSAE(WIDTH, LATENTS, K))
    return shaken(JumpReLUSAE(WIDTH, LATENTS, 0.3, bandwidth=0.4, initial_threshold=0.5))


def run(sae, x):
    """Its dense codes, reconstruction and loss, undivided; gradients are left at the parameters."""
    output = sae(x)
    loss = sum(sae.loss_terms(x, output).values())
    if isinstance(sae, SelectionSAE):
        loss = loss * (x - x.mean(0)).square().sum(-1).mean()
    loss.backward()
    return output.codes.dense(), output.reconstruction, loss


# SAELens -------------------------------------------------------------------------------------------------


def of_sae_lens(sae_lens, kind, own):
    module, name = getattr(sae_lens, kind), SAE_LENS[kind]
    knobs = {"d_in": WIDTH, "d_sae": LATENTS}
    if kind == "jumprelu":
        knobs |= {"jumprelu_bandwidth": own.bandwidth, "l0_coefficient": float(own.sparsity)}
    else:
        knobs |= {"k": K, "rescale_acts_by_decoder_norm": False}
    peer = getattr(module, f"{name}TrainingSAE")(getattr(module, f"{name}TrainingSAEConfig")(**knobs))
    with torch.no_grad():
        peer.W_enc.copy_(own.encoder.T)
        peer.b_enc.copy_(own.encoder_bias)
        peer.W_dec.copy_(own.decoder)
        peer.b_dec.copy_(own.pre_bias)
        if kind == "jumprelu":
            peer.threshold.copy_(own.log_threshold.exp())
    return peer


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_sae_lens_gives_the_same_codes_losses_and_gradients(sae_lens, kind):
    own, x = ours(kind), tokens()
    peer = of_sae_lens(sae_lens, kind, own)
    coefficients = {"l0": 0.3} if kind == "jumprelu" else {}
    found = peer.training_forward_pass(
        sae_lens.step(
            sae_in=x,
            dead_neuron_mask=None,
            coefficients=coefficients,
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    found.loss.backward()
    codes, reconstruction, loss = run(own, x)
    assert 0 < (codes != 0).sum() < codes.numel()
    assert ((codes != 0) == (found.feature_acts != 0)).all()
    torch.testing.assert_close(codes, found.feature_acts, **CLOSE)
    torch.testing.assert_close(reconstruction, found.sae_out, **CLOSE)
    torch.testing.assert_close(loss, found.loss, **CLOSE)
    torch.testing.assert_close(own.encoder.grad, peer.W_enc.grad.T, **CLOSE)
    torch.testing.assert_close(own.encoder_bias.grad, peer.b_enc.grad, **CLOSE)
    torch.testing.assert_close(own.decoder.grad, peer.W_dec.grad, **CLOSE)
    torch.testing.assert_close(own.pre_bias.grad, peer.b_dec.grad, **CLOSE)
    if kind == "jumprelu":  # ours is the gradient of the logarithm
        assert peer.threshold.grad.abs().max() > 0
        expected = peer.threshold.grad * own.log_threshold.detach().exp()
        torch.testing.assert_close(own.log_threshold.grad, expected, **CLOSE)


# dictionary-learning -------------------------------------------------------------------------------------


def copied(peer, own):
    """A peer's autoencoder with linear layers, given our weights."""
    with torch.no_grad():
        peer.encoder.weight.copy_(own.encoder)
        peer.encoder.bias.copy_(own.encoder_bias)
        peer.decoder.weight.copy_(own.decoder.T)
        peer.b_dec.copy_(own.pre_bias)
    return peer


def test_dictionary_learning_has_the_same_topk(dictionary_learning):
    own, x = ours("topk"), tokens()
    peer = copied(dictionary_learning.top_k.AutoEncoderTopK(WIDTH, LATENTS, K), own)
    expected = peer.encode(x)
    back = peer.decode(expected)
    (x - back).square().sum(-1).mean().backward()
    codes, reconstruction, _ = run(own, x)
    torch.testing.assert_close(codes, expected, **CLOSE)
    torch.testing.assert_close(reconstruction, back, **CLOSE)
    torch.testing.assert_close(own.encoder.grad, peer.encoder.weight.grad, **CLOSE)
    torch.testing.assert_close(own.decoder.grad, peer.decoder.weight.grad.T, **CLOSE)


def test_dictionary_learning_has_the_same_batchtopk_by_both_rules(dictionary_learning):
    own, x = ours("batchtopk"), tokens()
    peer = copied(dictionary_learning.batch_top_k.BatchTopKSAE(WIDTH, LATENTS, K), own)
    torch.testing.assert_close(own.encode(x).dense(), peer.encode(x, use_threshold=False), **CLOSE)
    own.calibrate_thresholds([x])
    # What is kept lies at or above our threshold, strictly above theirs.
    peer.threshold.copy_(own.threshold - 1e-6)
    read = own.encode(x, mode="threshold").dense()
    torch.testing.assert_close(read, peer.encode(x, use_threshold=True), **CLOSE)
    assert int((read != 0).sum()) == K * TOKENS


def test_dictionary_learning_has_the_same_loss_for_dead_latents(dictionary_learning):
    own, x = ours("topk"), tokens()
    trainer = dictionary_learning.top_k.TopKTrainer(
        5000, WIDTH, LATENTS, K, layer=0, lm_name="none", device="cpu", seed=0
    )
    copied(trainer.ae, own)
    dead = torch.arange(LATENTS) % 2 == 0
    trainer.num_tokens_since_fired[dead] = trainer.dead_feature_threshold
    output = own(x)
    *_, post_relu = trainer.ae.encode(x, return_topk=True)
    expected = trainer.get_auxiliary_loss((x - output.reconstruction).detach(), post_relu)
    found = auxiliary_loss(own, x, output, dead.float(), trainer.top_k_aux)
    assert found > 0
    torch.testing.assert_close(found, expected, **CLOSE)


def test_dictionary_learning_has_the_same_jumprelu(dictionary_learning):
    own, x = ours("jumprelu"), tokens()
    trainer = dictionary_learning.jumprelu.JumpReluTrainer(
        5000, WIDTH, LATENTS, layer=0, lm_name="none", bandwidth=own.bandwidth, sparsity_penalty=0.0
    )
    peer = trainer.ae
    with torch.no_grad():
        own.pre_bias.zero_()
        peer.W_enc.copy_(own.encoder.T)
        peer.b_enc.copy_(own.encoder_bias)
        peer.W_dec.copy_(own.decoder)
        peer.threshold.copy_(own.log_threshold.exp())
        own.sparsity.zero_()
    found = trainer.loss(x, step=5)
    found.backward()
    codes, _, loss = run(own, x)
    torch.testing.assert_close(codes, peer.encode(x), **CLOSE)
    torch.testing.assert_close(loss, found, **CLOSE)
    torch.testing.assert_close(own.encoder.grad, peer.W_enc.grad.T, **CLOSE)
    torch.testing.assert_close(own.decoder.grad, peer.W_dec.grad, **CLOSE)
    # Their rectangle counts its borders as our own does not; no affinity lies on one.
    expected = peer.threshold.grad * own.log_threshold.detach().exp()
    torch.testing.assert_close(own.log_threshold.grad, expected, **CLOSE)
