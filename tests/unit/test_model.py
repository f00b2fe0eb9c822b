"""CLUE as a library: shapes, masks, ablations, resume, saving, errors."""

import random
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import clue
from clue.metrics import foscttm
from clue.network import Objective
from clue.simulate import simulate

WIDTHS = {"n_latent": 6, "encoder": (1, 32), "decoder": (1, 32), "discriminator": (1, 16), "n_components": 20}
SMALL = {"batch_key": "batch", **WIDTHS}
SHORT = {"max_steps": 60, "warmup_steps": 20, "check_steps": 20, "optimizer": "adam", "progress": False}


@pytest.fixture(scope="module")
def three():
    """RNA, ATAC and proteins of the same 240 cells."""
    return simulate(240, n_features={"rna": 80, "atac": 100, "adt": 20}, n_batches=2, seed=0)


@pytest.fixture(scope="module")
def two(three):
    """RNA and proteins."""
    return {k: three[k] for k in ("rna", "adt")}


def fitted(data, seed=0, **changes):
    return clue.CLUE(data, seed=seed, **SMALL).fit(**{**SHORT, **changes})


PUBLIC = """
import sys, clue
assert "torch" not in sys.modules
assert set(clue.__all__) < set(dir(clue)) and not hasattr(clue, "nonsense")
modules = clue.matching.match_snn, clue.metrics.foscttm, clue.simulate.simulate, clue.preprocess.preprocessor
assert "torch" not in sys.modules
first = {name: getattr(clue, name) for name in clue.__all__}
clue.CLUE, clue.Objective(mse=2.0), clue.Training(max_steps=5)
assert all(getattr(clue, name) is value for name, value in first.items())
"""


def test_public_names_are_stable_attributes():
    run = subprocess.run([sys.executable, "-c", PUBLIC], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("fusion", ["mean", "product"])
@pytest.mark.parametrize("library", ["observed", "learned"])
def test_three_modalities(three, fusion, library):
    model = clue.CLUE(three, fusion=fusion, library=library, **SMALL)
    model.fit(**{**SHORT, "max_steps": 20}, objective={"source_cross": 0.5})
    for modality in three.mod:
        z = model.embed(three[modality], modality)
        assert z.shape == (240, 18) and z.dtype == np.float32 and np.isfinite(z).all()


def test_embeddings_of_the_same_cell_converge(two):
    model = fitted(two, max_steps=300, warmup_steps=50, objective={"adversarial": 0.1, "mse": 5, "kl": 0.1})
    x, y = model.embed(two["rna"], "rna"), model.embed(two["adt"], "adt")
    # 0.5 is chance
    assert np.mean(foscttm(x, y)) < 0.15
    losses = model.history[["train_loss", "loss"]]
    assert (losses.iloc[-1] < losses.iloc[0]).all()


def test_same_seed_same_embedding(two):
    first, second, other = (fitted(two, seed).embed(two["rna"], "rna") for seed in (0, 0, 1))
    assert np.array_equal(first, second)
    assert not np.allclose(first, other)


def test_partly_paired_cells_train_through_the_mask(two):
    rna, adt = two["rna"][:160].copy(), two["adt"][80:].copy()
    model = fitted({"rna": rna, "adt": adt})
    cells = model._cells({"rna": rna, "adt": adt})
    assert len(cells) == 240 and sum(row >= 0 for row in cells.row.values()).eq(2).sum() == 80
    batch = cells.take(torch.arange(240))
    assert len(batch.seen["rna"].cell) == len(batch.seen["adt"].cell) == 160
    names = cells.names[batch.index[batch.seen["adt"].cell].numpy()]
    expected = adt[names].X.toarray()[:, model.preprocessors["adt"].selected]
    assert np.array_equal(batch.seen["adt"].counts.dense().numpy(), expected)


def test_padding_for_a_gpu_adds_only_zeros(two):
    """A recorded step needs mini-batches of few shapes, so `Draw.n_entries` may exceed the number of entries."""
    cells = clue.CLUE(two, **SMALL)._cells(two)
    draw = cells.draw(torch.tensor([3, 7, 200]))
    padded = replace(draw, n_entries={k: n + 50 for k, n in draw.n_entries.items()})
    for k, seen in cells.gather(draw).seen.items():
        counts, more = seen.counts, cells.gather(padded).seen[k].counts
        assert len(more.value) == len(counts.value) + 50 and more.cell.max() == 2
        assert torch.equal(more.dense(), counts.dense())
        assert torch.equal(counts.dense().sum(1), counts.total)


@pytest.mark.parametrize("fusion", ["mean", "product"])
def test_cell_seen_in_one_modality_has_nothing_to_match(two, fusion):
    model = clue.CLUE(two, fusion=fusion, **SMALL)
    batch = model._cells({"rna": two["rna"][:30], "adt": two["adt"][200:]}).take(torch.arange(70))
    losses = model.network.generator_losses(batch, model.network.posteriors(batch), Objective())
    assert abs(float(losses["mse"])) < 1e-5


def test_joint_posterior_weights_by_precision(two):
    model = clue.CLUE(two, fusion="product", **SMALL)
    batch = model._cells({"rna": two["rna"][:8], "adt": two["adt"][:6]}).take(torch.arange(8))
    rna, adt = (torch.ones(8, 12), torch.full((8, 12), 0.1)), (torch.zeros(6, 12), torch.full((6, 12), 0.3))
    mean, std = model.network.joint_posterior(batch, {"rna": rna, "adt": adt})
    both = torch.isin(torch.arange(8), batch.seen["adt"].cell)
    # precisions of 100 and 100 / 9 give the weights 0.9 and 0.1
    torch.testing.assert_close(mean[both], torch.full((6, 12), 0.9))
    torch.testing.assert_close(std[both], torch.full((6, 12), (100 + 100 / 9) ** -0.5))
    torch.testing.assert_close(mean[~both], torch.ones(2, 12))
    torch.testing.assert_close(std[~both], torch.full((2, 12), 0.1))


def test_bound_of_a_product_has_its_kl(two):
    model = clue.CLUE(two, fusion="product", **SMALL)
    batch = model._cells({"rna": two["rna"][:8], "adt": two["adt"][:6]}).take(torch.arange(8))
    posteriors = {"rna": (torch.ones(8, 12), torch.ones(8, 12)), "adt": (torch.ones(6, 12), torch.ones(6, 12))}
    objective = Objective(self_elbo=0.0, kl=0.3, cross=0.7, mse=0.0)
    losses = model.network.generator_losses(batch, posteriors, objective)
    # N(1, 1/2) for the six cells in both, N(1, 1) for the two in RNA only; six dimensions of each subspace
    both, alone = 6 * 0.5 * (1 + 0.5 - 1 + np.log(2)), 6 * 0.5
    expected = (6 * both + 2 * alone) / 8 / 80 + both / 20
    assert float(losses["cross_kl"]) == pytest.approx(expected, rel=1e-5)
    total = model.network.total(losses, torch.zeros(()), objective, kl_share=0.5)
    assert float(total) == pytest.approx(0.7 * (float(losses["cross"]) + 0.5 * 0.3 * expected), rel=1e-5)
    assert "cross_kl" not in clue.CLUE(two, **SMALL).network.generator_losses(batch, posteriors, objective)


@pytest.mark.parametrize("name", ["cross", "mse", "adversarial"])
def test_ablation_removes_only_its_loss(two, name):
    model = clue.CLUE(two, **SMALL)
    batch = model._cells(two).take(torch.arange(64))
    full, without = Objective(), Objective(**{name: 0.0})

    def gradients(objective):
        torch.manual_seed(0)
        model.network.train().zero_grad()
        posteriors = model.network.posteriors(batch)
        means = {k: m for k, (m, _) in posteriors.items()}
        adversarial = model.network.discriminator_loss(batch, means, None, None)
        losses = model.network.generator_losses(batch, posteriors, objective)
        model.network.total(losses, adversarial, objective).backward()
        return losses, model.network.encoders["rna"].subspaces[0].mean.weight.grad.clone()

    (kept, g_full), (dropped, g_without) = gradients(full), gradients(without)
    if name != "adversarial":
        assert float(dropped[name]) == 0 and float(kept[name]) > 0
    assert not torch.allclose(g_full, g_without)


def test_contrastive_loss_covers_cells_seen_in_both(two):
    # 30 cells in both, 20 in only one of each; means are orthogonal, so all other cells have similarity 0
    model = clue.CLUE(two, **(SMALL | {"n_latent": 35}))
    batch = model._cells({"rna": two["rna"][:50], "adt": two["adt"][20:70]}).take(torch.randperm(70))
    posteriors = {k: (3 * torch.eye(70)[batch.index[seen.cell]], torch.ones(50, 70)) for k, seen in batch.seen.items()}
    losses = model.network.generator_losses(batch, posteriors, Objective(contrastive=1.0, temperature=0.2))
    # from either modality, the partner among 30 cells
    expected = -2 * np.log(np.exp(1 / 0.2) / (np.exp(1 / 0.2) + 29))
    assert float(losses["contrastive"]) == pytest.approx(expected, rel=1e-5)


def test_generator_and_discriminator_are_adversaries(two):
    model = clue.CLUE(two, **SMALL)
    batch = model._cells(two).take(torch.arange(240))
    posteriors = model.network.eval().posteriors(batch)
    means = {k: mean for k, (mean, _) in posteriors.items()}
    loss = model.network.discriminator_loss(batch, means, None, None)
    nothing = dict.fromkeys(("cross", "source_cross", "mse", "contrastive"), 0.0)
    total = model.network.total(nothing, loss, Objective())
    weight = model.network.encoders["rna"].subspaces[0].mean.weight
    (up,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (down,) = torch.autograd.grad(total, weight)
    torch.testing.assert_close(down, -up)


def test_fine_tuning_accepts_unpaired_cells_and_new_batches(two):
    model = fitted({k: a[a.obs["batch"] == a.obs["batch"].iloc[0]].copy() for k, a in two.items()})
    extra = {}
    for k, adata in two.items():
        extra[k] = adata[adata.obs["batch"] != adata.obs["batch"].iloc[0]].copy()
        extra[k].obs_names = [f"{k}_{i}" for i in range(extra[k].n_obs)]
    before = len(model.batches)
    model.fit(extra, **SHORT)
    assert len(model.batches) == before + 1
    assert np.isfinite(model.embed(extra["rna"], "rna")).all()
    for names, other in ((two["adt"].obs_names, "rna"), (extra["adt"].obs_names, "rna")):
        equal = {"rna": extra["rna"][:5].copy(), "adt": extra["adt"]}
        equal["rna"].obs_names = names[:5]
        with pytest.raises(ValueError, match=f"extra cell '{names[0]}' of .* of {other}; cells with equal names"):
            model.fit(equal, **SHORT)


@pytest.mark.parametrize("kind", ["uint8", "int32", "by columns", "stored twice"])
def test_counts_in_another_form_train_alike(two, kind):
    plain, changed = ({k: adata.copy() for k, adata in two.items()} for _ in range(2))
    for k in plain:
        counts = plain[k].X
        counts.data = counts.data.clip(max=255)
        assert counts.max() == 255, "the largest 8-bit count"
        if kind == "stored twice":
            halves = np.stack([counts.data - 1, np.ones_like(counts.data)], axis=1).ravel()
            twice = (halves, np.repeat(counts.indices, 2), 2 * counts.indptr)
            changed[k] = ad.AnnData(sp.csr_matrix(twice, shape=counts.shape), obs=two[k].obs, var=two[k].var)
        else:
            changed[k].X = sp.csc_matrix(counts) if kind == "by columns" else counts.astype(kind)
    first, second = fitted(plain), fitted(changed)
    pd.testing.assert_frame_equal(first.history, second.history)
    for k in plain:
        assert np.array_equal(first.embed(plain[k], k), second.embed(changed[k], k))


def test_making_and_loading_a_model_keeps_the_random_state(two, tmp_path):
    def state():
        return torch.get_rng_state().tolist(), [str(part) for part in np.random.get_state()], random.getstate()

    before = state()
    clue.CLUE(two, n_features={"rna": 50}, **SMALL).save(tmp_path / "model.pt")
    clue.CLUE.load(tmp_path / "model.pt").embed(two["rna"], "rna")
    assert state() == before


def test_each_cell_has_one_batch(two):
    def batches(modality, cell, batch):
        changed = {k: adata.copy() for k, adata in two.items()}
        changed[modality].obs["batch"] = changed[modality].obs["batch"].astype(object)
        changed[modality].obs.loc[cell, "batch"] = batch
        return changed

    cell = two["rna"].obs_names[7]
    for missing in (np.nan, None):
        with pytest.raises(ValueError, match=f"^adt: obs\\['batch'\\] of cell '{cell}' is missing$"):
            clue.CLUE(batches("adt", cell, missing), **SMALL)
    with pytest.raises(ValueError, match=f"^adt: obs\\['batch'\\] of cell '{cell}' is 'x', but 'batch[12]' in rna; "):
        clue.CLUE(batches("adt", cell, "x"), **SMALL)
    extra = two["rna"][:5].copy()
    extra.obs_names = [f"extra_{i}" for i in range(5)]
    extra.obs["batch"] = np.nan
    model = clue.CLUE(two, **SMALL)
    with pytest.raises(ValueError, match="^rna: obs\\['batch'\\] of cell 'extra_0' is missing$"):
        model.fit({"rna": extra}, **SHORT)


def mosaic():
    """Return all cells, and those seen: types 1 and 2 paired, 3 and 4 in a batch with only RNA or only proteins."""
    data = simulate(600, {"rna": 60, "adt": 30}, n_types=4, n_batches=1, type_separation=2, seed=0)
    paired = data["rna"].obs["cell_type"].isin(["type1", "type2"]).to_numpy()
    alone = np.where(np.random.default_rng(0).random(600) < 0.5, "rna only", "adt only")
    for adata in data.mod.values():
        adata.obs["batch"] = np.where(paired, "paired", alone)
    seen = {k: data[k][data[k].obs["batch"].isin(["paired", f"{k} only"])].copy() for k in data.mod}
    return data, seen


def test_single_modality_batches_are_aligned_without_batch_input():
    data, seen = mosaic()
    batch = data["rna"].obs["batch"].to_numpy()
    told, matched = {}, {}
    for shared in (True, False):
        model = clue.CLUE(seen, **(SMALL | {"discriminator": (1, 32), "shared_batches": shared}))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(max_steps=500, warmup_steps=50, objective={"adversarial": 5.0}, progress=False)
        named = [str(each.message) for each in caught if "not aligned" in str(each.message)]
        assert len(named) == shared and all("(adt only, rna only)" in each for each in named)
        z = {k: model.embed(data[k], k) for k in seen}
        apart = [z[k][batch == f"{k} only"] for k in seen]
        modality = np.repeat([0, 1], [len(part) for part in apart])
        told[shared] = cross_val_score(LogisticRegression(max_iter=1000), np.vstack(apart), modality).mean()
        matched[shared] = np.mean([np.mean(foscttm(*(z[k][batch == b] for k in z))) for b in ("rna only", "adt only")])
    # 0.5 is chance
    assert told[False] < told[True] - 0.03 and matched[False] < matched[True] - 0.02


@pytest.mark.parametrize("validation", [0.1, 0])
def test_divergence_is_an_error(two, validation):
    with pytest.raises(FloatingPointError, match="diverged"):
        fitted(two, learning_rate=1e30, validation=validation)


# ---- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [36, 40], ids=["between passes", "within a pass"])
def test_resume_equals_an_uninterrupted_run(two, tmp_path, monkeypatch, caplog, last):
    # a pass is 6 steps
    whole = fitted(two, batch_size=32)
    advance = clue.train._Loop.advance

    def stop(loop):
        if loop.step == last:
            raise KeyboardInterrupt
        advance(loop)

    caplog.set_level("INFO")
    always = {"checkpoints": tmp_path, "checkpoint_seconds": 0, "batch_size": 32}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clue.train._Loop, "advance", stop)
        fitted(two, **always)
    assert len(list(tmp_path.glob("*.pt"))) == 1
    resumed = fitted(two, **always)
    assert f"resuming at step {last} " in caplog.text
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    assert np.array_equal(resumed.embed(two["rna"], "rna"), whole.embed(two["rna"], "rna"))


def test_checkpoint_of_other_settings_is_not_loaded(two, tmp_path, caplog):
    caplog.set_level("INFO")
    fitted(two, checkpoints=tmp_path)
    fitted(two, checkpoints=tmp_path, objective={"mse": 2.0})
    assert "resuming" not in caplog.text
    fitted(two, checkpoints=tmp_path)
    assert "resuming" in caplog.text


def test_damaged_checkpoint_is_named(two, tmp_path):
    # numpy numbers can be read again
    settings = {"checkpoints": tmp_path, "learning_rate": np.float64(1e-3), "objective": {"mse": np.float32(0.5)}}
    first, again = fitted(two, **settings), fitted(two, **settings)
    assert np.array_equal(first.embed(two["rna"], "rna"), again.embed(two["rna"], "rna"))
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path.name}: the checkpoint is damaged; delete it and run again"):
        fitted(two, **settings)


PROGRAM = """
import sys, clue
from clue.simulate import simulate
data = simulate(240, n_features={"rna": 80, "adt": 20}, n_batches=2, seed=0)
model = clue.CLUE(data, n_latent=6, encoder=(1, 32), n_components=20)
from clue import train
train_step = train._Loop._train_step


def announced(loop, index):
    train_step(loop, index)
    print("trained", flush=True)


train._Loop._train_step = announced
endless = {"max_steps": 10**9, "check_steps": 10**9, "checkpoint_seconds": 1e9}
model.fit(**endless, checkpoints=sys.argv[1], progress=False)
"""


def test_sigterm_writes_a_checkpoint_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "trained"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    (checkpoint,) = tmp_path.glob("*.pt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] > 0 and not state["history"]


# ---- precision and dropout -----------------------------------------------------------------------


def test_bfloat16_products_train(two):
    exact, rounded = clue.CLUE(two, **SMALL), clue.CLUE(two, precision="bfloat16", **SMALL)
    x, y = exact.embed(two["rna"], "rna"), rounded.embed(two["rna"], "rna")
    assert y.dtype == np.float32 and not np.array_equal(x, y)
    np.testing.assert_allclose(x, y, atol=0.05 * np.abs(x).max())
    rounded.fit(**SHORT)
    assert np.isfinite(rounded.embed(two["rna"], "rna")).all()
    with pytest.raises(ValueError, match="precision is 'float16'; it must be"):
        clue.CLUE(two, precision="float16", **SMALL)


def test_compiled_layers_train_alike_and_are_saved_alike(two, tmp_path):
    plain = fitted(two)
    # this backend does everything but generate machine code, which would need a compiler
    compiled = fitted(two, compile="aot_eager")
    np.testing.assert_allclose(compiled.embed(two["rna"], "rna"), plain.embed(two["rna"], "rna"), rtol=0, atol=0.01)
    compiled.save(tmp_path / "model.pt")
    loaded = clue.CLUE.load(tmp_path / "model.pt")
    np.testing.assert_allclose(loaded.embed(two["adt"], "adt"), compiled.embed(two["adt"], "adt"), rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="nonsense"):
        fitted(two, compile="nonsense")


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_dropout_zeroes_at_the_rate_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    dropout = clue.nn.Dropout(rate)
    dropped = dropout(torch.ones(300, 1001))
    # the fraction has a standard deviation of sqrt(rate / 300,300) < 0.001
    assert abs(float((dropped == 0).float().mean()) - rate) < 0.005
    torch.testing.assert_close(dropped[dropped > 0].unique(), torch.tensor([1 / (1 - rate)]), rtol=1e-4, atol=0)
    torch.manual_seed(0)
    assert torch.equal(dropout(torch.ones(300, 1001)), dropped)
    assert not torch.equal(dropout(torch.ones(300, 1001)), dropped)
    assert torch.equal(dropout.eval()(torch.ones(3)), torch.ones(3))


def test_rmsprop_equals_that_of_torch(two):
    from clue.train import _RMSprop

    weights = [torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    ours = _RMSprop([weights[0]], lr=0.01, weight_decay=0.1, fused=True)
    theirs = torch.optim.RMSprop([weights[1]], lr=0.01, weight_decay=0.1)
    for _ in range(20):
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            optimizer.zero_grad()
            weight.square().sum().sin().backward()
            optimizer.step()
    torch.testing.assert_close(*weights)
