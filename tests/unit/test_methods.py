"""`run_method`: what a method receives, what it may return, what remains when it fails."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import arguments_for_files

from clue.benchmark import contracts
from clue.benchmark.contracts import read_embedding, write_test, write_train
from clue.benchmark.methods import run_method

ROOT = Path(__file__).parents[2]
N_TEST = {"rna": 5, "adt": 7}


def counts(n_cells, names, seed=0, prefix="gene"):
    """Return one modality of raw counts with four features."""
    values = np.random.default_rng(seed).poisson(2, (n_cells, 4)).astype(np.float32)
    obs = pd.DataFrame({"batch": ["b1"] * n_cells}, index=names)
    return ad.AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=[f"{prefix}_{i}" for i in range(4)]))


@pytest.fixture
def folder(tmp_path):
    """A folder with the input files of a method, and nothing else."""
    cells = [f"cell_{i}" for i in range(20)]
    write_train(md.MuData({"rna": counts(20, cells), "adt": counts(20, cells, 1, "protein")}), tmp_path / "train.h5mu")
    for modality, n_cells in N_TEST.items():
        cells = counts(n_cells, contracts.names_of_test_cells(modality, n_cells), 2)
        cells.uns = {"modality": modality, "dataset": "tiny", "split": "random20"}
        write_test(cells, tmp_path / f"test_{modality}.h5ad")
    return tmp_path


def command_line(folder, modalities=("rna", "adt"), **changes):
    """Return the arguments of a method's program."""
    options = {"embedding": folder / "out" / "embedding.h5ad", "seed": 3, "params": '{"n_latent": 2}'}
    return arguments_for_files(folder, modalities, **options | changes)


def right(task, params, seed):
    """A correct method: row i of a modality holds i."""
    return {name: np.arange(cells.n_obs)[:, None].repeat(params["n_latent"], 1) for name, cells in task.test.items()}


def fails(folder, embed, capsys):
    """Run a method that must fail; return the recorded reason and the output."""
    with pytest.raises(SystemExit) as stopped:
        run_method(embed, command_line(folder))
    assert stopped.value.code not in (0, None)
    assert not (folder / "out" / "embedding.h5ad").exists()
    reason = json.loads((folder / "out" / "failure.json").read_text())["error"]
    assert "\n" not in reason
    return reason, f"{stopped.value.code}\n{capsys.readouterr().err}"


# ---- a method that works -------------------------------------------------------------------------


def test_embedding_has_one_row_per_test_cell_in_file_order(folder):
    run_method(right, command_line(folder))
    embedding = read_embedding(folder / "out" / "embedding.h5ad")
    names = [*contracts.names_of_test_cells("rna", 5), *contracts.names_of_test_cells("adt", 7)]
    assert list(embedding.obs_names) == names
    assert list(embedding.obs["cell"]) == list(embedding.obs_names)
    assert list(embedding.obs["modality"]) == ["rna"] * 5 + ["adt"] * 7
    assert embedding.X[:, 0].tolist() == [*range(5), *range(7)]
    assert embedding.X.dtype == np.float32
    assert json.loads(embedding.uns["params"]) == {"n_latent": 2}
    expected = {"method": "my_method", "variant": "default", "seed": 3, "dataset": "tiny", "split": "random20"}
    assert embedding.uns.items() >= expected.items()


def test_run_json_describes_the_run(folder):
    def embed(task, params, seed):
        task.info["epochs"] = np.int64(12)
        return right(task, params, seed)

    run_method(embed, command_line(folder))
    report = json.loads((folder / "out" / "run.json").read_text())
    assert report["params"] == {"n_latent": 2}
    assert report["info"] == {"epochs": 12}
    assert report["seconds"] >= 0 and report["peak_memory_mb"] > 10 and report["gpu_memory_mb"] is None
    assert report["versions"]["numpy"] == np.__version__
    assert "commit" in report and report["date"] == date.today().isoformat()


def test_same_seed_gives_the_same_random_numbers(folder):
    random_numbers = []

    def embed(task, params, seed):
        random_numbers.append((random.random(), np.random.random()))
        return right(task, params, seed)

    for seed in (3, 3, 4):
        run_method(embed, command_line(folder, seed=seed))
    assert random_numbers[0] == random_numbers[1] != random_numbers[2]


def run_apart(folder, text):
    """Run a program with a method in a separate process; return its exit status."""
    program = folder / "program.py"
    program.write_text(text)
    command = [sys.executable, program, *command_line(folder)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60).returncode


def test_torch_imported_late_by_a_method_is_seeded(folder):
    """In a separate process, where only the method imports torch."""
    torch = pytest.importorskip("torch")
    status = run_apart(
        folder,
        "import sys\n"
        "from clue.benchmark.methods import run_method\n"
        "def embed(task, params, seed):\n"
        "    import torch\n"
        "    return {name: torch.rand(cells.n_obs, 2).numpy() for name, cells in task.test.items()}\n"
        "assert 'torch' not in sys.modules\n"
        "run_method(embed)\n",
    )
    assert status == 0
    expected = torch.rand(N_TEST["rna"], 2, generator=torch.Generator().manual_seed(3)).numpy()
    assert (read_embedding(folder / "out" / "embedding.h5ad").X[: N_TEST["rna"]] == expected).all()


def test_metric_chosen_by_a_method_is_written(folder):
    def embed(task, params, seed):
        task.metric = "euclidean"
        return right(task, params, seed)

    for method, metric in ((right, "cosine"), (embed, "euclidean")):
        run_method(method, command_line(folder))
        assert read_embedding(folder / "out" / "embedding.h5ad").uns["metric"] == metric
        assert json.loads((folder / "out" / "run.json").read_text())["metric"] == metric


def test_success_removes_the_failure_of_an_earlier_try(folder, capsys):
    fails(folder, lambda task, params, seed: 1 / 0, capsys)
    run_method(right, command_line(folder))
    assert not (folder / "out" / "failure.json").exists()


def test_arrays_of_any_kind_are_put_in_order(folder):
    """Modalities by name, rows of a data frame by the names in its index; a sparse matrix becomes dense."""

    def embed(task, params, seed):
        arrays = right(task, params, seed)
        frames = {name: pd.DataFrame(arrays[name], index=cells.obs_names) for name, cells in task.test.items()}
        kinds = {"adt": [sp.csr_matrix(arrays["adt"]), frames["adt"].reset_index(drop=True)]}
        return {"adt": kinds["adt"][seed], "rna": frames["rna"][::-1]}

    for seed in (0, 1):
        run_method(embed, command_line(folder, seed=seed))
        found = read_embedding(folder / "out" / "embedding.h5ad")
        assert found.X[:, 0].tolist() == [*range(5), *range(7)]
        assert list(found.obs["modality"]) == ["rna"] * 5 + ["adt"] * 7


def test_method_may_change_its_task_except_the_order_of_cells(folder, tmp_path, monkeypatch):
    """Change features and batches, free memory, replace test cells by processed ones, change the working directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def embed(task, params, seed):
        arrays = right(task, params, seed)
        task.test["rna"]._inplace_subset_var([0])
        task.test["rna"].obs["batch"], task.test["rna"].uns = "one", {}
        task.test["adt"] = task.test.pop("adt").copy()
        del task.test["adt"]
        os.chdir(elsewhere)
        (task.checkpoints / "last.pt").write_text("state")
        return arrays

    monkeypatch.chdir(folder)
    run_method(embed, [word.removeprefix(f"{folder}/") for word in command_line(folder)])
    embedding = read_embedding(folder / "out" / "embedding.h5ad")
    assert set(embedding.obs["batch"]) == {"b1"} and embedding.uns["dataset"] == "tiny"
    assert (folder / "out" / "run.json").exists() and not any(elsewhere.iterdir())


def test_times_of_attempts_add_up(folder, capsys):
    """Including those of a killed one."""
    status = run_apart(
        folder,
        "import os, signal, time\n"
        "from clue.benchmark.methods import run\n"
        "run.NOTED_EVERY = 0.05\n"
        "def embed(task, params, seed):\n"
        "    time.sleep(0.5)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "run.run_method(embed)\n",
    )
    assert status == -signal.SIGKILL

    def slow(task, params, seed):
        time.sleep(0.2)
        return right(task, params, seed)

    def seconds():
        run_method(slow, command_line(folder))
        return json.loads((folder / "out" / "run.json").read_text())["seconds"]

    fails(folder, lambda *given: slow(*given)["atac"], capsys)
    assert 0.8 < seconds() < 5
    (folder / "out" / "embedding.h5ad").unlink()
    assert 0.2 <= seconds() < 0.7, "a new run starts from zero"


# ---- a method that fails -------------------------------------------------------------------------


def test_escape_codes_are_removed_from_reasons(folder, capsys):
    def embed(task, params, seed):
        raise ValueError("\x1b[1;31mred\x1b[0m\x00 and \x1b]8;;http://x\x07link\x1b]8;;\x07\nplain")

    assert fails(folder, embed, capsys)[0] == "ValueError: red and link plain"


def one_row_short(task, params, seed):
    return {name: array[: 5 if name == "rna" else 6] for name, array in right(task, params, seed).items()}


def not_finite(task, params, seed):
    arrays = {name: array.astype(float) for name, array in right(task, params, seed).items()}
    arrays["adt"][[0, 3]] = [np.nan, np.inf]
    return arrays


def other_width(task, params, seed):
    return {name: array[:, : 1 if name == "adt" else 2] for name, array in right(task, params, seed).items()}


def filters_in_place(task, params, seed):
    arrays = right(task, params, seed)
    task.test["adt"]._inplace_subset_obs(np.arange(7) > 0)
    return arrays


def reorders_in_place(task, params, seed):
    task.test["adt"]._inplace_subset_obs(np.arange(7)[::-1])
    return right(task, params, seed)


def names_other_cells(task, params, seed):
    frame = pd.DataFrame(np.zeros((7, 2)), index=[f"protein_{i}" for i in range(7)])
    return right(task, params, seed) | {"adt": frame}


@pytest.mark.parametrize(
    ("embed", "reason"),
    [
        (one_row_short, "embed of my_method returned 6 rows for 7 cells of adt"),
        (not_finite, "embed of my_method returned 2 of 7 rows of adt that are not finite"),
        (other_width, "embed of my_method returned 1 columns for adt; rna has 2"),
        (lambda *_: None, "embed of my_method returned NoneType"),
        (lambda *_: {"rna": np.zeros((5, 2))}, "returned ['rna'] for the modalities ['rna', 'adt']"),
        (lambda task, *_: {name: np.zeros(x.n_obs) for name, x in task.test.items()}, "1-d float64 for rna"),
        (lambda task, *_: {name: np.full((x.n_obs, 2), 1e300) for name, x in task.test.items()}, "not finite"),
        (lambda task, *_: {name: [[1], [1, 2]] for name in task.test}, "is not an array for rna: setting an array"),
        (lambda task, *_: {name: np.zeros((x.n_obs, 0)) for name, x in task.test.items()}, "0 columns"),
        (lambda task, params, seed: params["n_layers"], "parameter 'n_layers' missing"),
        (filters_in_place, "my_method has filtered, reordered or renamed the cells of task.test['adt']"),
        (reorders_in_place, "my_method has filtered, reordered or renamed the cells of task.test['adt']"),
        (names_other_cells, "returned a data frame for adt whose index does not name every test cell exactly once"),
        (lambda *_: sys.exit(), "embed of my_method called sys.exit(); it must return the embedding"),
        (lambda *_: sys.exit(0), "embed of my_method called sys.exit(0); it must return the embedding"),
        (lambda *_: sys.exit("no\nluck"), r"embed of my_method called sys.exit('no\nluck')"),
    ],
)
def test_wrong_returns_are_one_clear_line(folder, capsys, embed, reason):
    left, printed = fails(folder, embed, capsys)
    assert reason in left and reason in printed
    assert "Traceback" not in printed


def test_exception_gives_its_line_and_a_traceback(folder, capsys):
    def embed(task, params, seed):
        raise ValueError("no\nluck")

    left, printed = fails(folder, embed, capsys)
    assert left == "ValueError: no luck"
    assert "Traceback" in printed and "in embed" in printed


def test_cuda_without_a_gpu_is_an_error(folder, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU was found"):
        run_method(right, command_line(folder, device="cuda"))


# ---- checkpoints and signals ---------------------------------------------------------------------


def interrupted(task, params, seed):
    """Record the existing checkpoints, write one, fail."""
    found = (task.checkpoints / "last.pt").exists()
    (task.checkpoints / "last.pt").write_text("state")
    raise ValueError(f"found {found}")


@pytest.mark.parametrize(
    ("changes", "found"), [({}, True), ({"seed": 4}, False), ({"params": '{"n_latent": 3}'}, False)]
)
def test_checkpoints_survive_a_failure_but_not_a_change(folder, capsys, changes, found):
    fails(folder, interrupted, capsys)
    with pytest.raises(SystemExit):
        run_method(interrupted, command_line(folder, **changes))
    assert json.loads((folder / "out" / "failure.json").read_text()) == {"error": f"ValueError: found {found}"}


def test_checkpoints_of_a_finished_run_are_not_resumed(folder, capsys):
    def embed(task, params, seed):
        (task.checkpoints / "last.pt").write_text("state")
        return right(task, params, seed)

    run_method(embed, command_line(folder))
    # Snakemake removes a job's outputs before it runs the job again.
    (folder / "out" / "embedding.h5ad").unlink()
    assert fails(folder, interrupted, capsys)[0] == "ValueError: found False"


def test_sigterm_ends_the_process_by_signal_and_leaves_no_result(folder):
    status = run_apart(
        folder,
        "import os, signal\n"
        "from clue.benchmark.methods import run_method\n"
        "run_method(lambda task, params, seed: os.kill(os.getpid(), signal.SIGTERM))\n",
    )
    assert status == -signal.SIGTERM
    assert [path.name for path in (folder / "out").iterdir()] == ["checkpoints"]


class SIGTERMException(SystemExit):
    """What Lightning raises on SIGTERM."""


@pytest.mark.parametrize("end", [SystemExit(128 + signal.SIGTERM), SIGTERMException()], ids=["clue", "lightning"])
def test_exit_as_by_a_signal_is_not_a_failure_of_the_method(folder, end):
    """CLUE and MultiVI exit like this when Slurm preempts their job, which then runs again."""

    def embed(task, params, seed):
        raise end

    with pytest.raises(SystemExit) as stopped:
        run_method(embed, command_line(folder))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [path.name for path in (folder / "out").iterdir()] == ["checkpoints"]


# ---- by pairs ------------------------------------------------------------------------------------


@pytest.fixture
def folder_of_three(folder):
    """The same plus ATAC: ten training cells have RNA and ATAC, ten RNA and proteins."""
    train = contracts.read_train(folder / "train.h5mu")
    cells = train["rna"].obs_names
    parts = {"rna": train["rna"], "atac": counts(10, cells[:10], 3, "peak"), "adt": train["adt"][10:].copy()}
    write_train(md.MuData(parts), folder / "train.h5mu")
    test = counts(6, contracts.names_of_test_cells("atac", 6), 4, "peak")
    test.uns = {"modality": "atac"}
    write_test(test, folder / "test_atac.h5ad")
    return folder


def run_by_pairs(folder, embed, params):
    words = command_line(folder, ("rna", "atac", "adt"), params=json.dumps(params))
    run_method(embed, [*words, "--by-pairs"])
    report = json.loads((folder / "out" / "run.json").read_text())
    return read_embedding(folder / "out" / "embedding.h5ad"), report


def test_method_by_pairs_runs_on_each_pair_alone(folder_of_three):
    seen = []

    def embed(task, params, seed):
        seen.append((list(task.train.mod), list(task.test), task.train["rna"].n_obs, params["width"]))
        task.checkpoints.joinpath("there").touch()
        task.info["width"] = params["width"]
        task.metric = params["metric"]
        number = np.random.random()
        for cells in task.test.values():
            cells.X[:] = 0  # the next pair still has the cells as in the file
        return {name: np.full((cells.n_obs, params["width"]), number) for name, cells in task.test.items()}

    params = {"rna+atac": {"width": 2, "metric": "cosine"}, "rna+adt": {"width": 3, "metric": "euclidean"}}
    embedding, report = run_by_pairs(folder_of_three, embed, params)
    assert seen == [(["rna", "atac"], ["rna", "atac"], 20, 2), (["rna", "adt"], ["rna", "adt"], 20, 3)]
    assert list(embedding.obs["pair"].unique()) == ["rna+atac", "rna+adt"] and embedding.n_obs == 5 + 6 + 5 + 7
    first, second = (contracts.of_pair(embedding, "rna", other) for other in ("atac", "adt"))
    assert list(first.obs_names[:5]) == contracts.names_of_test_cells("rna", 5)
    assert embedding.n_vars == 3 and (first.n_vars, second.n_vars) == (2, 3)
    assert (first.X == second.X[0, 0]).all(), "each pair starts from the seed"
    assert (contracts.metric_of(first), contracts.metric_of(second)) == ("cosine", "euclidean")
    assert report["by_pairs"] and report["info"] == {pair: {"width": params[pair]["width"]} for pair in params}
    assert report["metric"] == {"rna+atac": "cosine", "rna+adt": "euclidean"}


def test_pair_without_common_training_cells_is_left_out(folder_of_three, capsys):
    def embed(task, params, seed):
        return {name: np.ones((cells.n_obs, 2)) for name, cells in task.test.items()}

    embedding, _ = run_by_pairs(folder_of_three, embed, {"rna+adt": {}, "atac+adt": {}})
    assert set(embedding.obs["pair"]) == {"rna+adt"}
    assert embedding.uns["left_out"] == {"atac+adt": "no training cell is seen in both atac and adt"}
    with pytest.raises(SystemExit):
        run_by_pairs(folder_of_three, embed, {"atac+adt": {}})
    assert "no pair is left to run on" in json.loads((folder_of_three / "out" / "failure.json").read_text())["error"]


# ---- the control ---------------------------------------------------------------------------------


def test_random_gives_independent_unit_vectors(scripts):
    module = scripts("methods/random_control.py")

    class Task:
        test = {"rna": counts(300, map(str, range(300))), "adt": counts(300, map(str, range(300)))}
        directions = ()

    first, again, other = (module.embed(Task, {"n_latent": 10}, seed)[0] for seed in (0, 0, 1))
    for modality in Task.test:
        assert first[modality].shape == (300, 10)
        assert np.allclose(np.linalg.norm(first[modality], axis=1), 1)
        assert (first[modality] == again[modality]).all() and (first[modality] != other[modality]).any()
    # The mean cosine of 300 independent pairs has standard deviation 1 / sqrt(10 * 300) = .018.
    assert abs((first["rna"] * first["adt"]).sum(axis=1).mean()) < 0.1
