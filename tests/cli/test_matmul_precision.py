import pytest
import torch

from recipes.cli import main

RUN = [
    *("fit", "--model", "Supervised", "--model.encoder", "ConvNet", "--model.encoder.widths", "[4]", "--name", "run"),
    *("--model.lr_batch_size", "null", "--data.size", "8", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_test_batches", "0", "--probe.every_n_epochs", "99"),
]


@pytest.fixture(autouse=True)
def _as_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_precision_of_matrix_products_is_an_option_that_a_checkpoint_keeps(capsys):
    main([*RUN, "--float32_matmul_precision", "high"])
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    main(["test", "--ckpt_path", "runs/run"])
    assert torch.get_float32_matmul_precision() == "high"
    main(["test", "--ckpt_path", "runs/run", "--float32_matmul_precision", "medium"])
    assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(SystemExit):
        main([*RUN, "--float32_matmul_precision", "tf32"])
    assert "float32_matmul_precision is tf32: it must be null or 'highest', 'high', 'medium'" in capsys.readouterr().err
