"""Random small data sets from their files to a figure; `python -m tools.soak` tries more of them."""

from tools import soak


def test_random_data_sets_work_or_say_why_not(tmp_path, capsys):
    soak.main(number=6, folder=tmp_path)
    assert "scored" in capsys.readouterr().out and not list(tmp_path.iterdir())
