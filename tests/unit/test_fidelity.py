"""With `fusion="mean"` and `library="learned"` CLUE is the authors' model: same losses, same gradients.

The reference is `scglue.models.scclue` (scglue 0.4.1). Weights are copied into our network, both get
the same mini-batch and the same noise, and every loss term and gradient is compared. Dropout is off; batch
normalisation is as in training.
"""

import pytest
import torch
from counts import sparse_counts

from clue import network as clue_network
from clue.batches import MiniBatch, Seen
from clue.network import Network, Objective

N_CELLS, N_LATENT, N_HIDDEN, N_BATCHES = 48, 5, 16, 3
WIDTH = {"rna": 12, "atac": 9, "adt": 7}
FEATURES = {"rna": 30, "atac": 40, "adt": 11}
OBJECTIVE = Objective(self_elbo=1.0, kl=0.3, cross=0.7, source_cross=0.4, mse=0.6, adversarial=0.5)
TOLERANCE = 1e-4

scclue = pytest.importorskip("scglue.models.scclue", reason="scglue, the authors' implementation, is not installed")


def reference_trainer(modalities):
    from scglue.models.sc import Prior

    torch.manual_seed(0)
    k = len(modalities)
    labels = [str(i) for i in range(N_BATCHES)]
    size = {"h_depth": 2, "h_dim": N_HIDDEN, "dropout": 0.0}
    encoders = {m: scclue.NBCompositeDataEncoder(WIDTH[m], FEATURES[m], N_LATENT, k, **size) for m in modalities}
    decoders = {m: scclue.NBDataDecoder(N_LATENT, FEATURES[m], batches=labels, **size) for m in modalities}
    discriminator = scclue.Discriminator(N_LATENT * k, k, batches=labels, **size)
    net = scclue.SCCLUE(encoders, decoders, discriminator, Prior()).to("cpu")
    net.device = torch.device("cpu")
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for encoder in encoders.values():
        torch.nn.init.uniform_(encoder.est_l.weight, 0.1, 2.0)
    weights = {"lam_data": OBJECTIVE.self_elbo, "lam_kl": OBJECTIVE.kl, "lam_align": OBJECTIVE.adversarial}
    weights |= {"lam_joint_cross": OBJECTIVE.cross, "lam_real_cross": OBJECTIVE.source_cross, "lam_cos": OBJECTIVE.mse}
    weights |= {"lam_sup": 0.0, "modality_weight": dict.fromkeys(modalities, 1.0)}
    return scclue.SCCLUETrainer(net, **weights, normalize_u=True, optim="RMSprop", lr=1e-3)


def our_network(modalities):
    widths, features = ({m: sizes[m] for m in modalities} for sizes in (WIDTH, FEATURES))
    layers = dict.fromkeys(("encoder", "decoder", "discriminator"), (2, N_HIDDEN))
    settings = {"dropout": 0.0, "fusion": "mean", "library": "learned", "normalize": True}
    return Network(widths, features, N_BATCHES, n_latent=N_LATENT, **layers, **settings)


def counterparts(net, network):
    """Yield (name, their parameter, ours, whether theirs is transposed)."""
    for m in network.modalities:
        for theirs, ours in zip(net.x2u[m].encoders, network.encoders[m].subspaces, strict=True):
            for layer in range(2):
                linear, norm = ours.hidden[4 * layer], ours.hidden[4 * layer + 2]
                yield from _pairs(f"{m} encoder", getattr(theirs, f"linear_{layer}"), linear)
                yield from _pairs(f"{m} encoder", getattr(theirs, f"bn_{layer}"), norm)
            yield from _pairs(f"{m} mean", theirs.loc, ours.mean)
            yield from _pairs(f"{m} std", theirs.std_lin, ours.std)
        yield from _pairs(f"{m} library", net.x2u[m].est_l, network.libraries[m].linear)
        theirs, ours = net.u2x[m], network.decoders[m]
        for layer in range(2):
            yield from _pairs(f"{m} decoder", getattr(theirs, f"linear_{layer}"), ours.layers[layer][0])
            yield from _pairs(f"{m} decoder", getattr(theirs, f"bn_{layer}"), ours.layers[layer][2])
        yield f"{m} loc weight", theirs.loc.weight, ours.weight, True
        yield f"{m} loc bias", theirs.loc.bias, ours.offset, False
        for name, own in (("scale_lin", "scale"), ("bias", "bias"), ("log_theta", "log_theta")):
            yield f"{m} {own}", getattr(theirs, name), getattr(ours, own), True
    linears = [layer for layer in network.discriminator.net if isinstance(layer, torch.nn.Linear)]
    for theirs, ours in zip([net.du.linear_0, net.du.linear_1, net.du.pred], linears, strict=True):
        yield from _pairs("discriminator", theirs, ours)


def _pairs(name, theirs, ours):
    for part in ("weight", "bias"):
        yield f"{name} {part}", getattr(theirs, part), getattr(ours, part), False


def mini_batch(modalities, seen):
    """One mini-batch in both forms: of cells `seen` (n_cells, K) in each modality."""
    generator = torch.Generator().manual_seed(1)
    x = {m: torch.randn(N_CELLS, WIDTH[m], generator=generator) for m in modalities}
    counts = {m: torch.poisson(torch.rand(N_CELLS, FEATURES[m], generator=generator) * 3) for m in modalities}
    batch = torch.randint(0, N_BATCHES, (N_CELLS,), generator=generator)
    batches, weights = dict.fromkeys(modalities, batch), dict.fromkeys(modalities, torch.ones(N_CELLS))
    kinds = {m: torch.full((N_CELLS,), i) for i, m in enumerate(modalities)}
    theirs = (counts, x, batches, {}, weights, kinds, seen)
    cells = torch.arange(N_CELLS)
    ours = MiniBatch(cells, {m: Seen(cells, x[m], sparse_counts(counts[m]), batch) for m in modalities})
    return theirs, ours


@pytest.mark.parametrize("modalities", [["rna", "adt"], ["rna", "atac"], ["rna", "atac", "adt"]])
def test_losses_and_gradients_equal_the_reference(modalities, monkeypatch):
    trainer, network = reference_trainer(modalities), our_network(modalities)
    with torch.no_grad():
        for _, theirs, ours, transposed in counterparts(trainer.net, network):
            ours.copy_(theirs.T if transposed else theirs)
    data, batch = mini_batch(modalities, torch.ones(N_CELLS, len(modalities), dtype=torch.bool))
    generator = torch.Generator().manual_seed(2)
    noise = [torch.randn(N_CELLS, N_LATENT * len(modalities), generator=generator) for _ in modalities]

    trainer.net.train()
    queue = list(noise)
    monkeypatch.setattr(
        torch.distributions.Normal, "rsample", lambda self, shape=(): self.loc + self.scale * queue.pop(0)
    )
    trainer.align_burnin = 0
    expected = trainer.compute_losses(data, epoch=1)
    expected["gen_loss"].backward()

    network.train()
    ours_queue = list(noise)
    monkeypatch.setattr(clue_network, "_noise_like", lambda x, generator: ours_queue.pop(0))
    posteriors = network.posteriors(batch)
    adversarial = network.discriminator_loss(batch, {k: mean for k, (mean, _) in posteriors.items()}, None, None)
    losses = network.generator_losses(batch, posteriors, OBJECTIVE)
    total = network.total(losses, adversarial, OBJECTIVE)
    total.backward()

    found = {"dsc_loss": adversarial, "gen_loss": total, "joint_cross_loss": losses["cross"]}
    found |= {"real_cross_loss": losses["source_cross"], "cos_loss": losses["mse"]}
    for m in modalities:
        found |= {f"x_{m}_nll": losses[f"nll_{m}"], f"x_{m}_kl": losses[f"kl_{m}"]}
    worst = {name: float((found[name] - expected[name]).abs() / expected[name].abs()) for name in found}
    assert max(worst.values()) < TOLERANCE, worst

    gradients = {}
    for name, theirs, ours, transposed in counterparts(trainer.net, network):
        reference = theirs.grad.T if transposed else theirs.grad
        # A bias before batch normalisation has a gradient of zero up to rounding; compare with the largest.
        size = max(float(reference.norm()), 1e-4)
        gradients[name] = max(gradients.get(name, 0.0), float((ours.grad - reference).norm()) / size)
    print(f"largest deviation of a loss {max(worst.values()):.1e}, of a gradient {max(gradients.values()):.1e}")
    assert max(gradients.values()) < TOLERANCE, gradients
