from recipes.plots.training import loss_curve
from tests.plots.test_representation import texts


def test_the_curve_of_a_long_run_shows_mean_and_range_of_bins() -> None:
    steps = list(range(1, 401))
    figure = loss_curve(steps, [float(step % 2) for step in steps], [(200, 0.5), (400, 0.75)])
    loss, knn = figure.axes
    assert loss.lines[0].get_xdata()[:2].tolist() == [1.5, 3.5]
    assert set(loss.lines[0].get_ydata()) == {0.5}
    assert knn.lines[0].get_ydata().tolist() == [50, 75]
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("optimiser step", "loss")
    assert "training loss, mean and range of 2 steps" in texts(figure)
